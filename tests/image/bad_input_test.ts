/** Whatever is wrong with the input: one clear line, exit 1, nothing pushed, nothing left behind. */

import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import { errorText, ObdError } from "../../lib/io/mod.ts";
import {
  blobPath,
  dir as directory,
  file,
  hardlink,
  type LayerDescription,
  layerTar,
  type MadeImage,
  makeBlob,
  makeImage,
  nameOf,
  putImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { requiresMount } from "../testutil/requires.ts";
import { unmount } from "../testutil/unmount.ts";
import {
  build,
  fingerprint,
  layoutTags,
  OBD,
  run,
  sh,
  withTempDir,
} from "./helpers.ts";

const GIB = 2 ** 30;
const good: LayerDescription = {
  entries: [directory("d"), file("d/f", new Uint8Array(5000).fill(65))],
};

interface BadCase {
  name: string;
  /** The image, and what is done to the layout that holds it. */
  image: () => MadeImage;
  spoil?: (layout: string, image: MadeImage) => Promise<void>;
  message: RegExp;
}

/** An image whose second layer is `layer`. */
function second(layer: LayerDescription): () => MadeImage {
  return () => makeImage({ layers: [good, layer] });
}

function withManifest(
  image: MadeImage,
  change: (document: Record<string, never>) => object,
): MadeImage {
  const document = JSON.parse(new TextDecoder().decode(image.manifest.bytes));
  const changed = { ...document, ...change(document) };
  return {
    ...image,
    manifest: makeBlob(changed.mediaType ?? image.manifest.mediaType, changed),
  };
}

const tar = layerTar([file("a", "content"), file("b", "more")]);
const LAYER = /^obd: Layer 2 of 2 \(sha256:[0-9a-f]{64}\): /;

const CASES: BadCase[] = [
  {
    name: "a truncated blob",
    image: second(good),
    spoil: async (layout, image) => {
      const path = blobPath(layout, image.layers[1]!.digest);
      await Deno.truncate(path, 100);
    },
    message: /is 100 bytes, expected [0-9]+/,
  },
  {
    name: "a blob with another digest",
    image: second({ ...good, compression: "none" }),
    spoil: async (layout, image) => {
      const path = blobPath(layout, image.layers[1]!.digest);
      const bytes = await Deno.readFile(path);
      bytes[1100]! ^= 1;
      await Deno.writeFile(path, bytes);
    },
    message: /sha256:[0-9a-f]{64}, expected sha256:[0-9a-f]{64}/,
  },
  {
    name: "a blob that is missing",
    image: second(good),
    spoil: (layout, image) =>
      Deno.remove(blobPath(layout, image.layers[1]!.digest)),
    message: /No blob "sha256:/,
  },
  {
    name: "a manifest with another size",
    image: () =>
      withManifest(second(good)(), (m) => ({
        layers: (m.layers as unknown as { size: number }[]).map((l, i) =>
          i === 1 ? { ...l, size: l.size + 1 } : l
        ),
      })),
    message: /bytes/,
  },
  {
    name: "another diffID",
    image: second({ ...good, diffId: `sha256:${"a".repeat(64)}` }),
    message: /diffID is sha256:[0-9a-f]{64}, expected sha256:a{64}/,
  },
  {
    name: "fewer diffIDs than layers",
    image: () => {
      const image = second(good)();
      const config = makeBlob(image.config.mediaType, {
        os: "linux",
        architecture: "amd64",
        rootfs: { type: "layers", diff_ids: [image.layers[0]!.diffId] },
      });
      return {
        ...withManifest(image, () => ({ config: nameOf(config) })),
        config,
      };
    },
    message: /^obd: .*diff_ids has 1 entries, the manifest has 2 layers/,
  },
  {
    name: "a tar with a bad checksum",
    image: second({
      entries: (() => {
        const bytes = tar.slice();
        bytes[1024 + 10]! ^= 1;
        return bytes;
      })(),
    }),
    message: /checksum/,
  },
  {
    name: "a tar that ends in a body",
    image: second({ entries: tar.slice(0, 1024 + 512 + 2) }),
    message: /end/,
  },
  {
    name: "a hard link that would leave the root",
    image: second({ entries: [hardlink("in", "../../etc/passwd")] }),
    message: /points to "..\/..\/etc\/passwd", which is not there/,
  },
  {
    name: "a hard link to nothing",
    image: second({ entries: [hardlink("in", "none")] }),
    message: /hard link "in" points to "none", which is not there/,
  },
  {
    name: "an entry below a file",
    image: second({ entries: [file("d/f/g")] }),
    message: /"d\/f\/g" lies below "d\/f", which is no directory/,
  },
  {
    name: "a gzip stream that is damaged",
    image: () => {
      const image = second(good)();
      const bytes = image.layers[1]!.bytes.slice();
      bytes[bytes.length - 6]! ^= 1;
      return second({ entries: image.layers[1]!.tar, blob: bytes })();
    },
    message: /gzip/i,
  },
  {
    name: "a bzip2 layer that says it is gzip",
    image: second({
      entries: tar,
      blob: new TextEncoder().encode("BZh91AY&SY" + "x".repeat(600)),
    }),
    message: /compressed with bzip2, which is not supported/,
  },
  {
    name: "a layer of an unknown type",
    image: second({ ...good, mediaType: "application/x-squashfs" }),
    message: /application\/x-squashfs/,
  },
  {
    name: "an encrypted layer",
    image: second({
      ...good,
      mediaType: "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
    }),
    message: /encrypted/,
  },
  {
    name: "a manifest of an unknown type",
    image: () =>
      withManifest(second(good)(), () => ({
        mediaType: "application/vnd.example.manifest.v7+json",
      })),
    message: /^obd: .*application\/vnd\.example\.manifest\.v7\+json/,
  },
  {
    name: "an image without layers",
    image: () => makeImage({ layers: [] }),
    message: /^obd: .*no layers/,
  },
  {
    name: "more inodes than --vsize gives",
    image: second({
      entries: Array.from({ length: 66_000 }, (_, i) => file(`f${i}`)),
      level: 1,
    }),
    message:
      /Layer 2 of 2 .*does not fit into a device of 1(\.0+)? GiB: use --vsize 2$/,
  },
];

/** Runs `obd build` on a layout, with a temporary directory of its own. */
async function buildApart(
  dir: string,
  args: readonly string[],
): Promise<{ code: number; stdout: string; stderr: string }> {
  await Deno.mkdir(`${dir}/tmp`, { recursive: true });
  const result = await run(
    [...OBD, "build", ...args, "--vsize", "1"],
    { env: { TMPDIR: `${dir}/tmp` } },
  );
  deepEqual([...Deno.readDirSync(`${dir}/tmp`)], [], "temporary files");
  return result;
}

for (const { name, image: make, spoil, message } of CASES) {
  Deno.test(`obd build: ${name} is one clear line`, async () => {
    await withTempDir(async (dir) => {
      const layout = `${dir}/layout`;
      const image = make();
      await writeLayout(layout, [{ tag: "v1", image }]);
      await spoil?.(layout, image);
      const before = await fingerprint(layout);
      const { code, stdout, stderr } = await buildApart(dir, [
        `oci:${layout}:v1`,
      ]);
      equal(code, 1, stderr);
      equal(stdout, "");
      const lines = stderr.trim().split("\n");
      equal(lines.length, 1, stderr);
      match(lines[0]!, message);
      ok(lines[0]!.startsWith("obd: "));
      ok(!/internal error/i.test(lines[0]!), lines[0]);
      deepEqual(await fingerprint(layout), before, "the layout is as it was");
    });
  });
}

Deno.test("build: what is an overlaybd image already is not built again", async () => {
  await withTempDir(async (layout) => {
    const image = makeImage({ layers: [good] });
    await writeLayout(layout, [{ tag: "v1", image }]);
    await build({
      source: `oci:${layout}:v1`,
      formats: ["turbo", "overlaybd"],
      virtualSize: GIB,
    });
    const before = await fingerprint(layout);
    const tags = [...(await layoutTags(layout)).keys()];
    ok(tags.length === 5, tags.join());
    for (const tag of tags.filter((tag) => tag !== "v1")) {
      await rejects(
        build({ source: `oci:${layout}:${tag}`, virtualSize: GIB }),
        { code: "unsupported", message: /is an overlaybd image already/ },
        tag,
      );
    }
    deepEqual(await fingerprint(layout), before);
  });
});

Deno.test("obd build: what goes wrong in a layer names the layer", async () => {
  await withTempDir(async (dir) => {
    const image = second({ entries: [hardlink("in", "none")] })();
    await writeLayout(`${dir}/l`, [{ tag: "v1", image }]);
    const { stderr } = await buildApart(dir, [`oci:${dir}/l:v1`]);
    match(stderr, LAYER);
    ok(stderr.includes(image.layers[1]!.digest));
  });
});

Deno.test("obd build: what is not there, and what is not understood", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/layout`;
    await writeLayout(layout, [{
      tag: "v1",
      image: makeImage({ layers: [good] }),
    }]);
    const cases: [string[], number, RegExp][] = [
      [[`oci:${dir}/none:v1`], 1, /index\.json is missing/],
      [[`oci:${layout}:v2`], 1, /v2/],
      [[`oci-archive:${dir}/none.tar`, `oci:${dir}/out`], 1, /none\.tar/],
      [[`oci:${layout}:v1`, "--unknown"], 2, /--unknown/],
      [[`oci:${layout}:v1`, "a/b:c", "more"], 2, /argument/],
      [[`oci:${layout}:v1`, "--jobs", "0"], 2, /jobs/],
      [[], 2, /source/],
      [["oci:"], 2, /oci/],
      [["host.example/UPPER"], 2, /UPPER/],
    ];
    for (const [args, wantCode, message] of cases) {
      const { code, stderr } = await buildApart(dir, args);
      equal(code, wantCode, `${args}: ${stderr}`);
      match(stderr, message);
    }
    deepEqual(
      [...Deno.readDirSync(dir)].map((e) => e.name).sort(),
      ["layout", "tmp"],
    );
  });
});

Deno.test({
  name: "obd build: a full disk is one clear line",
  ignore: !requiresMount(),
  fn: () =>
    withTempDir(async (dir) => {
      const layout = `${dir}/layout`;
      const image = makeImage({
        layers: [{
          entries: Array.from(
            { length: 3000 },
            (_, i) => file(`file-${i * 7919 % 3001}`, `${i}`),
          ),
        }],
      });
      await writeLayout(layout, [{ tag: "v1", image }]);
      const before = await fingerprint(layout);
      await Deno.mkdir(`${dir}/tmp`);
      await sh(["mount", "-t", "tmpfs", "-o", "size=16k", "obd", `${dir}/tmp`]);
      try {
        const { code, stderr } = await buildApart(dir, [`oci:${layout}:v1`]);
        equal(code, 1);
        equal(stderr.trim().split("\n").length, 1, stderr);
        match(stderr, /^obd: .*[Nn]o space left/);
        ok(stderr.includes(`${dir}/tmp`), `where: ${stderr}`);
        deepEqual(await fingerprint(layout), before);
      } finally {
        await unmount(`${dir}/tmp`);
      }
    }),
});

Deno.test({
  name: "obd build: a full disk under the destination is one clear line",
  ignore: !requiresMount(),
  fn: () =>
    withTempDir(async (dir) => {
      const layout = `${dir}/layout`;
      const bytes = new Uint8Array(100_000);
      crypto.getRandomValues(bytes.subarray(0, 65_536));
      const image = makeImage({ layers: [{ entries: [file("f", bytes)] }] });
      await writeLayout(layout, [{ tag: "v1", image }]);
      await Deno.mkdir(`${dir}/out`);
      await sh(["mount", "-t", "tmpfs", "-o", "size=32k", "obd", `${dir}/out`]);
      try {
        const { code, stderr } = await buildApart(dir, [
          `oci:${layout}:v1`,
          `oci:${dir}/out/new:x`,
        ]);
        equal(code, 1);
        equal(stderr.trim().split("\n").length, 1, stderr);
        match(
          stderr,
          /^obd: Writing to oci:.*\/out\/new failed: .*[Nn]o space left/,
        );
        deepEqual((await layoutTags(`${dir}/out/new`)).size, 0);
        const left = await fingerprint(`${dir}/out/new`);
        ok(!left.some((l) => l.includes(".tmp-")), left.join("\n"));
      } finally {
        await unmount(`${dir}/out`);
      }
    }),
});

Deno.test("obd build: a build that fails makes no DEST layout", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/layout`;
    const image = second({ entries: [hardlink("in", "none")] })();
    await writeLayout(layout, [{ tag: "v1", image }]);
    const { code } = await buildApart(dir, [
      `oci:${layout}:v1`,
      `oci:${dir}/new:x`,
    ]);
    equal(code, 1);
    deepEqual([...Deno.readDirSync(dir)].map((e) => e.name).sort(), [
      "layout",
      "tmp",
    ]);
  });
});

