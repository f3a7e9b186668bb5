/** Sparse files: every form of the map, and segments that lie across sectors. */
import assert from "node:assert/strict";
import {
  concatBytes,
  FormatError,
  LimitError,
  UnsupportedError,
} from "../../lib/io/mod.ts";
import {
  archive,
  GNU,
  header,
  member,
  padded,
  pax,
  USTAR,
} from "./tar_bytes.ts";
import { below, contentOf, noise, seeded, walk, walkOne } from "./walk.ts";

type Segment = readonly [offset: number, length: number];

const random = seeded(1);

/** The data of segments back to back, and the file they make. */
function sparseFile(size: number, segments: readonly Segment[]) {
  const file = new Uint8Array(size);
  const parts = segments.map(([offset, length]) => {
    const bytes = noise(random, length);
    file.set(bytes, offset);
    return bytes;
  });
  return { file, data: concatBytes(parts) };
}

const octal = (n: number) => n.toString(8).padStart(11, "0") + "\0";

function oldGnuMap(segments: readonly Segment[]): string {
  return segments.map(([o, n]) => octal(o) + octal(n)).join("");
}

function oldGnu(size: number, segments: readonly Segment[]) {
  const { file, data } = sparseFile(size, segments);
  const extensions: Uint8Array[] = [];
  for (let i = 4; i < segments.length; i += 21) {
    const block = new Uint8Array(512);
    const map = oldGnuMap(segments.slice(i, i + 21));
    block.set(new TextEncoder().encode(map));
    block[504] = i + 21 < segments.length ? 1 : 0;
    extensions.push(block);
  }
  const raw = {
    386: oldGnuMap(segments.slice(0, 4)),
    482: segments.length > 4 ? "\x01" : "\0",
    483: octal(size),
  };
  const head = header({ type: "S", magic: GNU, size: data.length, raw });
  return { file, tar: archive(head, ...extensions, padded(data)) };
}

function pax0(size: number, segments: readonly Segment[], minor: "0" | "1") {
  const { file, data } = sparseFile(size, segments);
  const records: [string, string][] = [
    ["GNU.sparse.size", String(size)],
    ["GNU.sparse.numblocks", String(segments.length)],
  ];
  if (minor === "0") {
    for (const [offset, length] of segments) {
      records.push(["GNU.sparse.offset", String(offset)]);
      records.push(["GNU.sparse.numbytes", String(length)]);
    }
  } else {
    records.push(["GNU.sparse.name", "real/name"]);
    records.push(["GNU.sparse.map", segments.flat().join(",")]);
  }
  return { file, tar: archive(pax(records), member({}, data)) };
}

function pax1(size: number, segments: readonly Segment[]) {
  const { file, data } = sparseFile(size, segments);
  const map = [segments.length, ...segments.flat()].join("\n") + "\n";
  const body = concatBytes([padded(new TextEncoder().encode(map)), data]);
  const records: [string, string][] = [
    ["GNU.sparse.major", "1"],
    ["GNU.sparse.minor", "0"],
    ["GNU.sparse.name", "real/name"],
    ["GNU.sparse.realsize", String(size)],
  ];
  return { file, tar: archive(pax(records), member({}, body)) };
}

const FORMS: Record<
  string,
  (size: number, segments: readonly Segment[]) => {
    file: Uint8Array;
    tar: Uint8Array;
  }
> = {
  "old GNU": oldGnu,
  "PAX 0.0": (size, segments) => pax0(size, segments, "0"),
  "PAX 0.1": (size, segments) => pax0(size, segments, "1"),
  "PAX 1.0": pax1,
};

function check(size: number, segments: readonly Segment[]) {
  for (const [form, make] of Object.entries(FORMS)) {
    // Without a version record, 0.x is known by its map only.
    if (form.startsWith("PAX 0") && segments.length === 0) continue;
    const { file, tar } = make(size, segments);
    const entry = walkOne(tar);
    assert.equal(entry.size, size, form);
    assert.deepEqual(contentOf(entry, tar), file, form);
    // In pieces of 100 bytes the same.
    assert.deepEqual(walk(tar, { cuts: () => 100 }), [entry], form);
  }
}

