/**
 * What the threads of a pass share.
 *
 *     calling thread ── input ring ──> decode thread ── output ring ──> calling thread (tar walk)
 *                          │                   │             │
 *                          │                   └─ commands ┐ │
 *                          └──────────────────────────> record thread
 *
 * Positions count bytes from the start of the blob or tar; only their low 32
 * bits are shared, which is enough as no two of them are 2 GiB apart. Every
 * thread sleeps on a bell of its own, and whoever changes something rings those
 * that may wait for it. A thread in `Atomics.wait` cannot be terminated
 * (Deno 2.9.6: the process then hangs at its exit), so each one looks at STOP
 * whenever its bell rings, and at least once a second.
 */

import {
  type BoundarySample,
  ByteRing,
  type CheckpointCandidate,
  INPUT_RING_SIZE,
  OUTPUT_RING_SIZE,
  SAMPLE_SIZE,
  WINDOW_SIZE,
} from "../../compress/mod.ts";
import { CancelledError } from "../../io/mod.ts";

/** Words of the control block. */
export const WORD = {
  stop: 0,
  /** Blob bytes in the input ring so far; `inputEnd` is 1 once that is all. */
  inputHead: 1,
  inputEnd: 2,
  /** Below these, the readers no longer need the input ring. */
  inputDecoded: 3,
  inputRecorded: 4,
  /** Tar bytes in the output ring so far; `outputEnd` is 1 once that is all. */
  outputHead: 5,
  outputEnd: 6,
  outputRecorded: 7,
  outputWalked: 8,
  /** Commands written and read. */
  commandHead: 9,
  commandTail: 10,
  /** Samples read. */
  sampleTail: 11,
  feedBell: 12,
  walkBell: 13,
  decodeBell: 14,
  recordBell: 15,
  COUNT: 16,
} as const;

/** Commands of the decode thread to the record thread. */
export const COMMAND = {
  /** With a position. */
  advance: 0,
  /** The others of a span sink; `split` and `resolveSplit` with a candidate. */
  split: 1,
  fork: 2,
  resolveSplit: 3,
  resolveNone: 4,
  end: 5,
} as const;

/** One command. */
export interface Command {
  command: number;
  /** Of ADVANCE. */
  to: number;
  candidate: CheckpointCandidate | undefined;
}

const COMMANDS_MAX = 1024;
/** Float64 words of a command: kind, position, compressed position, sample. */
const COMMAND_WORDS = 4;
/** What a command's last word says when there is no sample; else 1 when `notLast`, or 0. */
const NO_SAMPLE = -1;
const SAMPLES_MAX = 8;
/** Sample slot: three u32 lengths, compressed, before, after. */
const SAMPLE_SLOT = {
  compressed: 16,
  before: 16 + SAMPLE_SIZE,
  after: 16 + SAMPLE_SIZE + WINDOW_SIZE,
  SIZE: 16 + SAMPLE_SIZE + 2 * WINDOW_SIZE,
} as const;
/** Longest sleep, in case of a lost thread. */
const SLEEP_MS = 1000;

const BELLS = [WORD.feedBell, WORD.walkBell, WORD.decodeBell, WORD.recordBell];

/** The memory, as it is posted to workers. */
export interface SharedMemory {
  control: SharedArrayBuffer;
  commands: SharedArrayBuffer;
  samples: SharedArrayBuffer;
  input: SharedArrayBuffer;
  output: SharedArrayBuffer;
}

/** 22 MiB, nearly all of it for the rings. */
export function allocateShared(): SharedMemory {
  return {
    control: new SharedArrayBuffer(4 * WORD.COUNT),
    commands: new SharedArrayBuffer(8 * COMMAND_WORDS * COMMANDS_MAX),
    samples: new SharedArrayBuffer(SAMPLE_SLOT.SIZE * SAMPLES_MAX),
    input: new SharedArrayBuffer(INPUT_RING_SIZE),
    output: new SharedArrayBuffer(OUTPUT_RING_SIZE),
  };
}

/** One thread's view of the shared memory. */
export class SharedState {
  readonly input: ByteRing;
  readonly output: ByteRing;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #commands: Float64Array;
  readonly #samples: Uint8Array;
  readonly #sampleSizes: Uint32Array;
  /** Samples written or read by this thread. */
  #sampleCount = 0;

  constructor(memory: SharedMemory) {
    this.#words = new Int32Array(memory.control);
    this.#commands = new Float64Array(memory.commands);
    this.#samples = new Uint8Array(memory.samples);
    this.#sampleSizes = new Uint32Array(memory.samples);
    this.input = new ByteRing(new Uint8Array(memory.input));
    this.output = new ByteRing(new Uint8Array(memory.output));
  }

