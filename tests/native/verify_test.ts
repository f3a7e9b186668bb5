/** `obd verify` finds each of a list of planted faults, and nothing in what is right. */

import assert from "node:assert/strict";
import { gunzipSync, gzipSync } from "node:zlib";
import { pushAcceleration, verifyImage } from "../../lib/image/mod.ts";
import {
  blobPath,
  digestOf,
  file,
  makeImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { lsmtImage } from "../testutil/lsmt_image.ts";
import { requires } from "../testutil/requires.ts";
import { debugfsWrite, run as tool } from "../ext4/reader_images.ts";
import { Random, randomLayers } from "../testutil/random_layers.ts";
import {
  build,
  layoutTags,
  OBD,
  run,
  testEnvironment,
  withTempDir,
} from "../image/helpers.ts";

const PREFIX = "containerd.io/snapshot/overlaybd";

/** A layout with a plain, a TurboOCI and a native image. */
async function makeImages(layout: string): Promise<void> {
  const random = new Random(9);
  const [a, b] = randomLayers(31, 2);
  const image = makeImage({
    layers: [
      { entries: [...a!, file("random", random.bytes(300_000))] },
      { entries: b!, compression: "none" },
    ],
  });
  await writeLayout(layout, [{ tag: "v1", image }]);
  await build({
    source: `oci:${layout}:v1`,
    virtualSize: 2 ** 30,
    formats: ["turbo", "overlaybd"],
  });
}

async function findings(image: string): Promise<string[]> {
  await using environment = await testEnvironment();
  const { findings } = await verifyImage(environment, image);
  return findings.map(({ layer, check, problem }) =>
    `${layer ?? "image"} ${check}: ${problem}`
  );
}

// deno-lint-ignore no-explicit-any -- JSON to be damaged
type Json = any;

/** A `config.v1.json` of one layer, which holds a file system image as it is. */
async function rawConfig(dir: string, image: string): Promise<string> {
  const data = await Deno.readFile(image);
  const layer = `${dir}/layer`;
  const sectors = data.length / 512;
  const entries = [{ offset: 0, length: sectors, moffset: 8 }];
  await Deno.writeFile(
    layer,
    lsmtImage({ virtualSize: data.length, data, entries }),
  );
  const config = `${dir}/config.v1.json`;
  await Deno.writeTextFile(
    config,
    JSON.stringify({ lowers: [{ file: layer }] }),
  );
  return config;
}

/** One layout, damaged in one way after the other, restored in between. */
class Patient {
  readonly layout: string;

  constructor(layout: string) {
    this.layout = layout;
  }

  async manifest(tag: string): Promise<Json> {
    const digest = (await layoutTags(this.layout)).get(tag)!;
    return JSON.parse(
      await Deno.readTextFile(blobPath(this.layout, digest)),
    );
  }

  /** Changes stored bytes behind their digest. */
  async rot(digest: string, change: (bytes: Uint8Array) => Uint8Array) {
    const path = blobPath(this.layout, digest);
    const bytes = await Deno.readFile(path);
    await Deno.writeFile(path, change(bytes.slice()));
    return () => Deno.writeFile(path, bytes);
  }

  /** Stores a blob and returns its name. */
  async put(bytes: Uint8Array): Promise<{ digest: string; size: number }> {
    const digest = digestOf(bytes);
    await Deno.writeFile(blobPath(this.layout, digest), bytes);
    return { digest, size: bytes.length };
  }

  /** A new tag with a manifest that was changed, and valid digests all over. */
  async retag(
    tag: string,
    change: (manifest: Json, config: Json) => void | Promise<void>,
  ): Promise<string> {
    const manifest = await this.manifest(tag);
    const config = JSON.parse(
      await Deno.readTextFile(blobPath(this.layout, manifest.config.digest)),
    );
    await change(manifest, config);
    const encode = (value: Json) =>
      new TextEncoder().encode(JSON.stringify(value));
    Object.assign(manifest.config, await this.put(encode(config)));
    const named = await this.put(encode(manifest));
    const path = `${this.layout}/index.json`;
    const index = JSON.parse(await Deno.readTextFile(path));
    index.manifests = index.manifests.filter((m: Json) =>
      m.annotations?.["org.opencontainers.image.ref.name"] !== "bad"
    );
    index.manifests.push({
      mediaType: manifest.mediaType,
      ...named,
      annotations: { "org.opencontainers.image.ref.name": "bad" },
    });
    await Deno.writeTextFile(path, JSON.stringify(index));
    return `oci:${this.layout}:bad`;
  }

  /** Puts another blob in a layer's place, as a tool with a defect would. */
  async replace(
    tag: string,
    position: number,
    change: (bytes: Uint8Array) => Uint8Array,
    diffId: (bytes: Uint8Array) => string = digestOf,
  ): Promise<string> {
    return await this.retag(tag, async (manifest, config) => {
      const layer = manifest.layers[position];
      const bytes = change(
        (await Deno.readFile(blobPath(this.layout, layer.digest))).slice(),
      );
      Object.assign(layer, await this.put(bytes));
      layer.annotations[`${PREFIX}/blob-digest`] = layer.digest;
      layer.annotations[`${PREFIX}/blob-size`] = String(layer.size);
      config.rootfs.diff_ids[position] = diffId(bytes);
    });
  }
}

const flip = (at: (length: number) => number) => (bytes: Uint8Array) => {
  bytes[at(bytes.length)]! ^= 1;
  return bytes;
};
const middle = flip((length) => length >> 1);

Deno.test("verify says nothing about images that are right", async () => {
  await withTempDir(async (layout) => {
    await makeImages(layout);
    for (const tag of ["v1", "v1-obd", "v1-overlaybd"]) {
      assert.deepEqual(await findings(`oci:${layout}:${tag}`), [], tag);
    }
  });
});

Deno.test("verify finds bits that rotted in any blob", async () => {
  await withTempDir(async (layout) => {
    await makeImages(layout);
    const patient = new Patient(layout);
    for (
      const [tag, position, check] of [
        ["v1", 0, /^1 blob: /],
        ["v1", 1, /^2 blob: /],
        ["v1-obd", 0, /^1 meta blob: /],
        ["v1-overlaybd", 0, /^1 blob digest: /],
        ["v1-overlaybd", 1, /^2 blob digest: /],
      ] as const
    ) {
      const { digest } = (await patient.manifest(tag)).layers[position];
      const restore = await patient.rot(digest, middle);
      const [found] = await findings(`oci:${layout}:${tag}`);
      assert.match(found ?? "", check, `${tag} ${position}`);
      await restore();
    }
    // The target of a meta layer.
    const { layers } = await patient.manifest("v1");
    for (const i of [0, 1]) {
      const restore = await patient.rot(layers[i].digest, middle);
      const found = await findings(`oci:${layout}:v1-obd`);
      assert.ok(
        found.some((f) => f.startsWith(`${i + 1} target: `)),
        found.join("\n"),
      );
      await restore();
    }
    const gone = blobPath(layout, layers[1].digest);
    await Deno.rename(gone, `${gone}.away`);
    assert.match((await findings(`oci:${layout}:v1-obd`))[0]!, /^2 target: /);
    await Deno.rename(`${gone}.away`, gone);
    assert.deepEqual(await findings(`oci:${layout}:v1-obd`), []);
  });
});

Deno.test("verify finds what is wrong behind right digests", async () => {
  await withTempDir(async (layout) => {
    await makeImages(layout);
    const patient = new Patient(layout);
    const native = "v1-overlaybd";
    const turbo = "v1-obd";
    const cases: [name: string, image: () => Promise<string>, want: RegExp][] =
      [
        [
          "a ZFile block's checksum",
          () => patient.replace(native, 0, middle),
          /^1 layer: /,
        ],
        [
          "an LSMT trailer that is cut off",
          () => patient.replace(native, 1, (b) => b.slice(0, -4096)),
          /^2 layer: /,
        ],
        [
          "a byte of the meta blob's content",
          () =>
            patient.replace(turbo, 0, (blob) => {
              const tar = new Uint8Array(gunzipSync(blob));
              tar[700]! ^= 1;
              return new Uint8Array(gzipSync(tar));
            }, (blob) => digestOf(new Uint8Array(gunzipSync(blob)))),
          /^1 map: /,
        ],
        [
          "a span's digest",
          () =>
            patient.replace(turbo, 1, (blob) => {
              const tar = new Uint8Array(gunzipSync(blob));
              // The last member is obd.spans; its end holds digests.
              let end = tar.length - 1;
              while (tar[end] === 0) end--;
              tar[end - 8]! ^= 1;
              return new Uint8Array(gzipSync(tar));
            }, (blob) => digestOf(new Uint8Array(gunzipSync(blob)))),
          /^2 index: /,
        ],
        [
          "layers in the wrong order",
          () =>
            patient.retag(native, (manifest, config) => {
              manifest.layers.reverse();
              config.rootfs.diff_ids.reverse();
            }),
          /^image stack: .*parent UUID/,
        ],
        [
          "an annotated digest",
          () =>
            patient.retag(native, (manifest) => {
              manifest.layers[0].annotations[`${PREFIX}/blob-digest`] =
                `sha256:${"0".repeat(64)}`;
            }),
          /^1 annotations: /,
        ],
        [
          "an annotated size",
          () =>
            patient.retag(turbo, (manifest) => {
              manifest.layers[1].annotations[`${PREFIX}/blob-size`] = "1";
            }),
          /^2 annotations: /,
        ],
        [
          "a diffID",
          () =>
            patient.retag(native, (_, config) => {
              config.rootfs.diff_ids[0] = `sha256:${"1".repeat(64)}`;
            }),
          /^1 diffID: /,
        ],
        [
          "a meta layer's diffID",
          () =>
            patient.retag(turbo, (_, config) => {
              config.rootfs.diff_ids[1] = `sha256:${"1".repeat(64)}`;
            }),
          /^2 meta blob: /,
        ],
        [
          "targets that are exchanged",
          () =>
            patient.retag(turbo, (manifest) => {
              const key = `${PREFIX}/turbo-oci/target-digest`;
              const [a, b] = manifest.layers;
              [a.annotations[key], b.annotations[key]] = [
                b.annotations[key],
                a.annotations[key],
              ];
              delete a.annotations["io.obd.target-size"];
              delete b.annotations["io.obd.target-size"];
            }),
          /^1 (index|target|map): /,
        ],
        [
          "a subject that is gone",
          () =>
            patient.retag(turbo, (manifest) => {
              manifest.subject.digest = `sha256:${"2".repeat(64)}`;
            }),
          /^image subject: /,
        ],
        [
          "a plain layer's diffID",
          () =>
            patient.retag("v1", (_, config) => {
              config.rootfs.diff_ids[0] = `sha256:${"3".repeat(64)}`;
            }),
          /^1 blob: /,
        ],
        [
          "plain layers between overlaybd's",
          () =>
            patient.retag(native, (manifest) => {
              delete manifest.layers[1].annotations;
            }),
          /^image manifest: /,
        ],
      ];
    for (const [name, image, want] of cases) {
      const found = await findings(await image());
      assert.ok(
        found.some((f) => want.test(f)),
        `${name}: ${found.join("\n") || "nothing found"}`,
      );
    }
  });
});

Deno.test("obd verify: exit 0 and 1, a list, one JSON object", async () => {
  await withTempDir(async (layout) => {
    await makeImages(layout);
    const image = `oci:${layout}:v1-overlaybd`;
    const good = await run([...OBD, "verify", "--json", image]);
    assert.equal(good.code, 0, good.stderr);
    const report = JSON.parse(good.stdout);
    assert.equal(report.ok, true);
    assert.deepEqual(report.layers.map((l: Json) => l.kind), [
      "native",
      "native",
    ]);
    const patient = new Patient(layout);
    const { digest } = (await patient.manifest("v1-overlaybd")).layers[0];
    await patient.rot(digest, middle);
    const bad = await run([...OBD, "verify", image]);
    assert.equal(bad.code, 1);
    assert.match(bad.stdout, /layer 1 {2}BAD/);
    assert.match(bad.stdout, /layer 1: blob digest: /);
    assert.equal(bad.stderr.trim().split("\n").length, 1, bad.stderr);
  });
});

Deno.test("verify of a config.v1.json: a layer that is missing is all that is found", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    const layers = randomLayers(12, 3).map((entries) => ({ entries }));
    await writeLayout(layout, [{ tag: "v1", image: makeImage({ layers }) }]);
    await build({
      source: `oci:${layout}:v1`,
      virtualSize: 2 ** 30,
      formats: ["overlaybd"],
    });
    const manifest = await new Patient(layout).manifest("v1-overlaybd");
    const lowers = manifest.layers.map(({ digest }: Json) => ({
      file: blobPath(layout, digest),
    }));
    const config = `${dir}/config.v1.json`;
    await Deno.writeTextFile(config, JSON.stringify({ lowers }));
    assert.deepEqual(await findings(config), []);
    for (const [i, { file }] of lowers.entries()) {
      await Deno.rename(file, `${file}.away`);
      const found = await findings(config);
      assert.equal(found.length, 1, found.join("\n"));
      assert.match(found[0]!, new RegExp(`^${i + 1} blob: `));
      await Deno.rename(`${file}.away`, file);
    }
  });
});

