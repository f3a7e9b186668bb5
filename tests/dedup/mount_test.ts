/** When blobs of another repository cannot be mounted, or go while a build is under way; when a tag names layers of another kind. */

import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { concatBytes } from "../../lib/io/mod.ts";
import { build, withTempDir } from "../image/helpers.ts";
import {
  file,
  layerTar,
  makeImage,
  makeLayer,
  putImage,
} from "../testutil/oci_image.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { ENGINES } from "./harness.ts";

const VSIZE = 2 ** 30;
const layers = randomLayers(808, 2).map((entries) => makeLayer({ entries }));
const image = makeImage({ layers });

Deno.test("a mount that is refused is a copy; a layer that goes in between is built", async () => {
  await withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    await using engine = await ENGINES[0]!.start(dir);
    await using database = engine.open();
    const convert = (repository: string) =>
      build({
        source: `${server.host}/${repository}:v1`,
        virtualSize: VSIZE,
        database,
      });
    await putImage(server, "base", "v1", image);
    const made = await convert("base");
    const { digest } = made.report.platforms[0]!.meta;

    server.faults.add({
      method: "POST",
      path: /mount=/,
      fault: { kind: "status", status: 405 },
      times: 1000,
    });
    await putImage(server, "copied", "v1", image);
    const copied = await convert("copied");
    assert.equal(copied.report.platforms[0]!.meta.digest, digest);
    assert.ok(copied.report.platforms[0]!.layers.every((l) => l.reused));
    assert.deepEqual(copied.warnings, []);

    // A repository that may not be read, and sorts first.
    await using rows = engine.connect();
    await rows.run(
      "INSERT INTO obd_chains SELECT host, 'a/secret', chain_key, manifest_digest, layer_count FROM obd_chains WHERE repo = 'base'",
    );
    server.faults.add({
      path: /\/v2\/a\/secret\//,
      fault: { kind: "status", status: 403 },
      times: 1000,
    });
    await putImage(server, "allowed", "v1", image);
    const allowed = await convert("allowed");
    assert.ok(
      allowed.report.platforms[0]!.layers.every((l) =>
        l.reusedFrom?.repository === `${server.host}/base`
      ),
    );
    assert.equal(allowed.warnings.length, 1);
    assert.match(allowed.warnings[0]!, /a\/secret.*403/);

    await rows.run("DELETE FROM obd_chains WHERE repo <> 'base'");
    // There when it is looked at, gone when it is wanted.
    const path = /\/v2\/base\/blobs\//;
    server.faults.add({
      method: "GET",
      path,
      fault: { kind: "delay", milliseconds: 0 },
      times: layers.length,
    });
    server.faults.add({
      method: "GET",
      path,
      fault: { kind: "status", status: 404 },
      times: 1000,
    });
    await putImage(server, "late", "v1", image);
    const late = await convert("late");
    assert.equal(late.report.platforms[0]!.meta.digest, digest);
    assert.ok(late.report.platforms[0]!.layers.every((l) => !l.reused));
    assert.equal(late.warnings.length, 1);
    assert.match(late.warnings[0]!, /without layers of other repositories/);
  });
});

Deno.test("--compat: a tag that leads to meta layers which overlaybd cannot read is not followed", async () => {
  const tar = layerTar([file("two", "members")]);
  const blob = concatBytes([
    new Uint8Array(gzipSync(tar.subarray(0, 600))),
    new Uint8Array(gzipSync(tar.subarray(600))),
  ]);
  const mixed = makeImage({
    layers: [layers[0]!, makeLayer({ entries: tar, blob })],
  });
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", mixed);
  const common = { source: `${server.host}/app:v1`, virtualSize: VSIZE };
  await build({ ...common, tag: "plain" });
  const tags = server.tags("app");
  const before = new Set(tags.keys());
  const honest = await build({ ...common, compat: true, tag: "compat" });
  for (const tag of [...tags.keys()]) {
    if (tag.startsWith("obd-") && !before.has(tag)) {
      tags.set(tag, tags.get("plain")!);
    }
  }
  const again = await build({ ...common, compat: true, tag: "again" });
  assert.equal(
    again.report.platforms[0]!.meta.digest,
    honest.report.platforms[0]!.meta.digest,
  );
  assert.deepEqual(
    again.report.platforms[0]!.layers.map((l) => l.reused),
    [true, false],
  );
  assert.match(again.warnings.join("\n"), /cannot be read by overlaybd/);
});
