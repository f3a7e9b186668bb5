/** Native images in a real registry, as a user makes them: all platforms, both formats, a full disk. */

import assert from "node:assert/strict";
import { startDockerRegistry } from "../testutil/docker_registry.ts";
import { withOwnMounts } from "../testutil/mount_namespace.ts";
import {
  digestOf,
  file,
  makeImage,
  makeIndex,
  writeLayout,
} from "../testutil/oci_image.ts";
import { Random, randomLayers } from "../testutil/random_layers.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import {
  build,
  imageTree,
  layoutTags,
  OBD,
  run,
  sh,
  withTempDir,
} from "../image/helpers.ts";
import { sameTree } from "../testutil/device_tree.ts";
import { checkNative, imageDigest, readImage } from "./helpers.ts";
import { blobPath } from "../testutil/oci_image.ts";

const VSIZE = 2 ** 30;
const OCI_INDEX = "application/vnd.oci.image.index.v1+json";
const hasRegistry = requires("docker-registry", "skopeo");

/** What a registry answers to a plain client. */
async function fetchJson(url: string) {
  const accept = [
    OCI_INDEX,
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
  ].join(", ");
  const response = await fetch(url, { headers: { accept } });
  const bytes = new Uint8Array(await response.arrayBuffer());
  return { status: response.status, bytes, digest: digestOf(bytes) };
}

async function manifestOf(repository: string, name: string) {
  const { status, bytes } = await fetchJson(
    `http://${repository.replace("/", "/v2/")}/manifests/${name}`,
  );
  assert.equal(status, 200, name);
  return JSON.parse(new TextDecoder().decode(bytes));
}

async function blobOf(repository: string, digest: string) {
  const { bytes, digest: got } = await fetchJson(
    `http://${repository.replace("/", "/v2/")}/blobs/${digest}`,
  );
  assert.equal(got, digest);
  return bytes;
}

/** One image for each of two platforms, no layer shared. */
function platforms() {
  return makeIndex(["amd64", "arm64"].map((architecture, i) =>
    makeImage({
      layers: randomLayers(60 + i, 2).map((entries) => ({ entries })),
      platform: { os: "linux", architecture },
    })
  ));
}

for (const types of ["oci", "docker"] as const) {
  Deno.test({
    name:
      `docker-registry: both formats of all platforms from one read (${types} types)`,
    ignore: !hasRegistry,
    fn: () =>
      withTempDir(async (dir) => {
        await using registry = await startDockerRegistry(dir);
        const repository = `${registry.host}/app`;
        const index = platforms();
        await writeLayout(`${dir}/l`, [{ tag: "v1", image: index }]);
        await sh([
          ...["skopeo", "copy", "--all", "--quiet"],
          ...["--dest-tls-verify=false", `oci:${dir}/l:v1`],
          `docker://${repository}:v1`,
        ]);
        const before = (await registry.requests()).length;
        const { code, stderr, stdout } = await run([
          ...OBD,
          ...["build", "--json", "--all-platforms", "--dedup-db", "none"],
          ...["--format", "turbo,overlaybd", "--vsize", "1"],
          ...(types === "docker" ? ["--no-oci"] : []),
          `${repository}:v1`,
        ]);
        assert.equal(code, 0, stderr);
        const requests = (await registry.requests()).slice(before);
        for (const image of index.images) {
          for (const { digest } of image.layers) {
            const reads = requests.filter((line) =>
              line.startsWith(`GET /v2/app/blobs/${digest}`)
            );
            assert.equal(reads.length, 1, reads.join("\n"));
          }
        }
        const report = JSON.parse(stdout);
        assert.equal(report.platforms.length, 4);
        const native = await manifestOf(repository, "v1-overlaybd");
        assert.equal(
          native.mediaType,
          types === "oci"
            ? OCI_INDEX
            : "application/vnd.docker.distribution.manifest.list.v2+json",
        );
        assert.deepEqual(
          native.manifests.map((
            m: { platform: { architecture: string } },
          ) => m.platform.architecture),
          ["amd64", "arm64"],
        );
        for (const { digest, mediaType } of native.manifests) {
          const manifest = await manifestOf(repository, digest);
          assert.equal(manifest.mediaType, mediaType);
          const config = JSON.parse(
            new TextDecoder().decode(
              await blobOf(repository, manifest.config.digest),
            ),
          );
          for (const [i, layer] of manifest.layers.entries()) {
            const blob = await blobOf(repository, layer.digest);
            assert.equal(blob.length, layer.size);
            assert.equal(config.rootfs.diff_ids[i], layer.digest);
            checkNative(blob, { virtualSize: VSIZE });
          }
        }
        // Another client copies it. (Without the option it compresses the layers.)
        const copy = `${registry.host}/copy:v1`;
        await sh([
          ...["skopeo", "copy", "--all", "--quiet", "--preserve-digests"],
          ...["--src-tls-verify=false", "--dest-tls-verify=false"],
          `docker://${repository}:v1-overlaybd`,
          `docker://${copy}`,
        ]);
        for (const platform of ["linux/amd64", "linux/arm64"]) {
          const tree = (name: string) => imageTree(name, platform);
          const wanted = await tree(`${repository}:v1-obd`);
          sameTree(await tree(`${repository}:v1-overlaybd`), wanted);
          sameTree(await tree(copy), wanted);
          const verified = await run([
            ...[...OBD, "verify", "--platform", platform],
            `${repository}:v1-overlaybd`,
          ]);
          assert.equal(verified.code, 0, verified.stdout + verified.stderr);
        }
      }),
  });
}

