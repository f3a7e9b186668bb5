/** The embedded registry of the tests and the demo, judged by skopeo. */

import { deepEqual, equal, ok } from "node:assert/strict";
import { loadLibc } from "../../lib/io/mod.ts";
import {
  blobFromBytes,
  type ImageManifest,
  MediaType,
  openRepository,
  parseManifest,
  sha256Digest,
} from "../../lib/registry/mod.ts";
import type { RegistryServerOptions } from "../testutil/registry_server.ts";
import { requires } from "../testutil/requires.ts";
import {
  collect,
  manifestOf,
  patternBytes,
  run,
  setup,
  withTempDir,
} from "./helpers.ts";

loadLibc(); // not a leak of the first test

const MODES: [name: string, options: RegistryServerOptions, flags: string[]][] =
  [
    ["in memory", {}, []],
    ["in a directory, with redirects", { redirect: true }, []],
    [
      "with Basic",
      { auth: { kind: "basic", users: { joe: "x" } } },
      ["creds=joe:x"],
    ],
    [
      "with tokens",
      { auth: { kind: "token", users: { joe: "x" } } },
      ["creds=joe:x"],
    ],
  ];

for (const [name, options, flags] of MODES) {
  Deno.test({
    name: `embedded registry: skopeo copies in and out ${name}`,
    ignore: !requires("skopeo"),
    fn: () =>
      withTempDir(async (dir) => {
        const layout = await openRepository(`oci:${dir}/in`, { create: true });
        const push = async (bytes: Uint8Array<ArrayBuffer>) => {
          const digest = sha256Digest(bytes);
          const blob = { mediaType: "x", digest, size: bytes.length };
          await layout.pushBlob(blob, blobFromBytes(bytes));
          return blob;
        };
        const layer = await push(patternBytes(700_000));
        const config = await push(
          new TextEncoder().encode(JSON.stringify({
            os: "linux",
            architecture: "amd64",
            rootfs: { type: "layers", diff_ids: [layer.digest] },
          })),
        );
        const manifest = await layout.pushManifest(
          new TextEncoder().encode(
            JSON.stringify(manifestOf(config, [layer])),
          ),
          MediaType.ociManifest,
          "v1",
        );
        await using s = await setup({
          ...options,
          ...(options.redirect ? { directory: `${dir}/store` } : {}),
        });
        const image = `docker://${s.server.host}/team/app:v1`;
        const copy = (side: string, from: string, to: string) => {
          const own = ["tls-verify=false", ...flags]
            .map((flag) => `--${side}-${flag}`);
          return run(
            "skopeo",
            "copy",
            "-q",
            "--preserve-digests",
            ...own,
            from,
            to,
          );
        };
        await copy("dest", `oci:${dir}/in:v1`, image);
        equal(s.server.tags("team/app").get("v1"), manifest.digest);
        await copy("src", image, `oci:${dir}/out:v1`);
        const out = await openRepository(`oci:${dir}/out`);
        const { descriptor, bytes } = await out.resolve("v1");
        deepEqual(descriptor, manifest);
        const [copied] = (parseManifest(bytes) as ImageManifest).layers;
        ok((await collect(out.fetchBlob(copied!))).length === layer.size);
      }),
  });
}
