/** `config.v1.json` by overlaybd's rules: where layers are looked for, what is told to whom. */

import assert from "node:assert/strict";
import { openImage, verifyImage } from "../../lib/image/mod.ts";
import { ObdError } from "../../lib/io/mod.ts";
import { Transport } from "../../lib/registry/transport.ts";
import { digestOf } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { lsmtImage } from "../testutil/lsmt_image.ts";
import { testEnvironment, withTempDir } from "../image/helpers.ts";

const VSIZE = 1 << 20;

/** A layer that is one letter all over its first sector. */
function layer(letter: string): Uint8Array<ArrayBuffer> {
  return lsmtImage({
    virtualSize: VSIZE,
    data: new Uint8Array(512).fill(letter.charCodeAt(0)),
    entries: [{ offset: 0, length: 1, moffset: 8 }],
  }) as Uint8Array<ArrayBuffer>;
}

interface Made {
  config: string;
  result: string;
}

async function make(
  dir: string,
  config: Record<string, unknown>,
): Promise<Made> {
  const made = { config: `${dir}/config.v1.json`, result: `${dir}/result` };
  await Deno.writeTextFile(
    made.config,
    JSON.stringify({ resultFile: made.result, ...config }),
  );
  return made;
}

/** The letter that an image shows. */
async function letter(config: string): Promise<string> {
  await using environment = await testEnvironment();
  await using image = await openImage(environment, config);
  const byte = new Uint8Array(1);
  await image.source.pread(byte, 100);
  return String.fromCharCode(byte[0]!);
}

Deno.test("a layer is looked for as file, then in dir, then in the registry", async () => {
  await withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const blob = await server.putBlob("team/app", layer("r"));
    const repoBlobUrl = `http://${server.host}/v2/team/app/blobs`;
    const { digest, size } = blob;
    const lower = { file: `${dir}/own`, dir: `${dir}/layer`, digest, size };
    await Deno.mkdir(lower.dir);
    const { config } = await make(dir, { repoBlobUrl, lowers: [lower] });
    assert.equal(await letter(config), "r");
    // From the last place to the first one.
    for (
      const [path, text] of [
        [`${lower.dir}/overlaybd.sealed`, "s"],
        [`${lower.dir}/.commit`, "l"],
        [`${lower.dir}/overlaybd.commit`, "c"],
        [lower.file, "f"],
      ] as const
    ) {
      await Deno.writeFile(path, layer(text));
      assert.equal(await letter(config), text);
    }
    // A trailing slash, and nothing that is not there.
    const slash = await make(dir, {
      repoBlobUrl: `${repoBlobUrl}/`,
      lowers: [{ dir: `${dir}/none`, digest }],
    });
    assert.equal(await letter(slash.config), "r");
  });
});

Deno.test("a configuration may have any name, for verify too", async () => {
  await withTempDir(async (dir) => {
    await Deno.writeFile(`${dir}/layer`, layer("n"));
    const config = `${dir}/config`;
    const lowers = [{ file: `${dir}/layer` }];
    await Deno.writeTextFile(config, JSON.stringify({ lowers }));
    assert.equal(await letter(config), "n");
    await using environment = await testEnvironment();
    const { layers } = await verifyImage(environment, config);
    assert.deepEqual(layers.map(({ kind, ok }) => ({ kind, ok })), [
      { kind: "native", ok: true },
    ]);
  });
});

Deno.test("an http URL means plain HTTP, whatever the host", async () => {
  const transport = (registry: string, plain: boolean) => {
    const made = new Transport({ certsDirectories: [] });
    if (plain) made.usePlainHttp(registry);
    return made;
  };
  for (
    const [registry, plain, want] of [
      ["r.example:5000", true, "http://r.example:5000/"],
      ["r.example:5000", false, "https://r.example:5000/"],
      ["127.0.0.1:5000", false, "http://127.0.0.1:5000/"],
    ] as const
  ) {
    await using made = transport(registry, plain);
    assert.equal((await made.baseUrl(registry)).href, want);
  }
});

Deno.test("the result file says what overlaybd's service would say", async () => {
  await withTempDir(async (dir) => {
    await Deno.writeFile(`${dir}/good`, layer("g"));
    const good = { lowers: [{ file: `${dir}/good` }] };
    const bad = { lowers: [{ file: `${dir}/bad` }] };
    await using environment = await testEnvironment();
    const open = async (config: string, writesResult: boolean) => {
      await using image = await openImage(environment, config, {
        writesResult,
      });
      return image.source.size;
    };
    const one = await make(dir, good);
    // Looking at an image is no device.
    await open(one.config, false);
    await assert.rejects(Deno.stat(one.result), Deno.errors.NotFound);
    await Deno.writeTextFile(one.result, "failed:long ago, and at length");
    await open(one.config, true);
    assert.equal(await Deno.readTextFile(one.result), "success");
    const two = await make(dir, bad);
    await assert.rejects(open(two.config, true), ObdError);
    assert.match(
      await Deno.readTextFile(two.result),
      /^failed:.*lowers\.0: The layer is not there \([^\n]*bad\)[^\n]*$/,
    );
    // A place that cannot be written to is no reason to fail.
    const three = await make(dir, { ...good, resultFile: `${dir}/no/where` });
    assert.equal(await open(three.config, true), VSIZE);
    assert.match(environment.log.warnings.join(), /cannot write the result/);
  });
});

Deno.test("keys that contradict each other, or are of another type, are named", async () => {
  await withTempDir(async (dir) => {
    await Deno.writeFile(`${dir}/good`, layer("g"));
    const lowers = [{ file: `${dir}/good` }];
    const cases: [RegExp, Record<string, unknown>][] = [
      [
        /"accelerationLayer" and "recordTracePath"/,
        {
          lowers: [...lowers, { dir }],
          accelerationLayer: true,
          recordTracePath: "/t",
        },
      ],
      [/key "lowers.0.file"/, { lowers: [{ file: 7 }] }],
      [/key "lowers.0.digest"/, { lowers: [{ digest: "md5:1" }] }],
      [/key "accelerationLayer"/, { lowers, accelerationLayer: "yes" }],
      [/key "upper"/, { lowers, upper: 3 }],
      [/key "resultFile"/, { lowers, resultFile: {} }],
      [/lowers are none/, { lowers: [] }],
      [/lowers are none/, { lowers: [{ dir }], accelerationLayer: true }],
      [/key "repoBlobUrl"/, { lowers, repoBlobUrl: "ftp://x" }],
    ];
    for (const [want, config] of cases) {
      const made = await make(dir, config);
      await assert.rejects(letter(made.config), want);
    }
    // Keys of other versions, and of overlaybd's service, are of no matter here.
    const made = await make(dir, {
      lowers: [{ ...lowers[0], size: 1, digest: digestOf(layer("g")) }],
      upper: {},
      download: { enable: true, delay: 3 },
      hugepages: true,
      upperXattr: 1,
    });
    assert.equal(await letter(made.config), "g");
  });
});