/** Sectors in runs, sectors in patches. */
function shape(make: { tar: Uint8Array }): [runs: number, patches: number] {
  const entry = walkOne(make.tar);
  return [
    entry.runs.reduce((n, r) => n + r.sectors, 0),
    entry.patches.reduce((n, p) => n + p.bytes.length / 512, 0),
  ];
}

Deno.test("aligned segments are runs only", () => {
  const segments: Segment[] = [[4096, 8192], [65536, 512], [131072, 0]];
  check(131072, segments);
  for (const make of Object.values(FORMS)) {
    assert.deepEqual(shape(make(131072, segments)), [17, 0]);
  }
});

Deno.test("holes only, nothing at all, one long segment", () => {
  check(10_000, []);
  check(10_000, [[10_000, 0]]);
  check(0, []);
  check(10_000, [[0, 10_000]]);
});

Deno.test("the last segment's partial sector is a run when its padding is zero", () => {
  assert.deepEqual(shape(oldGnu(5000, [[4096, 904]])), [2, 0]);
  check(5000, [[4096, 904]]);
  const { file, tar } = oldGnu(5000, [[4096, 904]]);
  tar[512 + 904] = 7; // dirty padding
  const entry = walkOne(tar);
  assert.deepEqual(entry.runs, [{ fileSector: 8, tarSector: 1, sectors: 1 }]);
  assert.deepEqual(entry.patches.map((p) => p.fileSector), [9]);
  assert.deepEqual(contentOf(entry, tar), file);
});

Deno.test("a partial sector before other data is a patch", () => {
  assert.deepEqual(shape(oldGnu(5000, [[0, 100], [1024, 412]])), [0, 2]);
  check(5000, [[0, 100], [1024, 412]]);
});

Deno.test("congruent segments off the sector grid keep their whole sectors", () => {
  // 100 bytes of file and tar before a sector boundary, then two sectors.
  assert.deepEqual(
    shape(oldGnu(9000, [[0, 412], [924, 100 + 1024 + 50], [8000, 1]])),
    [2, 4],
  );
  check(9000, [[0, 412], [924, 100 + 1024 + 50], [8000, 1]]);
});

Deno.test("segments that share a sector are put together", () => {
  const segments: Segment[] = [
    [10, 20],
    [40, 5],
    [500, 20],
    [600, 1000],
    [1601, 1],
    [2047, 2],
  ];
  check(4096, segments);
  const entry = walkOne(oldGnu(4096, segments).tar);
  assert.deepEqual(
    entry.patches.map((p) => [p.fileSector, p.bytes.length]),
    [[0, 5 * 512]],
  );
});

Deno.test("adjacent aligned segments make one run", () => {
  const segments: Segment[] = [[0, 512], [512, 1024], [1536, 512]];
  assert.deepEqual(walkOne(oldGnu(2048, segments).tar).runs, [
    { fileSector: 0, tarSector: 1, sectors: 4 },
  ]);
});

Deno.test("many segments, over extension blocks and map blocks", () => {
  for (const count of [4, 5, 25, 26, 400]) {
    const segments = Array.from(
      { length: count },
      (_, i): Segment => [i * 4096, i % 3 === 0 ? 512 : 1024],
    );
    check(count * 4096, segments);
  }
});

Deno.test("random maps", () => {
  const r = seeded(20);
  for (let round = 0; round < 60; round++) {
    const grid = [1, 3, 128, 512][below(r, 4)]!;
    const segments: Segment[] = [];
    let at = 0;
    for (let i = below(r, 40); i > 0; i--) {
      const offset = at + below(r, 6) * grid;
      const length = below(r, 9) * grid;
      segments.push([offset, length]);
      at = offset + length;
    }
    check(at + below(r, 3) * 100, segments);
  }
});

Deno.test("names: PAX 0.1 and 1.0 have their own", () => {
  assert.equal(walkOne(FORMS["PAX 0.1"]!(0, []).tar).path, "file");
  assert.equal(
    walkOne(FORMS["PAX 0.1"]!(512, [[0, 512]]).tar).path,
    "real/name",
  );
  assert.equal(walkOne(FORMS["PAX 1.0"]!(0, []).tar).path, "real/name");
});

