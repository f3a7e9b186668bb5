/** Both engines keep the same promises: rows found again, duplicates no error, nonsense left out. */

import assert from "node:assert/strict";
import type { SqlConnection } from "../../lib/image/dedup/connection.ts";
import type {
  ChainRow,
  LayerRow,
  ManifestRow,
} from "../../lib/image/dedup/database.ts";
import { GuardedDatabase } from "../../lib/image/dedup/guard.ts";
import { MySqlConnection } from "../../lib/image/dedup/mysql.ts";
import { parseDatabase } from "../../lib/image/dedup/settings.ts";
import { SqlDatabase } from "../../lib/image/dedup/sql_database.ts";
import { SqliteConnection } from "../../lib/image/dedup/sqlite.ts";
import { KeepingLogger, sh, withTempDir } from "../image/helpers.ts";
import {
  DB_PASSWORD,
  MARIADB_TOOLS,
  startMariaDb,
} from "../testutil/mariadb.ts";
import { requires } from "../testutil/requires.ts";

const host = "127.0.0.1:5000";
const digest = (n: number) => `sha256:${n.toString(16).padStart(64, "0")}`;
const key = (n: number) => n.toString(16).padStart(64, "0");
const chain = (n: number, repository = "app"): ChainRow => ({
  host,
  repository,
  chainKey: key(n),
  manifestDigest: digest(n),
  layerCount: n,
});
const layer = (n: number, repository = "app", made = n): LayerRow => ({
  host,
  repository,
  chainId: digest(n),
  digest: digest(1000 + made),
  size: 1_000_000_007 * n,
});
const manifest = (repository: string): ManifestRow => ({
  host,
  repository,
  sourceDigest: digest(1),
  digest: digest(2),
  size: 500,
  mediaType: "application/vnd.oci.image.manifest.v1+json",
});

/** What holds for every engine; `connect` opens the same data each time. */
async function contract(connect: () => SqlConnection): Promise<void> {
  const place = { host, repository: "app" };
  {
    await using db = new SqlDatabase(connect());
    assert.deepEqual(await db.findChains(place, [key(1)]), []);
    assert.deepEqual(await db.findChains(place, []), []);
    assert.deepEqual(await db.findLayers(place, []), []);
    for (
      const row of [chain(1), chain(2), chain(2, "zzz"), chain(3, "other")]
    ) {
      assert.equal(await db.addChain(row), true);
      assert.equal(await db.addChain(row), false, "somebody was faster");
    }
    for (const row of [layer(1), layer(1, "a"), layer(2, "a"), layer(3, "b")]) {
      assert.equal(await db.addLayer(row), true);
      assert.equal(await db.addLayer(row), false);
    }
    for (const row of [manifest("zzz"), manifest("app")]) {
      assert.equal(await db.addManifest(row), true);
      assert.equal(await db.addManifest(row), false);
    }
  }
  // Another process.
  await using db = new SqlDatabase(connect());
  const keys = [1, 2, 3].map(key);
  assert.deepEqual(await db.findChains(place, keys), [
    chain(3, "other"),
    chain(2),
    chain(2, "zzz"),
    chain(1),
  ]);
  assert.deepEqual(
    await db.findChains({ ...place, host: "elsewhere" }, keys),
    [],
  );
  const found = await db.findLayers(place, [1, 2, 3].map(digest));
  assert.deepEqual(
    found.map(({ repository, chainId }) => `${repository} ${chainId.at(-1)}`)
      .sort(),
    ["a 1", "a 2", "app 1", "b 3"],
  );
  assert.deepEqual(found[0], layer(1));
  assert.equal(await db.hasOtherLayer(layer(1)), false);
  assert.equal(await db.hasOtherLayer(layer(1, "new", 9)), true);
  assert.deepEqual(
    (await db.findManifests(place, digest(1), manifest("app").mediaType))
      .map(({ repository }) => repository),
    ["app", "zzz"],
  );
  assert.deepEqual(await db.findManifests(place, digest(1), "other"), []);

  // A row is deleted as it was seen: one that somebody replaced stays.
  await db.deleteChain({ ...chain(3, "other"), manifestDigest: digest(9) });
  assert.equal((await db.findChains(place, keys)).length, 4);
  for (const row of await db.findChains(place, keys)) await db.deleteChain(row);
  assert.deepEqual(await db.findChains(place, keys), []);
  await db.deleteLayer(layer(1));
  assert.equal((await db.findLayers(place, [digest(1)])).length, 1);
  await db.deleteManifest(manifest("app"));
  assert.equal(
    (await db.findManifests(place, digest(1), manifest("app").mediaType))
      .length,
    1,
  );
}

