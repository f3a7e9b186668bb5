/** What the tests of deduplication share: databases of both engines, images in a real registry. */

import {
  type ConversionDatabase,
  openConversionDatabase,
} from "../../lib/image/mod.ts";
import { MySqlConnection } from "../../lib/image/dedup/mysql.ts";
import { parseDatabase } from "../../lib/image/dedup/settings.ts";
import { SqliteConnection } from "../../lib/image/dedup/sqlite.ts";
import type { SqlConnection } from "../../lib/image/dedup/connection.ts";
import { blobFromBytes, parseReference } from "../../lib/registry/mod.ts";
import { testEnvironment } from "../image/helpers.ts";
import {
  DB_PASSWORD,
  MARIADB_TOOLS,
  startMariaDb,
} from "../testutil/mariadb.ts";
import type { MadeImage } from "../testutil/oci_image.ts";
import { requires } from "../testutil/requires.ts";

/** A database of a test. */
export interface TestDatabase extends AsyncDisposable {
  /** As on the command line. */
  readonly argument: string;
  /** Another process's view of it. */
  open(): ConversionDatabase;
  /** For looking at tables. */
  connect(): SqlConnection;
  /** Environment of commands that use it. */
  readonly env: Record<string, string>;
}

/** The engines, each with a start of its own. */
export const ENGINES: readonly {
  name: string;
  isHere: boolean;
  start(dir: string): Promise<TestDatabase>;
}[] = [
  {
    name: "SQLite",
    isHere: true,
    start: (dir) => {
      const argument = `sqlite:${dir}/conversions.db`;
      return Promise.resolve({
        argument,
        open: () => open(argument),
        connect: () => new SqliteConnection(`${dir}/conversions.db`),
        env: {},
        [Symbol.asyncDispose]: () => Promise.resolve(),
      });
    },
  },
  {
    name: "MariaDB",
    isHere: requires(...MARIADB_TOOLS),
    start: async (dir) => {
      const at = await Deno.makeTempDir({ dir, prefix: "db-" });
      const server = await startMariaDb(at);
      return {
        argument: server.url,
        open: () => open(server.url),
        connect: () => {
          const settings = parse(server.url);
          if (settings.kind !== "mysql") throw new Error(server.url);
          return new MySqlConnection(settings.mysql);
        },
        env: { OBD_DEDUP_DB_PASSWORD: DB_PASSWORD },
        [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
      };
    },
  },
];

function parse(argument: string) {
  return parseDatabase(argument, { env: () => DB_PASSWORD, uid: 0 });
}

function open(argument: string): ConversionDatabase {
  return openConversionDatabase(parse(argument))!;
}

/** Pushes an image as any client would. */
export async function pushImage(
  host: string,
  repository: string,
  tag: string,
  image: MadeImage,
): Promise<void> {
  await using environment = await testEnvironment();
  await using target = await environment.openRepository(
    parseReference(`${host}/${repository}`),
  );
  for (const blob of [image.config, ...image.layers]) {
    await target.pushBlob(blob, blobFromBytes(blob.bytes));
  }
  const { bytes, mediaType } = image.manifest;
  await target.pushManifest(bytes, mediaType, tag);
}

/** Pushes blobs alone. */
export async function pushBlob(
  host: string,
  repository: string,
  blob: { digest: string; size: number; bytes: Uint8Array; mediaType: string },
): Promise<void> {
  await using environment = await testEnvironment();
  await using target = await environment.openRepository(
    parseReference(`${host}/${repository}`),
  );
  await target.pushBlob(blob, blobFromBytes(blob.bytes));
}

/** What a tag of a registry names. */
export async function readManifest(
  host: string,
  repository: string,
  tag: string,
): Promise<{
  digest: string;
  config: { digest: string };
  layers: { digest: string; size: number }[];
}> {
  const response = await fetch(
    `http://${host}/v2/${repository}/manifests/${tag}`,
    {
      headers: {
        accept:
          "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json",
      },
    },
  );
  const digest = response.headers.get("docker-content-digest")!;
  if (!response.ok) throw new Error(`${tag}: ${await response.text()}`);
  return { ...await response.json(), digest };
}

/** Deletes a manifest or blob of a registry. */
export async function remove(
  host: string,
  repository: string,
  what: "manifests" | "blobs",
  digest: string,
): Promise<void> {
  const response = await fetch(
    `http://${host}/v2/${repository}/${what}/${digest}`,
    { method: "DELETE" },
  );
  await response.body?.cancel();
  if (response.status !== 202) {
    throw new Error(`DELETE ${what} ${digest}: ${response.status}`);
  }
}
