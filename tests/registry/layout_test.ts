import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { loadLibc, readBytes } from "../../lib/io/mod.ts";
import {
  ArchiveRepository,
  blobFromBytes,
  type Descriptor,
  type ImageManifest,
  LayoutRepository,
  MediaType,
  openRepository,
  parseManifest,
  type Repository,
  sha256Digest,
} from "../../lib/registry/mod.ts";
import { requires } from "../testutil/requires.ts";
import {
  collect,
  manifestOf,
  patternBytes,
  run,
  withTempDir,
} from "./helpers.ts";

// Opened once per process, so it must not count as a leak of the first test.
loadLibc();

const encode = (x: unknown) => new TextEncoder().encode(JSON.stringify(x));

async function pushBytes(
  repository: Repository,
  bytes: Uint8Array<ArrayBuffer>,
): Promise<Descriptor> {
  const descriptor = {
    mediaType: "application/octet-stream",
    digest: sha256Digest(bytes),
    size: bytes.length,
  };
  await repository.pushBlob(descriptor, blobFromBytes(bytes));
  return descriptor;
}

async function pushImage(
  repository: Repository,
  tag: string,
  seed: number,
): Promise<Descriptor> {
  const config = await pushBytes(repository, encode({ seed }));
  const layer = await pushBytes(repository, patternBytes(10_000, seed));
  return await repository.pushManifest(
    encode(manifestOf(config, [layer])),
    MediaType.ociManifest,
    tag,
  );
}

Deno.test("layout: blobs and manifests come back; nothing is left behind", async () => {
  await withTempDir(async (dir) => {
    const repository = await openRepository(`oci:${dir}/l`, { create: true });
    const image = await pushImage(repository, "v1", 1);
    const { descriptor, bytes } = await repository.resolve("v1");
    deepEqual(descriptor, image);
    const [layer] = (parseManifest(bytes) as ImageManifest).layers;
    const content = patternBytes(10_000, 1);
    await using source = await repository.openBlob(layer!);
    deepEqual(await readBytes(source, 5000, 50), content.subarray(5000, 5050));
    deepEqual(await collect(repository.fetchBlob(layer!)), content);
    equal(await repository.pushBlob(layer!, blobFromBytes(content)), "exists");
    equal(await repository.hasBlob(layer!.digest), true);
    equal(await repository.hasBlob(`sha256:${"0".repeat(64)}`), false);
    deepEqual(
      [...Deno.readDirSync(`${dir}/l`)].map((e) => e.name).sort(),
      ["blobs", "index.json", "oci-layout"],
    );
  });
});

Deno.test("layout: tags move; referrers stay without a tag", async () => {
  await withTempDir(async (dir) => {
    const repository = await LayoutRepository.open(dir, { create: true });
    const image = await pushImage(repository, "v1", 1);
    const config = (await repository.resolve("v1")).bytes;
    const referrer = async (name: string, tag?: string) => {
      const document = {
        ...JSON.parse(new TextDecoder().decode(config)),
        subject: image,
        artifactType: "x/y",
        annotations: { name },
      };
      return await repository.pushManifest(
        encode(document),
        MediaType.ociManifest,
        tag,
      );
    };
    const first = await referrer("one", "v1-obd");
    const second = await referrer("two", "v1-obd");
    const third = await referrer("three");
    equal(
      (await repository.resolve("v1-obd")).descriptor.digest,
      second.digest,
    );
    const names = (await repository.referrers(image.digest))
      .map((d) => d.annotations?.name).sort();
    deepEqual(names, ["one", "three", "two"]);
    deepEqual(await repository.referrers(image.digest, "other"), []);
    // The only image: referrers do not count.
    equal((await repository.resolve("")).descriptor.digest, image.digest);
    equal(
      (await repository.resolve(first.digest)).descriptor.digest,
      first.digest,
    );
    await referrer("three", "third");
    const index = JSON.parse(await Deno.readTextFile(`${dir}/index.json`));
    equal(index.manifests.length, 4);
    equal(
      index.manifests.filter((m: Descriptor) => m.digest === third.digest)
        .length,
      1,
    );

    const replaced = await pushImage(repository, "v1", 2);
    equal((await repository.resolve("v1")).descriptor.digest, replaced.digest);
    await pushImage(repository, "v2", 2);
    // Two tags of one manifest are one image.
    equal((await repository.resolve("")).descriptor.digest, replaced.digest);
    await pushImage(repository, "v3", 3);
    await rejects(repository.resolve(""), {
      name: "UsageError",
      message: /has 2 images: .*"v1".*"v3"/,
    });
    await rejects(repository.resolve("v9"), {
      name: "NotFoundError",
      message: /it has .*"v1"/,
    });
  });
});