/** Opened to be read: nothing is made, and what is absent is empty. */
async function untouched(
  connect: (options: { readOnly: boolean }) => SqlConnection,
  layers: number,
): Promise<void> {
  const readOnly = { readOnly: true };
  await using db = new SqlDatabase(connect(readOnly), readOnly);
  const place = { host, repository: "app" };
  const { mediaType } = manifest("app");
  assert.deepEqual(await db.findChains(place, [key(1)]), []);
  const found = await db.findLayers(place, [1, 2, 3].map(digest));
  assert.equal(found.length, layers);
  assert.equal(await db.hasOtherLayer(layer(1, "new", 9)), layers > 0);
  const manifests = await db.findManifests(place, digest(1), mediaType);
  assert.equal(manifests.length > 0, layers > 0);
  const reason = /was opened to be read/;
  await assert.rejects(db.addChain(chain(1)), reason);
  await assert.rejects(db.deleteLayer(layer(1, "a")), reason);
}

/** Rows that no obd and no convertor writes. */
async function nonsense(
  connect: () => SqlConnection,
  looseTypes: boolean,
): Promise<void> {
  const place = { host, repository: "app" };
  await using db = new SqlDatabase(connect());
  await db.findChains(place, [key(1)]); // makes the tables
  await using raw = connect();
  const bad: [repository: string, digest: string, count: number | string][] = [
    ["../../etc", digest(1), 1],
    ["app?x=1", digest(1), 1],
    ["app@sha256:00", digest(1), 1],
    ["APP", digest(1), 1],
    ["app:v1", digest(1), 1],
    ["b", "sha256:12", 1],
    ["c", "md5:00", 1],
    ["d", digest(1), 0],
    ["e", digest(1), -1],
    ["f", digest(1), 2_000_000_000],
    ...(looseTypes
      ? [["g", digest(1), "many"], ["h", digest(1), 2 ** 62]] as const
      : []).map(([a, b, c]) => [a, b, c] as [string, string, number | string]),
  ];
  for (const [repository, found, count] of bad) {
    assert.ok(
      await raw.insert(
        "INSERT INTO obd_chains (host, repo, chain_key, manifest_digest, layer_count) VALUES (?, ?, ?, ?, ?)",
        [host, repository, key(1), found, count],
      ),
    );
    assert.ok(
      await raw.insert(
        "INSERT INTO overlaybd_layers (host, repo, chain_id, data_digest, data_size) VALUES (?, ?, ?, ?, ?)",
        [host, repository, digest(1), found, repository === "f" ? -1 : count],
      ),
    );
  }
  assert.deepEqual(await db.findChains(place, [key(1)]), []);
  assert.deepEqual(await db.findLayers(place, [digest(1)]), []);
}

Deno.test("SQLite keeps conversions in a file that is made with its directory", async () => {
  await withTempDir(async (dir) => {
    const path = `${dir}/some/where/c.db`;
    const connect = (options?: { readOnly: boolean }) =>
      new SqliteConnection(path, options);
    await untouched(connect, 0);
    assert.deepEqual([...Deno.readDirSync(dir)], []);
    await contract(connect);
    const before = await Deno.readFile(path);
    await untouched(connect, 3);
    assert.deepEqual(await Deno.readFile(path), before);
    await nonsense(() => new SqliteConnection(`${dir}/n.db`), true);
  });
});