Deno.test("obd build: SIGTERM ends it at once and leaves nothing behind", async () => {
  await withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const image = makeImage({ layers: [good] });
    await putImage(server, "app", "v1", image);
    server.faults.add({
      path: new RegExp(image.layers[0]!.digest),
      method: "GET",
      fault: { kind: "hang", afterBytes: 20 },
      times: 100,
    });
    await Deno.mkdir(`${dir}/tmp`);
    const child = new Deno.Command(OBD[0]!, {
      args: [...OBD.slice(1), "build", `${server.host}/app:v1`],
      env: { TMPDIR: `${dir}/tmp`, NO_COLOR: "1" },
      stderr: "piped",
      stdout: "null",
    }).spawn();
    while (!server.requests.some((r) => r.fault === "hang")) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const started = performance.now();
    child.kill("SIGTERM");
    const { code, stderr } = await child.output();
    // It would wait for a registry that hangs for half a minute.
    ok(performance.now() - started < 10_000, "at once");
    equal(code, 1);
    match(new TextDecoder().decode(stderr), /^obd: .*SIGTERM/m);
    deepEqual([...Deno.readDirSync(`${dir}/tmp`)], []);
    deepEqual([...server.tags("app").keys()], ["v1"]);
  });
});

Deno.test("build: a registry that answers with an error ends in its words; nothing is pushed", async () => {
  const image = makeImage({ layers: [good] });
  const { digest } = image.layers[0]!;
  const cases: [string, RegExp, number, RegExp][] = [
    ["manifest", /manifests\/v1/, 401, /401/],
    ["manifest", /manifests\/v1/, 403, /403/],
    ["manifest", /manifests\/v1/, 404, /v1/],
    ["manifest", /manifests\/v1/, 429, /429/],
    ["manifest", /manifests\/v1/, 500, /500/],
    ["layer", new RegExp(digest), 401, /401/],
    ["layer", new RegExp(digest), 404, /sha256/],
    ["layer", new RegExp(digest), 429, /429/],
    ["layer", new RegExp(digest), 500, /500/],
    ["upload", /blobs\/uploads/, 401, /401/],
    ["upload", /blobs\/uploads/, 403, /403/],
    ["upload", /blobs\/uploads/, 500, /500/],
    ["push of the manifest", /manifests\/(obd|v1-obd)/, 400, /400/],
  ];
  for (const [what, path, status, message] of cases) {
    await using server = await RegistryServer.start();
    await putImage(server, "app", "v1", image);
    const isPush = what.startsWith("push");
    server.faults.add({
      path,
      ...(isPush ? { method: "PUT" } : {}),
      fault: { kind: "status", status },
      times: 1000,
    });
    await rejects(
      build({ source: `${server.host}/app:v1`, virtualSize: GIB }),
      (error) => {
        ok(error instanceof ObdError, `${what} ${status}: ${error}`);
        match(errorText(error), message, `${what} ${status}`);
        ok(errorText(error).includes(server.host), errorText(error));
        return true;
      },
    );
    deepEqual([...server.tags("app").keys()], ["v1"], `${what} ${status}`);
  }
});

