/** The walk itself: pieces, ends, padding, limits, damage. */
import assert from "node:assert/strict";
import {
  concatBytes,
  FormatError,
  LimitError,
  ObdError,
} from "../../lib/io/mod.ts";
import { TarWalker } from "../../lib/tar/mod.ts";
import { archive, GNU, header, member, padded, pax } from "./tar_bytes.ts";
import { below, contentOf, noise, seeded, walk, walkOne } from "./walk.ts";

/** One of everything. */
function mixed(): Uint8Array<ArrayBuffer> {
  const random = seeded(3);
  const octal = (n: number) => n.toString(8).padStart(11, "0") + "\0";
  const dirty = member({ name: "dirty" }, noise(random, 700));
  dirty[512 + 700] = 1;
  return archive(
    member({ name: "dir/", type: "5" }),
    member({ name: "empty" }),
    member({ name: "one" }, noise(random, 1)),
    member({ name: "sector" }, noise(random, 512)),
    member({ name: "more" }, noise(random, 5000)),
    dirty,
    pax([
      ["path", "pax/" + "p".repeat(200)],
      ["mtime", "1.5"],
      ["SCHILY.xattr.user.a", "\0\xff"],
    ]),
    member({}, noise(random, 100)),
    member({ type: "L" }, "l".repeat(140) + "\0"),
    member({ type: "K" }, "k".repeat(600) + "\0"),
    header({ type: "2" }),
    header({ name: "hard", type: "1", linkName: "one" }),
    header({ name: "null", type: "3", devMajor: 1, devMinor: 3 }),
    header({
      name: "old",
      type: "S",
      magic: GNU,
      size: 700,
      raw: {
        386: octal(512) + octal(600) + octal(3000) + octal(100),
        483: octal(4000),
        482: "\x01",
      },
    }),
    new Uint8Array(512),
    padded(noise(random, 700)),
    pax([
      ["GNU.sparse.major", "1"],
      ["GNU.sparse.minor", "0"],
      ["GNU.sparse.realsize", "2000"],
    ]),
    member(
      { name: "new" },
      concatBytes([
        padded(new TextEncoder().encode("1\n1024\n512\n")),
        noise(random, 512),
      ]),
    ),
    member({ name: "last" }, "end"),
  );
}

Deno.test("the pieces that the input comes in make no difference", () => {
  const tar = mixed();
  const whole = walk(tar);
  assert.equal(whole.length, 13);
  assert.deepEqual(walk(tar, { cuts: () => 1 }), whole);
  for (let seed = 0; seed < 50; seed++) {
    const random = seeded(seed);
    const top = [3, 600, 3000][seed % 3]!;
    assert.deepEqual(walk(tar, { cuts: () => below(random, top) }), whole);
  }
});

Deno.test("two archives in one piece of memory do not mix", () => {
  const tar = mixed();
  const padding = new Uint8Array(77).fill(0xff);
  const inside = concatBytes([padding, tar, padding]);
  assert.deepEqual(walk(inside.subarray(77, 77 + tar.length)), walk(tar));
});

Deno.test("every prefix of an archive ends or is refused", () => {
  const tar = mixed();
  for (let length = 0; length < tar.length; length += 13) {
    try {
      walk(tar.subarray(0, length));
    } catch (error) {
      assert.ok(error instanceof FormatError, String(error));
    }
  }
});

Deno.test("how an archive may end", () => {
  const file = member({ name: "a" }, "x");
  const zeros = (n: number) => new Uint8Array(n);
  for (const end of [zeros(0), zeros(512), zeros(1024), zeros(10240)]) {
    assert.equal(walk(concatBytes([file, end])).length, 1);
  }
  assert.deepEqual(walk(zeros(0)), []);
  assert.deepEqual(walk(zeros(1024)), []);
  const garbage = noise(seeded(1), 3000);
  assert.equal(walk(concatBytes([file, zeros(1024), garbage])).length, 1);
  assert.equal(walk(concatBytes([file, zeros(1024), file])).length, 1);
  for (
    const end of [
      concatBytes([zeros(512), file]),
      zeros(1),
      zeros(511),
      zeros(513),
      garbage,
    ]
  ) assert.throws(() => walk(concatBytes([file, end])), FormatError);
});

Deno.test("a body may end without its padding, not within its data", () => {
  const content = noise(seeded(4), 700);
  const tar = member({ name: "a" }, content);
  for (const length of [700, 701, 1000, 1023]) {
    const cut = tar.subarray(0, 512 + length);
    const entry = walkOne(cut);
    assert.deepEqual(entry.runs, [{ fileSector: 0, tarSector: 1, sectors: 1 }]);
    assert.equal(entry.patches.length, 1, "the tar lacks the sector's end");
    assert.deepEqual(contentOf(entry, cut), content);
  }
  for (const length of [0, 1, 512, 699]) {
    assert.throws(() => walk(tar.subarray(0, 512 + length)), FormatError);
  }
});