Deno.test("layout: writers at once lose no entry, unknown fields stay", async () => {
  await withTempDir(async (dir) => {
    const repository = await LayoutRepository.open(dir, { create: true });
    const before = JSON.parse(await Deno.readTextFile(`${dir}/index.json`));
    await Deno.writeTextFile(
      `${dir}/index.json`,
      JSON.stringify({ ...before, annotations: { keep: "me" } }),
    );
    const tags = Array.from({ length: 8 }, (_, i) => `t${i}`);
    await Promise.all(tags.map(async (tag, i) => {
      const own = await LayoutRepository.open(dir);
      await pushImage(own, tag, i + 10);
    }));
    const index = JSON.parse(await Deno.readTextFile(`${dir}/index.json`));
    deepEqual(index.annotations, { keep: "me" });
    equal(index.manifests.length, 8);
    for (const tag of tags) ok(await repository.resolve(tag));
  });
});

Deno.test("layout: an index that has no room is left as it is, and readable", async () => {
  await withTempDir(async (dir) => {
    const repository = await LayoutRepository.open(dir, { create: true });
    const image = await pushImage(repository, "v0", 1);
    const entry = (i: number, filler = "") => ({
      ...image,
      annotations: {
        "org.opencontainers.image.ref.name": `t${i}`,
        ...(filler && { filler }),
      },
    });
    const full = [
      Array.from({ length: 10_000 }, (_, i) => entry(i)),
      [entry(0, "x".repeat(4 * 1024 * 1024 - 400))],
    ];
    for (const manifests of full) {
      const text = JSON.stringify({ schemaVersion: 2, manifests });
      await Deno.writeTextFile(`${dir}/index.json`, text);
      await rejects(pushImage(repository, "more", 1), { name: "LimitError" });
      equal(await Deno.readTextFile(`${dir}/index.json`), text);
      deepEqual((await repository.resolve("t0")).descriptor, image);
      // A tag that moves takes no more room.
      if (manifests.length > 1) await pushImage(repository, "t1", 2);
    }
  });
});

Deno.test("layout: wrong content is refused on the way in and out", async () => {
  await withTempDir(async (dir) => {
    const repository = await LayoutRepository.open(dir, { create: true });
    const bytes = patternBytes(1000);
    const descriptor = await pushBytes(repository, bytes);
    for (
      const wrong of [
        patternBytes(1000, 2),
        patternBytes(999),
        patternBytes(1001),
      ]
    ) {
      const digest = `sha256:${"0".repeat(64)}`;
      await rejects(
        repository.pushBlob({ ...descriptor, digest }, blobFromBytes(wrong)),
        { name: "IntegrityError" },
      );
      equal(await repository.hasBlob(digest), false);
    }
    equal([...Deno.readDirSync(dir)].length, 3);
    const path = `${dir}/blobs/sha256/${descriptor.digest.slice(7)}`;
    bytes[500]! ^= 1;
    await Deno.writeFile(path, bytes);
    await rejects(collect(repository.fetchBlob(descriptor)), {
      name: "IntegrityError",
    });
    await Deno.writeFile(path, bytes.subarray(1));
    await rejects(repository.openBlob(descriptor), { name: "IntegrityError" });
    await Deno.remove(path);
    await rejects(repository.openBlob(descriptor), { name: "NotFoundError" });
    const image = await pushImage(repository, "v1", 1);
    const manifest = `${dir}/blobs/sha256/${image.digest.slice(7)}`;
    await Deno.writeTextFile(manifest, "{}");
    await rejects(repository.resolve("v1"), { name: "IntegrityError" });
  });
});

