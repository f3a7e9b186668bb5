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
  ByteRing,
  INPUT_RING_SIZE,
  OUTPUT_RING_SIZE,
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
  feedBell: 11,
  walkBell: 12,
  decodeBell: 13,
  recordBell: 14,
  COUNT: 15,
} as const;

/** Commands of the decode thread to the record thread. */
export const COMMAND = {
  /** With a position. */
  advance: 0,
  split: 1,
  end: 2,
} as const;

/** One command. */
export interface Command {
  command: number;
  /** Of ADVANCE. */
  to: number;
}

const COMMANDS_MAX = 1024;
/** Float64 words of a command: kind, position. */
const COMMAND_WORDS = 2;
/** Longest sleep, in case of a lost thread. */
const SLEEP_MS = 1000;

const BELLS = [WORD.feedBell, WORD.walkBell, WORD.decodeBell, WORD.recordBell];

/** The memory, as it is posted to workers. */
export interface SharedMemory {
  control: SharedArrayBuffer;
  commands: SharedArrayBuffer;
  input: SharedArrayBuffer;
  output: SharedArrayBuffer;
}

/** 12 MiB, nearly all of it for the rings. */
export function allocateShared(): SharedMemory {
  return {
    control: new SharedArrayBuffer(4 * WORD.COUNT),
    commands: new SharedArrayBuffer(8 * COMMAND_WORDS * COMMANDS_MAX),
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

  constructor(memory: SharedMemory) {
    this.#words = new Int32Array(memory.control);
    this.#commands = new Float64Array(memory.commands);
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
  putCommand(command: number, to = 0): void {
    const words = this.#words;
    const head = Atomics.load(words, WORD.commandHead);
    while (true) {
      const heard = this.listen(WORD.decodeBell);
      const tail = Atomics.load(words, WORD.commandTail);
      if (((head - tail) | 0) < COMMANDS_MAX) break;
      this.sleep(WORD.decodeBell, heard);
    }
    const at = COMMAND_WORDS * (head & (COMMANDS_MAX - 1));
    this.#commands[at] = command;
    this.#commands[at + 1] = to;
    Atomics.store(words, WORD.commandHead, (head + 1) | 0);
    this.ring(WORD.recordBell);
  }

  /** The next command, if there is one. */
  takeCommand(): Command | undefined {
    const words = this.#words;
    const tail = Atomics.load(words, WORD.commandTail);
    if (tail === Atomics.load(words, WORD.commandHead)) return undefined;
    const at = COMMAND_WORDS * (tail & (COMMANDS_MAX - 1));
    const command = this.#commands[at]!;
    const to = this.#commands[at + 1]!;
    Atomics.store(words, WORD.commandTail, (tail + 1) | 0);
    this.ring(WORD.decodeBell);
    return { command, to };
  }
}
