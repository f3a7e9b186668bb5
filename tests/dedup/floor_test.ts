/** Layers of a convertor that put an empty file system below all of them (`--mkfs=false`): its rows do not say so. */

import assert from "node:assert/strict";
import { build, withTempDir } from "../image/helpers.ts";
import {
  file,
  makeBlob,
  makeImage,
  makeLayer,
  nameOf,
  putImage,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { golden } from "../testutil/requires.ts";
import { ENGINES } from "./harness.ts";

const OCI = "application/vnd.oci.image";

Deno.test({
  name: "a layer that lies on a file system which no row names is not taken",
  ignore: golden("unit/ext4_64") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      await using server = await RegistryServer.start();
      await using engine = await ENGINES[0]!.start(dir);
      await using database = engine.open();
      const layer = makeLayer({ entries: [file("a", "one")] });
      const image = makeImage({ layers: [layer] });
      await putImage(server, "conv", "v1", image);
      await putImage(server, "app", "v1", image);
      const floor = makeBlob(
        `${OCI}.layer.v1.tar`,
        await Deno.readFile(golden("unit/ext4_64")!),
      );
      const config = makeBlob(`${OCI}.config.v1+json`, {
        architecture: "amd64",
        os: "linux",
        rootfs: { type: "layers", diff_ids: [floor.digest] },
      });
      await server.putBlob("conv", floor.bytes);
      await server.putBlob("conv", config.bytes);
      server.putManifest("conv", "floor", {
        schemaVersion: 2,
        mediaType: `${OCI}.manifest.v1+json`,
        config: nameOf(config),
        layers: [{
          ...nameOf(floor),
          annotations: {
            "containerd.io/snapshot/overlaybd/version": "0.1.0",
            "containerd.io/snapshot/overlaybd/blob-digest": floor.digest,
            "containerd.io/snapshot/overlaybd/blob-size": String(floor.size),
          },
        }],
      }, `${OCI}.manifest.v1+json`);
      const formats = ["overlaybd"] as const;
      await build({
        source: `${server.host}/conv:v1`,
        base: `${server.host}/conv:floor`,
        tag: "made",
        formats,
      });
      const answer = await fetch(
        `http://${server.host}/v2/conv/manifests/made`,
      );
      const { layers } = await answer.json();
      assert.equal(layers.length, 2);
      await database.addLayer({
        host: server.host,
        repository: "conv",
        chainId: layer.diffId,
        digest: layers[1].digest,
        size: layers[1].size,
      });
      const { report, warnings } = await build({
        source: `${server.host}/app:v1`,
        formats,
        database,
      });
      assert.equal(report.platforms[0]!.layers[0]!.reused, false);
      assert.equal(warnings.length, 1);
      // Its own part of the descriptors is all that the layer has.
      assert.match(warnings[0]!, /group descriptor|journal/);
    }),
});