Deno.test("layout: one whose making was killed is made", async () => {
  await withTempDir(async (dir) => {
    const files = ["oci-layout", "index.json"].map((name) =>
      `${dir}/${name}.tmp-${crypto.randomUUID()}`
    );
    await Deno.mkdir(`${dir}/blobs/sha256`, { recursive: true });
    for (const file of files) {
      await Deno.writeTextFile(file, "{");
      await using layout = await openRepository(`oci:${dir}`, { create: true });
      await pushBytes(layout, patternBytes(10));
      deepEqual(
        Array.from(Deno.readDirSync(dir), ({ name }) => name).sort(),
        ["blobs", "index.json", "oci-layout"],
      );
      await Deno.remove(`${dir}/index.json`);
    }
    // What only looks like it is another's.
    await Deno.writeTextFile(`${dir}/index.json.tmp-mine`, "");
    await rejects(openRepository(`oci:${dir}`, { create: true }), {
      name: "UsageError",
      message: /has other files/,
    });
  });
});

Deno.test("layout: broken and missing layouts are typed errors", async () => {
  await withTempDir(async (dir) => {
    await rejects(openRepository(`oci:${dir}/no`), { name: "NotFoundError" });
    await rejects(openRepository(`oci-archive:${dir}/no`), {
      name: "NotFoundError",
    });
    await Deno.writeTextFile(`${dir}/other`, "x");
    await rejects(openRepository(`oci:${dir}`, { create: true }), {
      name: "UsageError",
      message: /has other files/,
    });
    const repository = await LayoutRepository.open(`${dir}/l`, {
      create: true,
    });
    for (
      const text of [
        "{",
        "[]",
        '{"manifests":{}}',
        '{"manifests":[1]}',
        '{"manifests":[{"mediaType":"x","digest":"../../x","size":1}]}',
      ]
    ) {
      await Deno.writeTextFile(`${dir}/l/index.json`, text);
      await rejects(repository.resolve("v1"), { name: "FormatError" }, text);
    }
  });
});

Deno.test({
  name: "layouts and archives of skopeo and umoci are read, and ours by skopeo",
  ignore: !requires("skopeo", "umoci", "tar", "gzip"),
  fn: () =>
    withTempDir(async (dir) => {
      const layout = `${dir}/l`;
      await run("umoci", "init", "--layout", layout);
      await run("umoci", "new", "--image", `${layout}:v1`);
      await run(
        "umoci",
        "unpack",
        "--rootless",
        "--image",
        `${layout}:v1`,
        `${dir}/b`,
      );
      await Deno.writeTextFile(`${dir}/b/rootfs/hello`, "hello\n");
      await run("umoci", "repack", "--image", `${layout}:v1`, `${dir}/b`);
      await run(
        "skopeo",
        "copy",
        "-q",
        `oci:${layout}:v1`,
        `oci-archive:${dir}/a.tar:v1`,
      );
      // The same with PAX headers and "./" names.
      await run(
        "tar",
        "-C",
        layout,
        "--format=pax",
        "-cf",
        `${dir}/p.tar`,
        ".",
      );
      const copy = await LayoutRepository.open(`${dir}/copy`, { create: true });
      for (
        const reference of [
          `oci:${layout}`,
          `oci-archive:${dir}/a.tar`,
          `oci-archive:${dir}/p.tar`,
        ]
      ) {
        await using repository = await openRepository(reference);
        const { bytes, descriptor } = await repository.resolve("v1");
        const manifest = parseManifest(bytes) as ImageManifest;
        for (const blob of [manifest.config, ...manifest.layers]) {
          const content = await collect(repository.fetchBlob(blob));
          equal(sha256Digest(content), blob.digest);
          await copy.pushBlob(blob, blobFromBytes(content));
        }
        await copy.pushManifest(bytes, descriptor.mediaType, "copied");
        deepEqual((await repository.resolve("")).descriptor, descriptor);
      }
      await run(
        "skopeo",
        "copy",
        "-q",
        `oci:${dir}/copy:copied`,
        `oci:${dir}/again:v1`,
      );
      await run("gzip", "-k", `${dir}/a.tar`);
      await rejects(ArchiveRepository.open(`${dir}/a.tar.gz`), {
        name: "UnsupportedError",
        message: /gzip-compressed/,
      });
      await using archive = await ArchiveRepository.open(`${dir}/a.tar`);
      await rejects(archive.pushManifest(), { name: "UnsupportedError" });
    }),
});

