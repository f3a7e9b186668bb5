/** The same archives read by others: Python's tarfile and tar-stream. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { gunzipSync } from "node:zlib";
import tarStream from "tar-stream";
import {
  bytesFromLatin1,
  latin1FromBytes,
  toHex,
  utf8,
} from "../../lib/io/mod.ts";
import { cleanPath, type TarEntry } from "../../lib/tar/mod.ts";
import { golden, requires } from "../testutil/requires.ts";
import { python } from "./python.ts";
import { below, contentOf, noise, seeded, walk } from "./walk.ts";

interface Listed {
  path: string;
  type: string;
  mode: number;
  uid: number;
  gid: number;
  mtime: string;
  size: number;
  sha256: string;
  link: string;
  dev: number[];
  xattrs: [string, string][];
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Our entry in Python's words. */
function listed(entry: TarEntry, tar: Uint8Array): Omit<Listed, "mtime"> {
  return {
    path: entry.path,
    type: entry.type,
    mode: entry.mode,
    uid: entry.uid,
    gid: entry.gid,
    size: entry.size,
    sha256: entry.type === "file" ? sha256(contentOf(entry, tar)) : "",
    link: entry.linkTarget,
    dev: [entry.devMajor, entry.devMinor],
    xattrs: entry.xattrs.map(([name, value]) => [name, toHex(value)]),
  };
}

/** Nanoseconds as text has them, as the PAX rule cuts them. */
function toNanoseconds(text: string): bigint {
  const [seconds, fraction = ""] = text.split(".");
  const part = BigInt(fraction.slice(0, 9).padEnd(9, "0"));
  const sign = text.startsWith("-") ? -1n : 1n;
  return BigInt(seconds!) * 1_000_000_000n + sign * part;
}

async function compareWithPython(path: string): Promise<number> {
  const tar = await Deno.readFile(path);
  const want: Listed[] = JSON.parse(await python("list", path));
  const got = walk(tar);
  assert.equal(got.length, want.length);
  for (const [i, { mtime, ...other }] of want.entries()) {
    const entry = got[i]!;
    assert.deepEqual(listed(entry, tar), {
      ...other,
      path: cleanPath(other.path, "path", 0),
      link: other.type === "hardlink"
        ? cleanPath(other.link, "link", 0)
        : other.link,
    });
    assert.equal(
      BigInt(entry.mtime.seconds) * 1_000_000_000n +
        BigInt(entry.mtime.nanoseconds),
      toNanoseconds(mtime),
    );
  }
  return got.length;
}

for (const format of ["ustar", "gnu", "pax"]) {
  Deno.test({
    name: `archives that tarfile writes as ${format}`,
    ignore: !requires("python3"),
    async fn() {
      const dir = await Deno.makeTempDir();
      try {
        for (const seed of [1, 2]) {
          const path = `${dir}/${seed}.tar`;
          await python("write", path, format, String(seed));
          assert.equal(await compareWithPython(path), 120);
        }
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
}

const layers = golden("layers");

Deno.test({
  name: "golden layers read as tarfile reads them",
  ignore: layers === undefined || !requires("python3"),
  async fn() {
    const dir = await Deno.makeTempDir();
    try {
      for (const name of ["layer1", "layer2", "layer2e"]) {
        const gz = await Deno.readFile(`${layers}/${name}.tar.gz`);
        await Deno.writeFile(`${dir}/${name}.tar`, gunzipSync(gz));
        assert.ok(await compareWithPython(`${dir}/${name}.tar`) > 20);
      }
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});

const unit = golden("unit/L.tar.gz");

Deno.test({
  name: "bodies lie where overlaybd's header dump says",
  ignore: unit === undefined,
  async fn() {
    const tar = gunzipSync(await Deno.readFile(unit!));
    const starts = walk(tar).filter((e) => e.runs.length > 0)
      .map((e) => e.runs[0]!.tarSector * 512);
    // The list that came with golden/unit: L.meta. The fourth, 0x2e2e00, is where
    // the body of a hard link would be.
    assert.deepEqual(starts, [0xc00, 0x4000, 0x5a00]);
  },
});

/** What tar-stream tells of an entry, and the content it gives. */
interface Streamed {
  header: tarStream.Headers & { pax?: Record<string, string> };
  content: Uint8Array;
}

async function readStream(tar: Uint8Array): Promise<Streamed[]> {
  const extract = tarStream.extract();
  extract.end(tar);
  const out: Streamed[] = [];
  for await (const entry of extract) {
    const parts: Uint8Array[] = [];
    for await (const part of entry) parts.push(part);
    const content = new Uint8Array(
      await new Blob(parts as BlobPart[]).arrayBuffer(),
    );
    out.push({ header: entry.header, content });
  }
  return out;
}

const STREAM_TYPES: Record<string, string> = {
  "contiguous-file": "file",
  link: "hardlink",
  "character-device": "char",
  "block-device": "block",
};

async function compareWithTarStream(tar: Uint8Array): Promise<void> {
  const want = await readStream(tar);
  const got = walk(tar);
  assert.equal(got.length, want.length);
  for (const [i, { header, content }] of want.entries()) {
    const entry = got[i]!;
    const type = header.type ?? "file";
    assert.equal(entry.type, STREAM_TYPES[type] ?? type);
    const path = latin1FromBytes(utf8(header.name));
    assert.equal(entry.path, cleanPath(path, "path", 0));
    assert.equal(entry.mode, header.mode);
    assert.equal(entry.uid, header.uid);
    assert.equal(entry.gid, header.gid);
    assert.equal(entry.mtime.seconds, Math.floor(+header.mtime! / 1000));
    assert.equal(sha256(contentOf(entry, tar)), sha256(content));
    if (type === "symlink") {
      assert.deepEqual(
        bytesFromLatin1(entry.linkTarget),
        utf8(header.linkname!),
      );
    }
    if (entry.type === "char" || entry.type === "block") {
      assert.equal(entry.devMajor, header.devmajor);
      assert.equal(entry.devMinor, header.devminor);
    }
  }
}

Deno.test("archives that tar-stream writes", async () => {
  for (const seed of [1, 2, 3]) {
    const random = seeded(seed);
    const pack = tarStream.pack();
    const types = [
      "file",
      "file",
      "file",
      "directory",
      "symlink",
      "link",
      "character-device",
      "block-device",
      "fifo",
    ] as const;
    const tar = new Response(ReadableStream.from(pack)).bytes();
    for (let i = 0; i < 80; i++) {
      const type = types[below(random, types.length)]!;
      const name = `${i}/${"pä☃th/".repeat(below(random, 30))}name`;
      const content = type === "file"
        ? noise(random, below(random, 3000))
        : new Uint8Array(0);
      pack.entry({
        name,
        type,
        mode: below(random, 0o10000),
        uid: below(random, 2_000_000),
        gid: below(random, 2_000_000),
        mtime: new Date(below(random, 2e9) * 1000),
        linkname: "l".repeat(1 + below(random, 150)),
        devmajor: 1 + below(random, 255),
        devminor: 1 + below(random, 255),
        size: content.length,
      }, content as never);
    }
    pack.finalize();
    await compareWithTarStream(await tar);
  }
});

Deno.test({
  name: "golden layers read as tar-stream reads them",
  ignore: layers === undefined,
  async fn() {
    for (const name of ["layer1", "layer2", "layer2e"]) {
      const gz = await Deno.readFile(`${layers}/${name}.tar.gz`);
      await compareWithTarStream(gunzipSync(gz));
    }
  },
});