Deno.test({
  name: "MariaDB keeps conversions in overlaybd's tables, of either version",
  ignore: !requires(...MARIADB_TOOLS),
  fn: async () => {
    await withTempDir(async (dir) => {
      await using server = await startMariaDb(dir);
      const connect = () => connection(server.url);
      await using raw = connect();
      await untouched(connect, 0);
      assert.equal((await raw.columns("obd_chains")).size, 0);
      await contract(connect);
      await untouched(connect, 3);
      // The tables that it made are those of overlaybd's definition.
      const columns = await raw.query(
        "SELECT table_name, column_name, column_type, column_key, is_nullable FROM information_schema.columns WHERE table_schema = 'conversions' AND table_name LIKE 'overlaybd%' ORDER BY table_name, ordinal_position",
        [],
      );
      assert.deepEqual(columns.map((c) => Object.values(c).join(" ")), [
        "overlaybd_layers host varchar(255) PRI NO",
        "overlaybd_layers repo varchar(255) PRI NO",
        "overlaybd_layers chain_id varchar(255) PRI NO",
        "overlaybd_layers data_digest varchar(255)  NO",
        "overlaybd_layers data_size bigint(20)  NO",
        "overlaybd_manifests host varchar(255) PRI NO",
        "overlaybd_manifests repo varchar(255) PRI NO",
        "overlaybd_manifests src_digest varchar(255) PRI NO",
        "overlaybd_manifests out_digest varchar(255)  NO",
        "overlaybd_manifests data_size bigint(20)  NO",
        "overlaybd_manifests mediatype varchar(255) PRI NO",
      ]);
      // A newer convertor's tables: its rows are told apart by their version.
      await server.sql(`
        DELETE FROM obd_chains; DELETE FROM overlaybd_layers; DELETE FROM overlaybd_manifests;
        ALTER TABLE overlaybd_layers ADD version varchar(6) NOT NULL;
        ALTER TABLE overlaybd_manifests ADD version varchar(6) NOT NULL;
      `);
      await contract(connect);
      const rows = await raw.query(
        "SELECT DISTINCT version FROM overlaybd_layers UNION ALL SELECT DISTINCT version FROM overlaybd_manifests",
        [],
      );
      assert.deepEqual(rows.map((row) => row.version).sort(), ["1", "1-v0"]);
      await server.sql("UPDATE overlaybd_layers SET version = '9-v9'");
      await using db = new SqlDatabase(connect());
      const place = { host, repository: "app" };
      assert.deepEqual(await db.findLayers(place, [1, 2, 3].map(digest)), []);
    });
  },
});

Deno.test({
  name:
    "MariaDB: hostile rows are left out; a password comes from a file, the environment, never from an argument",
  ignore: !requires(...MARIADB_TOOLS),
  fn: async () => {
    await withTempDir(async (dir) => {
      await using server = await startMariaDb(dir);
      await nonsense(() => connection(server.url), false);
      const file = `${dir}/password`;
      await Deno.writeTextFile(file, `${DB_PASSWORD}\n`);
      const ways = [
        connection(`${server.url}?password-file=${file}`, () => undefined),
        connection(
          `mariadb://conv@localhost/conversions?socket=${server.socket}`,
        ),
        connection(
          server.url.replace("@", `:${encodeURIComponent(DB_PASSWORD)}@`),
          () => undefined,
        ),
      ];
      for (const way of ways) {
        await using db = way;
        assert.ok((await db.columns("obd_chains")).size > 0);
        assert.ok(!db.name.includes("s3cr"), db.name);
      }
      await using wrong = connection(server.url, () => "wrong");
      await assert.rejects(
        wrong.columns("obd_chains"),
        (error: Error) =>
          /Access denied/.test(error.message) && !/wrong/.test(error.message),
      );
    });
  },
});

Deno.test({
  name: "MariaDB over TLS: only a server with a certificate of a known CA",
  ignore: !requires(...MARIADB_TOOLS, "openssl"),
  fn: async () => {
    await withTempDir(async (dir) => {
      for (const name of ["server", "other"]) {
        await sh([
          ...["openssl", "req", "-x509", "-newkey", "ec", "-nodes"],
          ...["-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"],
          ...["-subj", "/CN=db", "-addext", "subjectAltName=DNS:localhost"],
          ...["-keyout", `${dir}/${name}.key`, "-out", `${dir}/${name}.pem`],
        ]);
      }
      await using server = await startMariaDb(dir, [
        `--ssl-cert=${dir}/server.pem`,
        `--ssl-key=${dir}/server.key`,
        "--require-secure-transport",
      ]);
      const url = server.url.replace("127.0.0.1", "localhost");
      await using right = connection(`${url}?tls-ca=${dir}/server.pem`);
      const [row] = await right.query("SHOW STATUS LIKE 'Ssl_version'", []);
      assert.match(String(row!.Value), /^TLSv1\.[23]$/);
      await using plain = connection(server.url);
      await assert.rejects(
        plain.columns("x"),
        /Access denied|secure.transport/,
      );
      for (const query of [`tls-ca=${dir}/other.pem`, "tls=true"]) {
        await using wrong = connection(`${url}?${query}`);
        await assert.rejects(wrong.columns("x"), /certificate|issuer/i, query);
      }
    });
  },
});

