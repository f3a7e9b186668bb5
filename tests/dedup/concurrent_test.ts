/** Two converters at once on one image and one target: both succeed, with the same result, and nothing is corrupt. */

import assert from "node:assert/strict";
import { imageTree, withTempDir } from "../image/helpers.ts";
import { endOf, obd, startObd } from "../cmd/run_obd.ts";
import { sameTree } from "../testutil/device_tree.ts";
import { startDockerRegistry } from "../testutil/docker_registry.ts";
import { makeImage, makeLayer, writeLayout } from "../testutil/oci_image.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import { requires } from "../testutil/requires.ts";
import { ENGINES, pushImage, readManifest } from "./harness.ts";

const image = makeImage({
  layers: randomLayers(4242, 3).map((entries) => makeLayer({ entries })),
});
const FLAGS = ["--format", "turbo,overlaybd", "--vsize", "1", "--json"];

interface Report {
  platforms: {
    meta: { reference: string; digest: string };
    layers: {
      reused: boolean;
      reusedFrom?: { repository: string; by: string };
    }[];
  }[];
}

/** Runs the same build so often at once. */
async function race(
  count: number,
  args: string[],
  env: Record<string, string>,
): Promise<Report[]> {
  const children = Array.from(
    { length: count },
    () => startObd(["build", ...args, ...FLAGS], { env }),
  );
  const ended = await Promise.all(children.map(endOf));
  return ended.map(({ code, stdout, stderr }) => {
    assert.equal(code, 0, stderr);
    assert.equal(stderr, "");
    return JSON.parse(stdout);
  });
}

function sameDigests(reports: Report[]): string[] {
  const [first, ...others] = reports.map(({ platforms }) =>
    platforms.map(({ meta }) => meta.digest)
  );
  for (const other of others) assert.deepEqual(other, first);
  return first!;
}

Deno.test({
  name: "two converters at once in a registry, with no database",
  ignore: !requires("docker-registry"),
  fn: () =>
    withTempDir(async (dir) => {
      await using registry = await startDockerRegistry(dir);
      const { host } = registry;
      await pushImage(host, "app", "v1", image);
      const digests = sameDigests(
        await race(2, [`${host}/app:v1`, "--dedup-db", "none"], {}),
      );
      await check(host, "app", digests);
    }),
});

Deno.test("two converters at once in a layout", () =>
  withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    await writeLayout(layout, [{ tag: "v1", image }]);
    sameDigests(await race(2, [`oci:${layout}:v1`], {}));
    sameTree(
      await imageTree(`oci:${layout}:v1-overlaybd`),
      await imageTree(`oci:${layout}:v1-obd`),
    );
  }));

for (const engine of ENGINES) {
  Deno.test({
    name:
      `two converters at once, with ${engine.name}; then another repository finds all`,
    ignore: !requires("docker-registry") || !engine.isHere,
    fn: () =>
      withTempDir(async (dir) => {
        await using registry = await startDockerRegistry(dir);
        await using engineOf = await engine.start(dir);
        const { host } = registry;
        const { env, argument } = engineOf;
        const db = ["--dedup-db", argument];
        await pushImage(host, "app", "v1", image);
        const digests = sameDigests(
          await race(2, [`${host}/app:v1`, ...db], env),
        );
        await check(host, "app", digests);
        // Two at once from the database, into one repository.
        await pushImage(host, "late", "v1", image);
        const late = await race(2, [`${host}/late:v1`, ...db], env);
        assert.deepEqual(sameDigests(late), digests);
        const layers = late[0]!.platforms.flatMap((p) => p.layers);
        assert.equal(layers.length, 6);
        for (const { reused, reusedFrom } of layers) {
          assert.ok(reused);
          assert.match(
            `${reusedFrom!.repository} ${reusedFrom!.by}`,
            /\/app obd_chains$|\/late (tag|obd_chains)$/,
          );
        }
        await check(host, "late", digests);
        // For people.
        await pushImage(host, "text", "v1", image);
        const { code, stdout } = await obd(
          ["build", `${host}/text:v1`, ...db, ...FLAGS.slice(0, 4)],
          { env },
        );
        assert.equal(code, 0);
        assert.match(
          stdout,
          new RegExp(`, reused from ${host}/(app|late) \\(obd_chains\\)\n`),
        );
        await using connection = engineOf.connect();
        for (
          const [table, rows] of Object.entries({
            obd_chains: 3 * 2 * 3,
            overlaybd_layers: 3 * 3,
            overlaybd_manifests: 3,
          })
        ) {
          const [found] = await connection.query(
            `SELECT COUNT(*) AS n FROM ${table}`,
            [],
          );
          assert.equal(Number(found!.n), rows, table);
        }
      }),
  });
}

async function check(
  host: string,
  repository: string,
  digests: string[],
): Promise<void> {
  for (const [i, ending] of ["obd", "overlaybd"].entries()) {
    const { digest } = await readManifest(host, repository, `v1-${ending}`);
    assert.equal(digest, digests[i]);
  }
  sameTree(
    await imageTree(`${host}/${repository}:v1-overlaybd`),
    await imageTree(`${host}/${repository}:v1-obd`),
  );
}