Deno.test("build: what is temporary in a registry is waited out", async () => {
  await using server = await RegistryServer.start();
  const image = makeImage({ layers: [good] });
  await putImage(server, "app", "v1", image);
  const { digest } = image.layers[0]!;
  for (
    const [path, fault] of [
      [/manifests\/v1/, { kind: "status", status: 503 }],
      [new RegExp(digest), { kind: "truncate", afterBytes: 50 }],
      [/blobs\/uploads/, { kind: "status", status: 502 }],
      [/manifests\/v1-obd/, {
        kind: "status",
        status: 429,
        headers: { "retry-after": "1" },
      }],
    ] as const
  ) {
    server.faults.add({ path, fault });
  }
  await build({ source: `${server.host}/app:v1`, virtualSize: GIB });
  ok(server.tags("app").has("v1-obd"));
});

Deno.test("build: a registry that is not there, and a DEST that cannot be had", async () => {
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const { port } = listener.addr;
  listener.close();
  await rejects(
    build({ source: `127.0.0.1:${port}/app:v1` }),
    (error) =>
      error instanceof ObdError &&
      errorText(error).includes(`127.0.0.1:${port}`),
  );
  await withTempDir(async (dir) => {
    const layout = `${dir}/layout`;
    await writeLayout(layout, [{
      tag: "v1",
      image: makeImage({ layers: [good] }),
    }]);
    const source = `oci:${layout}:v1`;
    await Deno.mkdir(`${dir}/other`);
    await Deno.writeTextFile(`${dir}/other/file`, "");
    await rejects(
      build({ source, dest: `oci:${dir}/other:x` }),
      /has other files/,
    );
    await rejects(
      build({ source, dest: `oci-archive:${dir}/x.tar` }),
      /cannot be written/,
    );
  });
});
