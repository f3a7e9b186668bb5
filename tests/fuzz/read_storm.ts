/**
 * The whole way of a read, under everything that may go wrong at once: readers
 * that leave, a registry that lies, breaks off and hangs, threads that crash,
 * disks that fail, caches that are too small. Every byte is compared, and at the
 * end of a round nothing may be held any more.
 */

import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { CodecPool, zstdCompress } from "../../lib/compress/mod.ts";
import {
  ByteBudget,
  type ByteSource,
  concatBytes,
  equalBytes,
  ObdError,
  type ReadOptions,
  toHex,
} from "../../lib/io/mod.ts";
import {
  CachedSource,
  CacheStore,
  type CacheStoreOptions,
  type LayerScan,
  SpanCache,
} from "../../lib/layers/mod.ts";
import { RegistryClient } from "../../lib/registry/mod.ts";
import { onlyCredentials } from "../registry/helpers.ts";
import { fileWith } from "../testutil/cache_store.ts";
import { type Fault, RegistryServer } from "../testutil/registry_server.ts";
import { digestOf, plausibleBytes, scanInline } from "./layers_made.ts";
import { Random } from "./random.ts";
import { openScanned } from "./read_spans.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
/** Most spans have more compressed bytes than are reported at once, so that they are decoded as they come. */
const SPAN_SIZE = 600_000;
const READERS = 12;
const DIGEST_SIZE = 32;
/** A read that takes longer hangs: all deadlines of a round are below two seconds. */
const HANG_MS = 30_000;
const TICK_MS = 500;
const LIMITS = {
  answerMs: 400,
  stallMs: 300,
  attempts: 4,
  totalMs: 2000,
  pauseMs: 2,
  pauseMaxMs: 10,
};

/** A blob in the registry, and what reading it must give. */
interface Blob {
  name: string;
  blob: Uint8Array<ArrayBuffer>;
  content: Uint8Array;
  /** Undefined: read as it is, so that nobody finds out wrong bytes. */
  scan: LayerScan | undefined;
}

/** What a round had. */
export interface StormReport {
  /** Reads that gave what they should. */
  right: number;
  /** Reads that failed, by code. */
  failed: Record<string, number>;
  /** Spans that were decoded as they came. */
  streams: number;
  /** Requests to the registry that were spoilt. */
  faults: number;
}

let made: Promise<Blob[]> | undefined;

async function makeBlobs(): Promise<Blob[]> {
  const scanned = async (
    name: string,
    parts: Uint8Array[],
    content: Uint8Array,
  ) => {
    const blob = concatBytes(parts);
    return {
      name,
      blob,
      content,
      scan: await scanInline(blob, undefined, SPAN_SIZE),
    };
  };
  const one = noisyBytes(1, 5_000_003);
  const members = [
    one.subarray(0, 1_700_000),
    one.subarray(1_700_000, 1_700_010),
    one.subarray(1_700_010),
  ];
  const two = noisyBytes(2, 3_000_001);
  const frames: Uint8Array[] = [];
  for (let at = 0; at < two.length; at += 250_000) {
    frames.push(zstdCompress(two.subarray(at, at + 250_000)));
  }
  const native = noisyBytes(3, 4 * MIB + 64 * KIB + 5);
  return [
    await scanned("gzip", members.map((member) => zlib.gzipSync(member)), one),
    await scanned("zstd", frames, two),
    { name: "native", blob: native, content: native, scan: undefined },
  ];
}

/** Bytes that compress by a third. */
function noisyBytes(seed: number, length: number): Uint8Array<ArrayBuffer> {
  const random = new Random(seed, "storm");
  const bytes = plausibleBytes(length, seed);
  for (let at = 0; at < length; at += 3000) {
    bytes.set(random.bytes(Math.min(2000, length - at)), at);
  }
  return bytes;
}

/** @param isChecked Whether the reader finds wrong bytes out. */
function randomFault(random: Random, isChecked: boolean): Fault {
  const afterBytes = random.length(500_000) - 1;
  // Most bodies come bit by bit, as from far away.
  if (!random.oneIn(3)) {
    return { kind: "drip", bytes: 100_000, milliseconds: random.below(8) };
  }
  const faults: Fault[] = [
    { kind: "status", status: random.pick([404, 429, 500, 503]) },
    { kind: "drip", bytes: 1 + afterBytes, milliseconds: 1 },
    { kind: "truncate", afterBytes },
    { kind: "truncate", afterBytes: random.below(500_000) },
    { kind: "shorten", bytes: 1 + afterBytes },
    { kind: "cut-range", bytes: 1 + afterBytes },
    { kind: "hang", afterBytes },
    { kind: "delay", milliseconds: random.below(50) },
    { kind: "ignore-range" },
    { kind: "shift-range", by: random.pick([-1, 1, 4096]) },
    { kind: "silence" },
  ];
  if (isChecked) {
    for (let i = 0; i < 12; i++) {
      faults.push({ kind: "corrupt", at: random.below(400_000) });
    }
  }
  return random.pick(faults);
}