  /** The full position behind a word, given one that is at most 2 GiB behind it. */
  position(word: number, before: number): number {
    const low = Atomics.load(this.#words, word);
    return before + ((low - (before % 2 ** 32)) >>> 0);
  }

  setPosition(word: number, position: number): void {
    Atomics.store(this.#words, word, position % 2 ** 32 | 0);
  }

  isSet(word: number): boolean {
    return Atomics.load(this.#words, word) !== 0;
  }

  set(word: number): void {
    Atomics.store(this.#words, word, 1);
  }

  /** Makes every thread end. */
  stop(): void {
    this.set(WORD.stop);
    this.ring(...BELLS);
  }

  ring(...bells: number[]): void {
    for (const bell of bells) {
      Atomics.add(this.#words, bell, 1);
      Atomics.notify(this.#words, bell);
    }
  }

  /**
   * Reads a bell BEFORE looking at what it tells about; sleeping on that value
   * then misses nothing.
   *
   * @throws {CancelledError} If the threads are to stop.
   */
  listen(bell: number): number {
    if (this.isSet(WORD.stop)) throw new CancelledError();
    return Atomics.load(this.#words, bell);
  }

  /** Blocks until the bell has rung since `listen`. Not for the calling thread. */
  sleep(bell: number, heard: number): void {
    Atomics.wait(this.#words, bell, heard, SLEEP_MS);
  }

  /** {@linkcode sleep} for the calling thread. */
  async sleepAsync(bell: number, heard: number): Promise<void> {
    await Atomics.waitAsync(this.#words, bell, heard, SLEEP_MS).value;
  }

  /** Queues a command; blocks the decode thread while the queue is full. */
  putCommand(
    command: number,
    to = 0,
    candidate?: CheckpointCandidate,
  ): void {
    const words = this.#words;
    const head = Atomics.load(words, WORD.commandHead);
    this.#waitFor(WORD.commandTail, head, COMMANDS_MAX);
    const at = COMMAND_WORDS * (head & (COMMANDS_MAX - 1));
    this.#commands[at] = command;
    this.#commands[at + 1] = candidate?.uncompressedOffset ?? to;
    this.#commands[at + 2] = candidate?.compressedOffset ?? 0;
    this.#commands[at + 3] = NO_SAMPLE;
    if (candidate?.sample) {
      this.#putSample(candidate.sample);
      this.#commands[at + 3] = candidate.sample.notLast ? 1 : 0;
    }
    Atomics.store(words, WORD.commandHead, (head + 1) | 0);
    this.ring(WORD.recordBell);
  }

  /** Blocks the decode thread until fewer than `limit` of `head` are left to read. */
  #waitFor(tailWord: number, head: number, limit: number): void {
    while (true) {
      const heard = this.listen(WORD.decodeBell);
      if (((head - Atomics.load(this.#words, tailWord)) | 0) < limit) return;
      this.sleep(WORD.decodeBell, heard);
    }
  }

  #putSample(sample: BoundarySample): void {
    this.#waitFor(WORD.sampleTail, this.#sampleCount, SAMPLES_MAX);
    const slot = SAMPLE_SLOT.SIZE * (this.#sampleCount++ % SAMPLES_MAX);
    const { compressed, before, after } = sample;
    this.#sampleSizes.set(
      [compressed.length, before.length, after.length],
      slot / 4,
    );
    this.#samples.set(compressed, slot + SAMPLE_SLOT.compressed);
    this.#samples.set(before, slot + SAMPLE_SLOT.before);
    this.#samples.set(after, slot + SAMPLE_SLOT.after);
  }

  /**
   * The next command, if there is one. Its sample is valid until
   * {@linkcode releaseSample}, which must follow.
   */
  takeCommand(): Command | undefined {
    const words = this.#words;
    const tail = Atomics.load(words, WORD.commandTail);
    if (tail === Atomics.load(words, WORD.commandHead)) return undefined;
    const at = COMMAND_WORDS * (tail & (COMMANDS_MAX - 1));
    const command = this.#commands[at]!;
    const to = this.#commands[at + 1]!;
    const compressedOffset = this.#commands[at + 2]!;
    const flag = this.#commands[at + 3]!;
    Atomics.store(words, WORD.commandTail, (tail + 1) | 0);
    this.ring(WORD.decodeBell);
    const hasCandidate = command === COMMAND.split ||
      command === COMMAND.resolveSplit;
    if (!hasCandidate) return { command, to, candidate: undefined };
    const sample = flag === NO_SAMPLE ? undefined : this.#sampleAt(flag === 1);
    return {
      command,
      to,
      candidate: { compressedOffset, uncompressedOffset: to, sample },
    };
  }

  #sampleAt(notLast: boolean): BoundarySample {
    const slot = SAMPLE_SLOT.SIZE * (this.#sampleCount % SAMPLES_MAX);
    const part = (index: number, from: number) => {
      const size = this.#sampleSizes[slot / 4 + index]!;
      return this.#samples.subarray(slot + from, slot + from + size);
    };
    return {
      compressed: part(0, SAMPLE_SLOT.compressed),
      before: part(1, SAMPLE_SLOT.before),
      after: part(2, SAMPLE_SLOT.after),
      notLast,
    };
  }

  /** Lets the decode thread use the slot of the sample that was taken last. */
  releaseSample(): void {
    this.#sampleCount++;
    Atomics.store(this.#words, WORD.sampleTail, this.#sampleCount | 0);
    this.ring(WORD.decodeBell);
  }
}