Deno.test("every algorithm and block size: all rules kept, the same device", async () => {
  await withTempDir(async (dir) => {
    const random = new Random(12);
    // Text, zeros, and what cannot be compressed: blocks of all lengths.
    const noise = crypto.getRandomValues(new Uint8Array(65_536));
    const entries = [
      file("text", random.bytes(70_000)),
      file("zeros", new Uint8Array(50_000)),
      file("noise", noise),
      file("small", "x"),
    ];
    const layout = `${dir}/l`;
    const source = `oci:${layout}:v1`;
    const image = makeImage({ layers: [{ entries }, { entries: [] }] });
    await writeLayout(layout, [{ tag: "v1", image }]);
    const digests = new Set<string>();
    for (const codec of ["lz4", "zstd"] as const) {
      for (const kib of [4, 8, 16, 32]) {
        const tag = `${codec}-${kib}`;
        const native = { codec, blockSize: kib * 1024 };
        await build({
          source,
          tag,
          virtualSize: VSIZE,
          formats: ["overlaybd"],
          native,
        });
        for (const { digest } of (await readImage(layout, tag)).layers) {
          const blob = await Deno.readFile(blobPath(layout, digest));
          checkNative(blob, { virtualSize: VSIZE, ...native });
        }
        digests.add(await imageDigest(`oci:${layout}:${tag}`));
      }
    }
    await build({ source, virtualSize: VSIZE });
    digests.add(await imageDigest(`oci:${layout}:v1-obd`));
    assert.equal(digests.size, 1);
  });
});

Deno.test({
  name: "a full disk ends a conversion with one line, and leaves nothing",
  ignore: !requiresMount() || !requires("mount", "unshare"),
  fn: () =>
    withTempDir(async (dir) => {
      const layout = `${dir}/l`;
      const content = crypto.getRandomValues(new Uint8Array(65_536));
      const big = new Uint8Array(3 << 20);
      for (let at = 0; at < big.length; at += 65_536) big.set(content, at);
      const image = makeImage({
        layers: [{ entries: [file("one", big)] }, {
          entries: [
            file("two", big),
            file("three", crypto.getRandomValues(new Uint8Array(60_000))),
          ],
        }],
      });
      await writeLayout(layout, [{ tag: "v1", image }]);
      const before = await layoutTags(layout);
      const blobs = [...Deno.readDirSync(`${layout}/blobs/sha256`)].length;
      const temp = `${dir}/tmp`;
      await Deno.mkdir(temp);
      // Too small for the first layer's tar, for its blob, for the second one's.
      for (const size of ["1m", "4m", "6500k"]) {
        const script =
          `mount -t tmpfs -o size=${size} obd "$1" || exit 99; shift
           "$@"; code=$?; ls -A ${temp}; exit $code`;
        const { code, stdout, stderr } = await run(
          withOwnMounts([
            ...["sh", "-c", script, "sh", temp],
            ...OBD,
            ...["build", "--dedup-db", "none", "--format", "overlaybd"],
            ...["--vsize", "1", `oci:${layout}:v1`],
          ]),
          { env: { TMPDIR: temp } },
        );
        assert.equal(code, 1, `${size}: ${stdout}${stderr}`);
        assert.equal(stdout, "", `${size}: left in TMPDIR`);
        const lines = stderr.trim().split("\n").filter((l) =>
          l.startsWith("obd: ")
        );
        assert.equal(lines.length, 1, stderr);
        assert.match(lines[0]!, /no space|No space|ENOSPC/, size);
        assert.match(lines[0]!, new RegExp(`${temp}.*TMPDIR`), size);
        assert.deepEqual(await layoutTags(layout), before);
        assert.equal(
          [...Deno.readDirSync(`${layout}/blobs/sha256`)].length,
          blobs,
        );
      }
    }),
});
