/**
 * Does a build grow linearly? Images of 125,000, 250,000, 500,000 and 1,000,000
 * files, generated as tar streams, and of 50 GB: as sparse files, and as one
 * body of that many bytes that compress well. Each is built by a process of its
 * own; printed are time and peak memory, by file and against the budget of
 * {@linkcode memoryBudget}.
 *
 * `deno run -A bench/scale.ts [--case NAME] [--files N,N…] [--gigabytes N] [--jobs N] [--dump]`
 *
 * The result is then opened: its entries are counted, files picked at random
 * are compared with what was generated, and with `--dump` the whole device is
 * written to a sparse file that `e2fsck -fn` looks at.
 */

import { parseArgs } from "node:util";
import { Ext4Reader } from "../lib/ext4/mod.ts";
import { openEnvironment, openImage } from "../lib/image/mod.ts";
import { type ByteSource, equalBytes, readBytes } from "../lib/io/mod.ts";
import { pax } from "../tests/tar/tar_bytes.ts";
import { file, tarEntry } from "../tests/testutil/oci_image.ts";
import { Random } from "../tests/testutil/random_layers.ts";
import {
  buildPeak,
  contentOf,
  manyFiles,
  memoryBudget,
  MIB,
  pathOf,
  writeImage,
} from "./generated_image.ts";

const GB = 1e9;
const MAIN = new URL("../main.ts", import.meta.url).pathname;
/** Files whose content is compared. */
const SAMPLES = 300;
/** Sparse files of the 50 GB. */
const SPARSE_FILES = 10;
/** Distance of a sparse file's segments, and bytes of each. */
const SEGMENT_DISTANCE = 50 * MIB;
const SEGMENT_SIZE = 4096;

interface Case {
  name: string;
  /** Without the directories, which are entries too. */
  files: number;
  entries: number;
  layer: () => Iterable<Uint8Array>;
  /** What the build needs of options. */
  options: string[];
  /** Picks one file that was generated. */
  pick: (random: Random) => Sample;
}

/** A range of a file that must hold these bytes. */
interface Sample {
  path: string;
  size: number;
  offset: number;
  bytes: Uint8Array;
}

function manyFilesCase(files: number): Case {
  return {
    name: "files",
    files,
    entries: files + Math.ceil(files / 25),
    layer: () => manyFiles("scale", files),
    options: files > 3_000_000 ? ["--vsize", "256"] : [],
    pick: (random) => {
      const i = random.below(files);
      const bytes = new TextEncoder().encode(contentOf("scale", i));
      return { path: pathOf("scale", i), size: bytes.length, offset: 0, bytes };
    },
  };
}

/** Sparse files in the PAX form of GNU tar (1.0): a map, then the segments. */
function sparseCase(gigabytes: number): Case {
  const size = Math.floor(gigabytes * GB / SPARSE_FILES);
  const count = Math.floor(size / SEGMENT_DISTANCE);
  const segment = (file: number, i: number) =>
    new Uint8Array(SEGMENT_SIZE).fill(1 + (file * 31 + i) % 255);
  return {
    name: "sparse",
    files: SPARSE_FILES,
    entries: SPARSE_FILES,
    *layer() {
      for (let i = 0; i < SPARSE_FILES; i++) {
        const segments = Array.from({ length: count }, (_, at) => ({
          offset: at * SEGMENT_DISTANCE,
          bytes: segment(i, at),
        }));
        yield tarEntry(
          file(`sparse-${i}`, "", { sparse: { size, segments } }),
        );
      }
      yield new Uint8Array(1024);
    },
    options: [],
    pick: (random) => {
      const i = random.below(SPARSE_FILES);
      const at = random.below(count);
      const isHole = random.below(2) === 0;
      return {
        path: `sparse-${i}`,
        size,
        offset: at * SEGMENT_DISTANCE + (isHole ? SEGMENT_SIZE : 0),
        bytes: isHole ? new Uint8Array(SEGMENT_SIZE) : segment(i, at),
      };
    },
  };
}

/** One file whose size only a PAX record can say, of pieces that differ in their first bytes. */
function bodyCase(gigabytes: number): Case {
  const size = Math.floor(gigabytes * GB);
  const piece = new Uint8Array(MIB);
  for (let i = 0; i < piece.length; i++) piece[i] = (i >> 8) & 0xff;
  const pieceAt = (index: number) => {
    new DataView(piece.buffer).setUint32(0, index);
    return piece;
  };
  return {
    name: "body",
    files: 1,
    entries: 1,
    *layer() {
      yield pax([["size", String(size)]]);
      yield tarEntry(file("body", ""));
      for (let at = 0; at < size; at += MIB) {
        yield pieceAt(at / MIB).slice(0, Math.min(MIB, size - at));
      }
      yield new Uint8Array((512 - size % 512) % 512 + 1024);
    },
    options: size > 60 * 2 ** 30 ? ["--vsize", "256"] : [],
    pick: (random) => {
      const index = random.below(Math.floor(size / MIB));
      const bytes = pieceAt(index).slice(0, 8192);
      return { path: "body", size, offset: index * MIB, bytes };
    },
  };
}

