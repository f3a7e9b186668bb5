/** Small formats: tar wrappers, traces. */

import { equalBytes, latin1FromBytes } from "../../../lib/io/mod.ts";
import {
  decodeTrace,
  DEVICE_LAYER,
  encodeTrace,
  findTarPayload,
  type TraceRecord,
} from "../../../lib/layers/mod.ts";
import type { Mutant } from "../mutant.ts";
import { Random } from "../random.ts";
import {
  goldenFiles,
  putCrc32c,
  putTarChecksum,
  sourceOf,
  u64,
} from "../seeds.ts";
import { must, type Seed, type Target } from "../target.ts";

const HEADER = 24;
const RECORD = 24;

function wrapperSeeds(): Seed[] {
  const names = [
    ...["unit/tw_ustar", "unit/tw_gnu", "unit/tw_pax", "unit/zt"],
    "native-lz4/layer2.overlaybd.commit",
  ];
  return goldenFiles(names).map(([name, bytes]): Seed => {
    return {
      name,
      bytes,
      hot: [[0, 512], [100, 160], [257, 265], [512, 600], [1024, 1536]],
      repair(mutant) {
        putTarChecksum(mutant, 0);
        putTarChecksum(mutant, 1024);
      },
      async read({ bytes }) {
        const payload = await findTarPayload(sourceOf(bytes));
        if (!payload) return;
        const { offset, size } = payload;
        must(offset === 512 || offset === 1536, `Payload at ${offset}`);
        must(size >= 0 && offset + size <= bytes.length, `Payload of ${size}`);
        must(
          latin1FromBytes(bytes.subarray(257, 262)) === "ustar",
          "No ustar header",
        );
      },
    };
  });
}

/** A trace of overlaybd's form with `count` records. */
function traceSeed(count: number): Seed {
  const random = new Random(count, "trace");
  const records: TraceRecord[] = Array.from({ length: count }, () => ({
    layer: random.oneIn(2) ? DEVICE_LAYER : random.below(9),
    offset: random.below(2 ** 20) * 4096,
    length: (1 + random.below(256)) * 4096,
  }));
  const bytes = encodeTrace(records);
  return {
    name: `${count} records`,
    bytes,
    hot: [[0, 20], [HEADER, bytes.length]],
    repair(mutant: Mutant) {
      const data = Math.max(0, mutant.length - HEADER);
      mutant.write(8, u64(data - data % RECORD));
      mutant.resize(HEADER + data - data % RECORD);
      putCrc32c(mutant, 16, HEADER, mutant.length);
    },
    read({ bytes: input, repaired }) {
      const got = decodeTrace(input);
      for (const { layer, offset, length } of got) {
        must(layer >= 0 && offset >= 0 && length >= 0, "A record is negative");
        must(Number.isSafeInteger(offset + length), "A record is too far off");
      }
      if (repaired || input.length !== bytes.length) return;
      // Zeros have the checksum zero: only a header that stayed protects anything.
      const head = input.subarray(0, HEADER);
      if (!equalBytes(head, bytes.subarray(0, HEADER))) return;
      must(
        JSON.stringify(got) === JSON.stringify(records),
        "Records differ, the checksum does not",
      );
    },
  };
}

/** Targets of this file. */
export const SMALL_TARGETS: Target[] = [
  {
    name: "tar-wrapper",
    summary: "the one-member tar around native layers",
    weight: 30,
    load: () => Promise.resolve(wrapperSeeds()),
  },
  {
    name: "trace",
    summary: "trace files of overlaybd's form",
    weight: 30,
    load: () => Promise.resolve([0, 1, 40].map(traceSeed)),
  },
];