Deno.test("entries behind a sparse file are found", () => {
  const { tar } = pax1(5000, [[0, 100], [1024, 412]]);
  const both = concatBytes([tar.subarray(0, -1024), archive(member({}, "x"))]);
  assert.deepEqual(walk(both).map((e) => e.size), [5000, 1]);
});

Deno.test("maps that do not fit are refused", () => {
  const bad: [number, Segment[], number][] = [
    [1000, [[0, 1001]], 1001],
    [1000, [[500, 10], [505, 10]], 20],
    [1000, [[500, 10], [100, 10]], 20],
    [1000, [[0, 100]], 101],
    [1000, [[0, 100]], 99],
    [1000, [[1001, 0]], 0],
  ];
  for (const [size, segments, bytes] of bad) {
    const raw = { 386: oldGnuMap(segments), 483: octal(size) };
    const tar = archive(
      header({ type: "S", magic: GNU, size: bytes, raw }),
      padded(new Uint8Array(bytes)),
    );
    assert.throws(() => walk(tar), FormatError, JSON.stringify(segments));
  }
});

Deno.test("malformed PAX maps", () => {
  const at = (records: [string, string][], body = "") =>
    walk(archive(pax(records), member({}, body)));
  const version = (major: string, minor: string): [string, string][] => [
    ["GNU.sparse.major", major],
    ["GNU.sparse.minor", minor],
    ["GNU.sparse.realsize", "100"],
  ];
  assert.throws(() => at(version("2", "0")), UnsupportedError);
  assert.throws(() => at(version("1", "1")), UnsupportedError);
  for (
    const records of [
      [["GNU.sparse.map", "0,1"], ["GNU.sparse.size", "1"]],
      [["GNU.sparse.map", "0,1"], ["GNU.sparse.numblocks", "2"]],
      [["GNU.sparse.map", "0"], ["GNU.sparse.numblocks", "1"]],
      [["GNU.sparse.map", "0,,"], ["GNU.sparse.numblocks", "1"]],
      [["GNU.sparse.numbytes", "0"]],
      [["GNU.sparse.offset", "0"], ["GNU.sparse.offset", "0"]],
      [["GNU.sparse.offset", "0"], ["GNU.sparse.numblocks", "1"]],
    ] as [string, string][][]
  ) assert.throws(() => at(records), FormatError, JSON.stringify(records));
  for (
    const map of ["", "1\n", "1\n0\n", "x\n", "\n", "1\n0\n1x\n", "-1\n", "0\n"]
  ) {
    assert.throws(() => at(version("1", "0"), map), FormatError, map);
  }
  assert.throws(
    () => at(version("1", "0"), "1000001\n".padEnd(512, "0")),
    LimitError,
  );
  assert.throws(
    () =>
      walk(archive(
        pax([["GNU.sparse.major", "1"], ["GNU.sparse.minor", "0"]]),
        header({ type: "5", name: "dir" }),
      )),
    FormatError,
  );
});

Deno.test("a sparse file of star's form is refused, not misread", () => {
  const tar = archive(header({ type: "S", magic: USTAR }));
  assert.throws(() => walk(tar), UnsupportedError);
});

Deno.test("the number of segments is bounded", () => {
  const limits = { sparseSegments: 30 };
  const segments = Array.from({ length: 31 }, (_, i): Segment => [i, 1]);
  for (const [form, make] of Object.entries(FORMS)) {
    walk(make(100, segments.slice(1)).tar, { limits });
    assert.throws(
      () => walk(make(100, segments).tar, { limits }),
      LimitError,
      form,
    );
  }
});

Deno.test("the patches of a whole archive are bounded", () => {
  const limits = { patchBytes: 2048 };
  const one = oldGnu(4096, [[1, 1], [3000, 1]]).tar.subarray(0, -1024);
  walk(archive(one, one), { limits });
  assert.throws(
    () => walk(archive(one, one, one), { limits }),
    (e: unknown) => e instanceof LimitError && e.message.includes('"file"'),
  );
});

Deno.test("patches are refused before their bytes have come", () => {
  const raw = { 386: oldGnuMap([[1, 2 ** 32]]), 483: octal(2 ** 32 + 1) };
  const size = 2 ** 32;
  assert.throws(
    () => walk(header({ type: "S", magic: GNU, size, raw })),
    LimitError,
  );
});