Deno.test("runs around sector boundaries", () => {
  for (const size of [0, 1, 511, 512, 513, 1023, 1024, 1025]) {
    const content = noise(seeded(size), size);
    const tar = archive(member({}, content));
    const entry = walkOne(tar);
    const sectors = Math.ceil(size / 512);
    assert.deepEqual(
      entry.runs,
      sectors === 0 ? [] : [{ fileSector: 0, tarSector: 1, sectors }],
    );
    assert.deepEqual(entry.patches, []);
    assert.deepEqual(contentOf(entry, tar), content);
  }
});

Deno.test("non-zero padding makes the last sector a patch", () => {
  for (const [size, at] of [[1, 1], [511, 511], [700, 700], [700, 1023]]) {
    const content = noise(seeded(size!), size!);
    const tar = archive(member({}, content));
    tar[512 + at!] = 0x80;
    const entry = walkOne(tar);
    assert.equal(entry.patches.length, 1);
    assert.equal(entry.patches[0]!.fileSector, Math.floor(size! / 512));
    assert.deepEqual(contentOf(entry, tar), content);
  }
});

Deno.test("patches belong to the entry", () => {
  const dirty = (name: string, size: number) => {
    const tar = member({ name }, noise(seeded(size), size));
    tar[512 + size] = 1;
    return tar;
  };
  const tar = archive(dirty("a", 100), dirty("b", 50));
  const [a, b] = walk(tar);
  assert.deepEqual(contentOf(a!, tar), noise(seeded(100), 100));
  assert.deepEqual(contentOf(b!, tar), noise(seeded(50), 50));
});

Deno.test("dirty padding counts as patches", () => {
  const dirty = member({ name: "culprit" }, "x");
  dirty[600] = 1;
  const limits = { patchBytes: 1024 };
  walk(archive(dirty, dirty), { limits });
  assert.throws(
    () => walk(archive(dirty, dirty, dirty), { limits }),
    (e: unknown) => e instanceof LimitError && e.message.includes("culprit"),
  );
});

Deno.test("a huge body costs nothing to skip", () => {
  const size = 2 ** 33 - 1;
  let seen = 0;
  const walker = new TarWalker({
    onEntry: (e) => {
      seen++;
      assert.deepEqual(e.runs, [
        { fileSector: 0, tarSector: 1, sectors: 2 ** 24 },
      ]);
    },
  });
  walker.push(header({ size }));
  const piece = new Uint8Array(1024 * 1024);
  for (let i = 0; i < 8192; i++) walker.push(piece);
  walker.finish();
  assert.equal(seen, 1);
});

Deno.test("the receiver's error comes out, and closes the walker", () => {
  const walker = new TarWalker({
    onEntry: () => {
      throw new LimitError("Enough");
    },
  });
  assert.throws(() => walker.push(archive(header({}))), /Enough/);
  assert.throws(() => walker.push(new Uint8Array(1)), TypeError);
  assert.throws(() => walker.finish(), TypeError);
});

Deno.test("fuzz: damaged archives end or are refused with a typed error", () => {
  const tar = mixed();
  let refused = 0;
  for (let seed = 0; seed < 3000; seed++) {
    const random = seeded(seed);
    const damaged = tar.slice();
    for (let i = 1 + below(random, 4); i > 0; i--) {
      const header = 512 * below(random, damaged.length / 512);
      const at = header + below(random, 512);
      damaged[at] = [0, 0xff, 0x80, 0x37, below(random, 256)][
        below(random, 5)
      ]!;
      // Mostly with a right checksum, or nothing behind it would be reached.
      if (below(random, 5) > 0) fixChecksum(damaged, header);
    }
    const cut = below(random, 4) === 0
      ? damaged.subarray(0, below(random, damaged.length))
      : damaged;
    try {
      for (const entry of walk(cut, { cuts: () => 1 + below(random, 2000) })) {
        if (entry.size < 2 ** 20) contentOf(entry, cut);
      }
    } catch (error) {
      assert.ok(error instanceof ObdError, `seed ${seed}: ${error}`);
      refused++;
    }
  }
  assert.ok(refused > 500 && refused < 2900, `${refused} refused`);
});

function fixChecksum(tar: Uint8Array, at: number): void {
  tar.fill(0x20, at + 148, at + 156);
  const sum = tar.subarray(at, at + 512).reduce((a, b) => a + b, 0);
  const text = sum.toString(8).padStart(6, "0") + "\0 ";
  for (let i = 0; i < 8; i++) tar[at + 148 + i] = text.charCodeAt(i);
}