/** Counts its streams; now and then says that no thread is free. */
class StormPool extends CodecPool {
  streams = 0;
  /** Streams that have not settled. */
  open = 0;
  readonly #random: Random;

  constructor(random: Random) {
    super({ threads: 1 + random.below(4), idleMs: random.pick([5, 500]) });
    this.#random = random;
  }

  override streamSpan(job: Parameters<CodecPool["streamSpan"]>[0]) {
    if (this.#random.oneIn(10)) return undefined;
    const stream = super.streamSpan(job);
    if (!stream) return undefined;
    this.streams++;
    this.open++;
    stream.bytes.catch(() => {}).finally(() => this.open--);
    return stream;
  }
}

/** Where a round keeps what it has read: nothing, a little, or what earlier rounds left. */
async function openStore(
  random: Random,
  directory: string,
  name: string,
): Promise<CacheStore | undefined> {
  if (random.oneIn(4)) return undefined;
  const isFailing = random.oneIn(4);
  const options: CacheStoreOptions = {
    directory,
    sizeBytes: random.pick([1, 4, 32, 64]) * MIB,
    keepFreeBytes: 0,
    queueBytes: random.pick([512 * KIB, 32 * MIB]),
    retryMs: 5,
    wrapFile: (file) =>
      fileWith(file, {
        pwrite: async (src, offset) => {
          await pause(random.below(4));
          if (isFailing && random.oneIn(4)) throw new Error("disk failed");
          await file.pwrite(src, offset);
        },
      }),
  };
  return random.oneIn(2)
    ? await CacheStore.temporary(options)
    : await CacheStore.open({ ...options, directory: `${directory}/${name}` });
}

/**
 * A round of reads.
 *
 * @param options `seed` chooses what is there, what is read and what goes wrong
 * (not when: threads and sockets have their own time). `directory` is where
 * rounds leave their caches to later ones.
 * @throws {AssertionError} When a read gave wrong bytes, failed with what is no
 * `ObdError`, hung, or something is held when nothing runs any more.
 */
export async function readStorm(
  options: { seed: number; reads: number; directory: string },
): Promise<StormReport> {
  const { seed, reads, directory } = options;
  const random = new Random(seed, "round");
  const blobs = await (made ??= makeBlobs());
  const report: StormReport = { right: 0, failed: {}, streams: 0, faults: 0 };
  await using stack = new AsyncDisposableStack();
  const server = stack.use(
    await RegistryServer.start({ redirect: random.oneIn(2) }),
  );
  const client = stack.use(
    new RegistryClient({
      credentials: onlyCredentials(),
      certsDirectories: [],
      limits: LIMITS,
    }),
  );
  const pool = stack.use(new StormPool(random));
  const spans = await openStore(random, directory, "spans");
  if (spans) stack.use(spans);
  const store = await openStore(random, directory, "blobs");
  if (store) stack.use(store);
  const cache = new SpanCache({
    ...(spans && { store: spans }),
    memoryBytes: random.pick([1, MIB, 8 * MIB]),
    inFlightBytes: random.pick([1, 2 * MIB, 64 * MIB]),
  });
  const budget = new ByteBudget(random.pick([1, MIB, 32 * MIB]));
  const open = async (blob: Blob) => {
    const descriptor = await server.putBlob("app", blob.blob);
    const cached = new CachedSource(
      await client.open(server.host, "app").openBlob(descriptor),
      {
        key: descriptor.digest,
        store,
        budget,
        readaheadBytes: random.pick([0, MIB]),
        blockSize: random.pick([64, 256]) * KIB,
      },
    );
    const source: ByteSource = !blob.scan
      ? cached
      : openScanned(blob.blob, blob.scan, SPAN_SIZE, {
        source: cached,
        codec: pool,
        cache,
        deadlineMs: 2000,
        readaheadBytes: random.pick([0, 2 * MIB]),
      })!;
    stack.use(source);
    return { blob, cached, source, isClosed: false };
  };
  const sources = await Promise.all(blobs.map(open));
  type Opened = typeof sources[number];

  /** @returns Whether the read was right; false when it failed as it may. */
  const readOne = async (
    { blob, source }: Opened,
    [offset, length]: [number, number],
    options: ReadOptions,
  ): Promise<boolean> => {
    const dst = new Uint8Array(length).fill(0xee);
    const where = `${blob.name} ${offset}+${length}, seed ${seed}`;
    try {
      await settled(source.pread(dst, offset, options), where);
    } catch (error) {
      if (!(error instanceof ObdError)) throw error;
      report.failed[error.code] = (report.failed[error.code] ?? 0) + 1;
      return false;
    }
    const want = blob.content.subarray(offset, offset + length);
    assert.ok(equalBytes(dst, want), `wrong bytes: ${where}`);
    // Later, too: what was read is the reader's.
    await pause(0);
    assert.ok(equalBytes(dst, want), `bytes changed: ${where}`);
    report.right++;
    return true;
  };
  const someRange = ({ content }: Blob): [number, number] => {
    const length = random.oneIn(8)
      ? random.length(1_500_000)
      : random.length(20_000);
    return [random.below(content.length - length + 1), length];
  };
  /** Else each span would be made once, and from the cache below soon. */
  const lose = ({ blob, cached }: Opened): void => {
    if (random.oneIn(3)) cache.memory.clear();
    if (random.oneIn(3)) cached.discard(0, cached.size);
    const digests = blob.scan?.spans.sha256;
    if (!spans || !digests) return;
    const at = random.below(digests.length / DIGEST_SIZE) * DIGEST_SIZE;
    const digest = digests.subarray(at, at + DIGEST_SIZE);
    const entry = spans.peek(`sha256:${toHex(digest)}`);
    if (entry) spans.drop(entry);
  };
  const act = async (): Promise<void> => {
    // Most in the layer whose spans are decoded as they come.
    const opened = random.pick([sources[0]!, ...sources]);
    const { blob, source } = opened;
    lose(opened);
    const control = new AbortController();
    const { signal } = control;
    const timer = random.oneIn(3)
      ? setTimeout(() => control.abort(), random.below(40))
      : undefined;
    const [offset, length] = someRange(blob);
    const done = random.oneIn(10)
      ? settled(source.prefetch!(offset, length, { signal }), blob.name)
      : readOne(opened, [offset, length], {
        signal,
        priority: random.oneIn(5) ? "prefetch" : "demand",
      });
    done.catch(() => {}); // looked at below
    if (random.oneIn(4)) {
      const isChecked = blob.scan !== undefined;
      const path = new RegExp(digestOf(blob.blob));
      server.faults.add({ fault: randomFault(random, isChecked), path });
    }
    if (random.oneIn(40)) pool.crashForTest().catch(() => {});
    if (random.oneIn(3 * reads) && !opened.isClosed) {
      opened.isClosed = true;
      await source[Symbol.asyncDispose]();
    }
    try {
      await done;
    } catch (error) {
      if (!(error instanceof ObdError)) throw error;
    }
    clearTimeout(timer);
  };
  let left = reads;
  await Promise.all(
    Array.from({ length: READERS }, async () => {
      while (left-- > 0) await act();
    }),
  );

  // All is well again: whatever went wrong left nothing behind.
  server.faults.clear();
  for (const opened of sources) {
    const { size } = opened.source;
    for (let at = 0; at < size && !opened.isClosed; at += MIB) {
      const range: [number, number] = [at, Math.min(MIB, size - at)];
      let isRight = false;
      // What was under way may have met a fault.
      for (let n = 0; n < 4 && !isRight; n++) {
        isRight = await readOne(opened, range, {});
      }
      assert.ok(isRight, `${opened.blob.name} stays unreadable, seed ${seed}`);
    }
    await settled(opened.source[Symbol.asyncDispose](), "closing");
  }
  await pause(0);
  assert.equal(pool.open, 0, `streams that nobody ended, seed ${seed}`);
  assert.equal(cache.budget.taken, 0, `spans in flight, seed ${seed}`);
  assert.equal(budget.taken, 0, `bytes in flight, seed ${seed}`);
  report.streams = pool.streams;
  report.faults = server.requests.filter((r) => r.fault).length;
  return report;
}

/**
 * What `promise` gives; fails when it takes far longer than any deadline, in
 * time that this process had: one that stood still is not late.
 */
async function settled<T>(promise: PromiseLike<T>, what: string): Promise<T> {
  let timer: ReturnType<typeof setInterval> | undefined;
  const late = new Promise<never>((_, reject) => {
    let ticks = 0;
    timer = setInterval(() => {
      if (++ticks * TICK_MS < HANG_MS) return;
      reject(new assert.AssertionError({ message: `hangs: ${what}` }));
    }, TICK_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearInterval(timer);
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
