/** Writable layers that overlaybd's tools made, as the `upper` of a `config.v1.json`. */

import assert from "node:assert/strict";
import { gunzipSync } from "node:zlib";
import { openImage } from "../../lib/image/mod.ts";
import { ObdError, readBytes } from "../../lib/io/mod.ts";
import { lsmtImage } from "../testutil/lsmt_image.ts";
import { Random } from "../testutil/random_layers.ts";
import { golden } from "../testutil/requires.ts";
import {
  AppendLayer,
  SparseLayer,
  WarpLayer,
  writableHeader,
  type WritablePaths,
} from "../testutil/writable_layer.ts";
import { OBD, run, testEnvironment, withTempDir } from "../image/helpers.ts";

const VSIZE = 4 << 20;
const PAGE = 4096;

/** Without the list of differences, which takes minutes for megabytes. */
function assertSame(got: Uint8Array, want: Uint8Array): void {
  assert.equal(got.length, want.length);
  const at = got.findIndex((byte, i) => byte !== want[i]);
  assert.equal(at, -1, `byte ${at} differs`);
}

/** Files of a test, and a configuration of them. */
class Bench {
  readonly upper: WritablePaths;
  readonly dir: string;

  constructor(dir: string) {
    this.dir = dir;
    this.upper = {
      data: `${dir}/writable_data`,
      index: `${dir}/writable_index`,
    };
  }

  /** A sealed lower layer that is `bytes` all over. */
  lower(bytes: Uint8Array): { file: string } {
    const entries = [];
    for (let at = 0; at < bytes.length / 512; at += 16383) {
      const length = Math.min(16383, bytes.length / 512 - at);
      entries.push({ offset: at, length, moffset: 8 + at });
    }
    const file = `${this.dir}/lower`;
    Deno.writeFileSync(
      file,
      lsmtImage({ virtualSize: bytes.length, data: bytes, entries }),
    );
    return { file };
  }

  config(config: Record<string, unknown>): string {
    const path = `${this.dir}/config.v1.json`;
    Deno.writeTextFileSync(path, JSON.stringify(config));
    return path;
  }
}

/** The first bytes of what an image shows, and its size. */
async function show(
  config: string,
): Promise<{ size: number; bytes: Uint8Array }> {
  await using environment = await testEnvironment();
  await using image = await openImage(environment, config);
  const { source } = image;
  return { size: source.size, bytes: await readBytes(source, 0, source.size) };
}

async function refusal(config: string): Promise<string> {
  await using environment = await testEnvironment();
  try {
    await using _ = await openImage(environment, config);
  } catch (error) {
    assert.ok(error instanceof ObdError, String(error));
    return error.message;
  }
  return "nothing was refused";
}

Deno.test("append mode: random writes and trims over a lower layer", async () => {
  await withTempDir(async (dir) => {
    const random = new Random(77);
    const bench = new Bench(dir);
    const shadow = random.bytes(VSIZE);
    const lowers = [bench.lower(shadow.slice())];
    {
      using layer = new AppendLayer(bench.upper, VSIZE, 1);
      for (let i = 0; i < 400; i++) {
        const offset = random.below(VSIZE / 512) * 512;
        const length = Math.min(
          (1 + random.below(i % 50 === 0 ? 4000 : 60)) * 512,
          VSIZE - offset,
        );
        if (i % 5 === 4) {
          layer.trim(offset, length);
          shadow.fill(0, offset, offset + length);
        } else {
          const bytes = random.bytes(length);
          layer.write(offset, bytes);
          shadow.set(bytes, offset);
        }
        if (i % 100 === 50) layer.pad(7);
      }
    }
    const config = bench.config({ lowers, upper: bench.upper });
    const { size, bytes } = await show(config);
    assert.equal(size, VSIZE);
    assertSame(bytes, shadow);
    // An entry that was being written when the machine stopped is left alone.
    const index = Deno.readFileSync(bench.upper.index);
    Deno.writeFileSync(bench.upper.index, index.subarray(0, index.length - 5));
    assert.equal((await show(config)).size, VSIZE);
  });
});

Deno.test("an upper layer without a size of its own has that of the layers below", async () => {
  await withTempDir(async (dir) => {
    const bench = new Bench(dir);
    const lowers = [bench.lower(new Uint8Array(VSIZE).fill(7))];
    {
      using layer = new AppendLayer(bench.upper, 0, 1);
      layer.write(512, new Uint8Array(512).fill(9));
    }
    const { size, bytes } = await show(
      bench.config({ lowers, upper: bench.upper }),
    );
    assert.equal(size, VSIZE);
    assert.deepEqual([bytes[511], bytes[512], bytes[1023], bytes[1024]], [
      7,
      9,
      9,
      7,
    ]);
  });
});

Deno.test("sparse mode: what the file stores hides the lower layer, holes do not", async () => {
  await withTempDir(async (dir) => {
    const random = new Random(78);
    const bench = new Bench(dir);
    const shadow = random.bytes(VSIZE);
    const lowers = [bench.lower(shadow.slice())];
    {
      using layer = new SparseLayer(bench.upper, VSIZE);
      for (let i = 0; i < 40; i++) {
        const offset = random.below(VSIZE / PAGE) * PAGE;
        const length = Math.min(
          (1 + random.below(20)) * PAGE,
          VSIZE - offset,
        );
        const bytes = random.bytes(length);
        layer.write(offset, bytes);
        shadow.set(bytes, offset);
      }
    }
    const config = bench.config({ lowers, upper: bench.upper });
    const { size, bytes } = await show(config);
    assert.equal(size, VSIZE);
    assertSame(bytes, shadow);
    // Only the data file is looked at.
    Deno.removeSync(bench.upper.index);
    assertSame((await show(config)).bytes, shadow);
  });
});