/** One ustar header. */
function header(name: string, size: number | string, type = "0"): Uint8Array {
  const block = new Uint8Array(512);
  const put = (at: number, text: string) =>
    block.set(new TextEncoder().encode(text), at);
  put(0, name);
  put(
    124,
    typeof size === "number" ? size.toString(8).padStart(11, "0") : size,
  );
  put(156, type);
  put(257, "ustar\x0000");
  put(148, "        ");
  const sum = block.reduce((a, b) => a + b, 0);
  put(148, `${sum.toString(8).padStart(6, "0")}\0 `);
  return block;
}

function pad(text: string): Uint8Array {
  const bytes = new TextEncoder().encode(text);
  const out = new Uint8Array(Math.ceil(bytes.length / 512) * 512);
  out.set(bytes);
  return out;
}

Deno.test("archive: PAX, GNU long names, later members; broken tars and Docker archives are typed errors", async () => {
  await withTempDir(async (dir) => {
    const path = `${dir}/x.tar`;
    const write = async (...parts: Uint8Array[]) => {
      await Deno.writeFile(
        path,
        new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer()),
      );
    };
    const index = '{"schemaVersion":2,"manifests":[]}';
    const good: Uint8Array[][] = [
      [header("./index.json", index.length), pad(index)],
      [
        header("index.json", 3),
        pad("old"),
        header("index.json", index.length),
        pad(index),
      ],
      [
        header("x", 20, "x"),
        pad("19 path=index.json\n"),
        header("y", index.length),
        pad(index),
      ],
      [
        header("x", 11, "x"),
        pad("11 size=34\n"),
        header("index.json", 0),
        pad(index),
      ],
      [
        header("x", 11, "L"),
        pad("index.json\0"),
        header("y", index.length),
        pad(index),
        new Uint8Array(1024),
        header("bad", "zz"),
      ],
    ];
    for (const [i, parts] of good.entries()) {
      await write(...parts);
      await using archive = await ArchiveRepository.open(path);
      await rejects(archive.resolve("v1"), {
        name: "NotFoundError",
        message: /it has no tags/,
      }, `case ${i}`);
    }
    const bad: Uint8Array[][] = [
      [],
      [pad("no tar at all")],
      [header("a", 5000), pad("short")],
      [header("a", "9zz")],
      [header("a", 2 ** 33 - 1)],
      [header("a", "\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")],
      [header("x", 10, "x"), pad("9999 path=")],
      [header("x", 12, "x"), pad("12 size=-1\n")],
      [header("x", 2 ** 21, "x"), new Uint8Array(2 ** 21)],
    ];
    for (const [i, parts] of bad.entries()) {
      await write(...parts);
      await rejects(
        ArchiveRepository.open(path),
        { name: "FormatError" },
        `case ${i}`,
      );
    }
    // What `docker save` wrote before Docker 25; later it has both.
    await write(header("manifest.json", 2), pad("[]"));
    await rejects(ArchiveRepository.open(path), {
      name: "UnsupportedError",
      message: /is a Docker archive, not an OCI one; .* skopeo copy/,
    });
    await write(
      header("manifest.json", 2),
      pad("[]"),
      header("index.json", index.length),
      pad(index),
    );
    await using both = await ArchiveRepository.open(path);
    await rejects(both.resolve("v1"), { name: "NotFoundError" });
  });
});