Deno.test("verify reads acceleration layers", async () => {
  await withTempDir(async (layout) => {
    await makeImages(layout);
    const patient = new Patient(layout);
    const name = `oci:${layout}:v1-overlaybd`;
    {
      await using environment = await testEnvironment();
      await pushAcceleration(environment, {
        image: name,
        records: [{ layer: 0, offset: 0, length: 4096 }],
        tag: "fast",
      });
    }
    assert.deepEqual(await findings(`oci:${layout}:fast`), []);
    const { digest } = (await patient.manifest("fast")).layers[2];
    const restore = await patient.rot(digest, middle);
    assert.match(
      (await findings(`oci:${layout}:fast`)).join("\n"),
      /^3 blob: Digest of [^\n]*$/,
    );
    await restore();
    const bad = await patient.replace("fast", 2, (bytes) => {
      bytes[0]! ^= 1;
      return bytes;
    });
    assert.match((await findings(bad)).join("\n"), /^3 trace: [^\n]*$/);
  });
});

Deno.test({
  name: "verify looks at where files have their data, at links and attributes",
  ignore: !requires("mke2fs", "debugfs"),
  fn: () =>
    withTempDir(async (dir) => {
      await Deno.mkdir(`${dir}/tree`);
      await Deno.writeFile(`${dir}/tree/file`, new Uint8Array(9000).fill(7));
      await Deno.symlink("x".repeat(200), `${dir}/tree/link`);
      const image = `${dir}/image`;
      const make = async (commands: string[]) => {
        await Deno.remove(image).catch(() => {});
        const features = "^has_journal,^metadata_csum";
        await tool("mke2fs", [
          ...["-q", "-t", "ext4", "-b", "4096", "-O", features],
          ...["-d", `${dir}/tree`, image, "4M"],
        ]);
        if (commands.length > 0) await debugfsWrite(image, commands);
        return await findings(await rawConfig(dir, image));
      };
      assert.deepEqual(await make([]), []);
      for (
        const [command, problem] of [
          ["sif file block[1] 0x70004", /extent tree of inode/],
          ["sif link size 0x7fffffff", /symbolic link/],
          ["sif file file_acl 0x7fffffff", /xattr block/],
        ] as const
      ) {
        const found = (await make([command])).join("\n");
        assert.match(found, /^image file system: [^\n]*$/, command);
        assert.match(found, problem);
      }
    }),
});