/** A plain tar made here, and the golden gzip file with its index. */
const TARGETS = [
  { name: "plain", target: undefined, gzipIndex: undefined },
  {
    name: "gzip",
    target: golden("unit/txt.gz"),
    gzipIndex: golden("unit/t.idx"),
  },
];

for (const { name, target: made, gzipIndex } of TARGETS) {
  Deno.test({
    name: `a TurboOCI upper layer over a ${name} target`,
    ignore: name === "gzip" && gzipIndex === undefined,
    fn: () =>
      withTempDir(async (dir) => {
        const random = new Random(79);
        const bench = new Bench(dir);
        const lowers = [bench.lower(new Uint8Array(VSIZE).fill(1))];
        const target = made ?? `${dir}/layer.tar`;
        if (!made) Deno.writeFileSync(target, random.bytes(1 << 20));
        const stored = Deno.readFileSync(target);
        const tar = new Uint8Array(made ? gunzipSync(stored) : stored);
        const upper = {
          ...bench.upper,
          target,
          ...(gzipIndex ? { gzipIndex } : {}),
        };
        const shadow = new Uint8Array(VSIZE).fill(1);
        {
          using layer = new WarpLayer(bench.upper, VSIZE, 1);
          layer.map(8192, 4096, 1024);
          shadow.set(tar.subarray(1024, 5120), 8192);
          layer.map(65536, 512_000, 2048);
          shadow.set(tar.subarray(2048, 514_048), 65536);
          const own = random.bytes(1024);
          layer.write(8704, own);
          shadow.set(own, 8704);
        }
        const config = bench.config({ lowers, upper });
        assertSame((await show(config)).bytes, shadow);
        // All entries remote: the number of lower layers tells that they are.
        {
          using layer = new WarpLayer(bench.upper, VSIZE, 1);
          layer.map(0, 512, 512);
        }
        const { bytes } = await show(config);
        assert.deepEqual(bytes.slice(0, 512), tar.slice(512, 1024));
      }),
  });
}

Deno.test({
  name: "golden unit d and i: the append layer shows what its commit shows",
  ignore: golden("unit/plain") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      const bench = new Bench(dir);
      const upper = { data: golden("unit/d")!, index: golden("unit/i")! };
      const { size, bytes } = await show(bench.config({ upper }));
      assert.equal(size, 8 << 20);
      const plain = bench.config({ lowers: [{ file: golden("unit/plain")! }] });
      assertSame(bytes, (await show(plain)).bytes);
      assert.equal(String.fromCharCode(bytes[0]!, bytes[4096]!), "AB");
      // By the command line, and the warning that says what one sees.
      const config = bench.config({ upper });
      const out = `${dir}/out.raw`;
      const { code, stderr } = await run([...OBD, "dump", config, out]);
      assert.equal(code, 0, stderr);
      assert.match(stderr, /writable layer is shown read-only/);
      assertSame(Deno.readFileSync(out), bytes);
    }),
});

Deno.test("files that are no writable layer are refused with the reason", async () => {
  await withTempDir(async (dir) => {
    const bench = new Bench(dir);
    const { data, index } = bench.upper;
    const config = bench.config({ upper: bench.upper });
    const make = () => {
      using layer = new AppendLayer(bench.upper, VSIZE);
      layer.write(0, new Uint8Array(512));
    };
    const cases: [RegExp, () => void][] = [
      [/upper: No index file at/, () => Deno.removeSync(index)],
      [/upper: No data file at/, () => Deno.removeSync(data)],
      [
        /LSMT data file.*flags are 0x7.*it is sealed/,
        () => Deno.writeFileSync(data, writableHeader(7, VSIZE)),
      ],
      [
        /LSMT index file.*flags are 0x3/,
        () => Deno.writeFileSync(index, writableHeader(3, VSIZE)),
      ],
      [
        /LSMT index file.*index_offset is 0/,
        () => {
          const bytes = Deno.readFileSync(index);
          bytes.fill(0, 32, 40);
          Deno.writeFileSync(index, bytes);
        },
      ],
      [
        /LSMT header.*magic/,
        () => Deno.writeFileSync(data, new Uint8Array(8192)),
      ],
      [
        /LSMT index file.*size is 100/,
        () => Deno.writeFileSync(index, new Uint8Array(100)),
      ],
      [
        /entry 0 \(0\+1→8\) maps sectors outside the data area/,
        () => Deno.truncateSync(data, 4096),
      ],
      [
        /virtual_size is \d+, limit/,
        () => Deno.writeFileSync(index, writableHeader(1, 2 ** 50)),
      ],
    ];
    for (const [want, damage] of cases) {
      make();
      assert.deepEqual((await show(config)).bytes.length, VSIZE);
      damage();
      assert.match(await refusal(config), want);
    }
  });
});