/** Entries of the built image, and how many of the files that were looked at are right. */
async function check(
  image: string,
  from: Case,
): Promise<{ entries: number; segments: number; openMs: number }> {
  await using environment = await openEnvironment({});
  const started = performance.now();
  await using opened = await openImage(environment, image, {
    metaFrom: ["tag"],
  });
  const openMs = Math.round(performance.now() - started);
  const reader = await Ext4Reader.open(opened.source);
  let entries = 0;
  for await (const _ of reader.walk()) entries++;
  const random = new Random(1);
  for (let i = 0; i < SAMPLES; i++) {
    const sample = from.pick(random);
    await compare(reader, sample);
  }
  return { entries, segments: opened.source.table.count, openMs };
}

async function compare(reader: Ext4Reader, sample: Sample): Promise<void> {
  const ino = await reader.lookup(sample.path);
  await using body: ByteSource = await reader.openFile(ino);
  const { offset, bytes } = sample;
  const got = body.size === sample.size &&
    await readBytes(body, offset, bytes.length);
  if (!got || !equalBytes(got, bytes)) {
    throw new Error(`${sample.path} is wrong at ${offset}`);
  }
}

/** Writes the device and has it checked; the seconds that both took. */
async function dump(image: string, path: string): Promise<number> {
  const started = performance.now();
  for (
    const command of [
      [Deno.execPath(), "run", "-A", MAIN, "dump", image, path],
      ["e2fsck", "-fn", path],
    ]
  ) {
    const { code, stdout, stderr } = await new Deno.Command(command[0]!, {
      args: command.slice(1),
      env: { PATH: `${Deno.env.get("PATH")}:/sbin:/usr/sbin` },
      stdin: "null",
    }).output();
    if (code !== 0) {
      const text = new TextDecoder();
      throw new Error(
        `${command.join(" ")}: ${text.decode(stdout)}${text.decode(stderr)}`,
      );
    }
  }
  return (performance.now() - started) / 1000;
}

async function runCase(
  from: Case,
  flags: { jobs?: string | undefined; dump?: boolean | undefined },
): Promise<number> {
  const layout = await Deno.makeTempDir({ prefix: "obd-bench-" });
  try {
    await writeImage(layout, [from.layer]);
    const { peak, seconds, cpuSeconds, report } = await buildPeak(
      layout,
      flags.jobs,
      ...from.options,
    );
    const [layer] = report.layers;
    const checked = await check(`oci:${layout}:v1`, from);
    const dumpSeconds = flags.dump
      ? await dump(`oci:${layout}:v1-obd`, `${layout}/raw`)
      : undefined;
    const budget = memoryBudget(from.entries);
    const round = (value: number) => Math.round(value * 100) / 100;
    console.log(JSON.stringify({
      bench: "scale",
      case: from.name,
      files: from.files,
      blobMB: round(layer!.size / 1e6),
      metaMB: round(layer!.metaSize / 1e6),
      metaLayers: layer!.parts ?? 1,
      seconds: round(seconds),
      cpuSeconds: round(cpuSeconds),
      cpuMicrosPerFile: Math.round(cpuSeconds / from.files * 1e6),
      peakMiB: Math.round(peak / MIB),
      bytesPerFile: Math.round(peak / from.files),
      budgetMiB: Math.round(budget / MIB),
      isWithin: peak <= budget,
      ...checked,
      samplesRight: SAMPLES,
      ...(dumpSeconds === undefined ? {} : { dumpSeconds: round(dumpSeconds) }),
    }));
    return cpuSeconds / from.files;
  } finally {
    await Deno.remove(layout, { recursive: true });
  }
}

const { values } = parseArgs({
  options: {
    case: { type: "string" },
    files: { type: "string", default: "125000,250000,500000,1000000" },
    gigabytes: { type: "string", default: "50" },
    jobs: { type: "string" },
    dump: { type: "boolean" },
  },
});
const gigabytes = Number(values.gigabytes);
const byFiles = values.files.split(",").map(Number).map(manyFilesCase);
/** CPU seconds: what else runs on the machine takes time, but not theirs. */
const perFile: number[] = [];
for (const each of [...byFiles, sparseCase(gigabytes), bodyCase(gigabytes)]) {
  if (values.case && values.case !== each.name) continue;
  const cpuSeconds = await runCase(each, values);
  if (each.name === "files") perFile.push(cpuSeconds);
}
if (perFile.length > 1) {
  console.log(JSON.stringify({
    bench: "scale",
    // 1 is linear: as much time for a file of the most as for one of the fewest.
    growth: Math.round(perFile.at(-1)! / perFile[0]! * 100) / 100,
  }));
}