Deno.test({
  name:
    "MariaDB: a server that hangs costs one deadline and one warning, then it is not asked again",
  ignore: !requires(...MARIADB_TOOLS),
  fn: async () => {
    await withTempDir(async (dir) => {
      await using server = await startMariaDb(dir);
      const log = new KeepingLogger();
      const place = { host, repository: "app" };
      {
        await using maker = new SqlDatabase(connection(server.url));
        await maker.findChains(place, [key(1)]); // makes the tables
      }
      const { mysql } = settings(server.url);
      await using db = new SqlDatabase(
        new MySqlConnection({ ...mysql, deadlineMs: 1500 }),
      );
      const guard = new GuardedDatabase(db, { log });
      const find = () =>
        guard.ask<unknown>(
          "fallback",
          async (d) => (await d.findChains(place, [key(1)])).length,
        );
      assert.equal(await find(), 0);
      Deno.kill(server.pid, "SIGSTOP");
      await untilStopped(server.pid);
      assert.equal(await find(), "fallback");
      Deno.kill(server.pid, "SIGCONT");
      assert.equal(await find(), "fallback");
      assert.equal(log.warnings.length, 1);
      assert.match(log.warnings[0]!, /did not finish in 1500 ms/);
    });
  },
});

Deno.test("a database that is not there, no database, or another's: one line, then nothing", async () => {
  await withTempDir(async (dir) => {
    await Deno.writeTextFile(`${dir}/text`, "this is no database at all\n");
    await Deno.writeTextFile(`${dir}/dir`, "");
    await using other = new SqliteConnection(`${dir}/other.db`);
    await other.run("CREATE TABLE obd_chains (host text)");
    // Accepts and says nothing.
    using silent = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const silentUrl = `mysql://u@127.0.0.1:${silent.addr.port}/d`;
    const cases: [SqlConnection, RegExp][] = [
      [new SqliteConnection(`${dir}/text`), /not a database/],
      [new SqliteConnection(`${dir}/dir/x.db`), /EEXIST/],
      [new SqliteConnection(`${dir}/other.db`), /has no column .*repo/],
      [
        new MySqlConnection(settings("mysql://u@127.0.0.1:1/d").mysql),
        /ECONNREFUSED|refused/,
      ],
      [
        new MySqlConnection({ ...settings(silentUrl).mysql, deadlineMs: 200 }),
        /did not finish|ETIMEDOUT/,
      ],
    ];
    for (const [connection, reason] of cases) {
      const log = new KeepingLogger();
      await using db = new SqlDatabase(connection);
      const guard = new GuardedDatabase(db, { log });
      for (let i = 0; i < 3; i++) {
        const rows = await guard.ask(
          [],
          (d) => d.findChains({ host, repository: "app" }, [key(1)]),
        );
        assert.deepEqual(rows, []);
      }
      assert.equal(log.warnings.length, 1, String(reason));
      assert.match(log.warnings[0]!, reason);
    }
  });
});

/** Each of its threads stops for itself. */
async function untilStopped(pid: number): Promise<void> {
  const states = async () => {
    const found: string[] = [];
    for await (const { name } of Deno.readDir(`/proc/${pid}/task`)) {
      const stat = await Deno.readTextFile(`/proc/${pid}/task/${name}/stat`)
        .catch(() => ""); // A thread that has just ended.
      if (stat !== "") found.push(stat.slice(stat.lastIndexOf(")") + 2)[0]!);
    }
    return found;
  };
  for (let i = 0; i < 500; i++) {
    if ((await states()).every((state) => state === "T")) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error("the server did not stop");
}

function settings(
  url: string,
  env = (_: string) => DB_PASSWORD as string | undefined,
) {
  const parsed = parseDatabase(url, { env, uid: 0, mayHavePassword: true });
  assert.ok(parsed.kind === "mysql");
  return parsed;
}

function connection(
  url: string,
  env?: (name: string) => string | undefined,
): MySqlConnection {
  return new MySqlConnection(settings(url, env).mysql);
}
