/** The ways through a pass: on the calling thread, or over one or two more. */

import { setImmediate } from "node:timers";
import {
  ByteRing,
  INPUT_RING_SIZE,
  OUTPUT_RING_SIZE,
  unpackError,
} from "../../compress/mod.ts";
import { CancelledError, ObdError, startWorker } from "../../io/mod.ts";
import { CheckpointList } from "./checkpoint_list.ts";
import {
  type DecoderSettings,
  type LayerDecoder,
  openDecoder,
} from "./layer_decoder.ts";
import { type LayerRecord, LayerRecorder } from "./layer_recorder.ts";
import { RecordLoop } from "./record_loop.ts";
import {
  DECODE_ROLE,
  type DecodeOutcome,
  PASS_WORKER_URL,
  type PassReply,
  RECORD_ROLE,
} from "./pass_worker.ts";
import { allocateShared, SharedState, WORD } from "./shared.ts";
import type { TarReceiver } from "./types.ts";

/** All that a pass finds out. */
export interface StageOutcome extends DecodeOutcome {
  record: LayerRecord;
}

/** Takes a blob in pieces. */
export interface PassStage extends AsyncDisposable {
  /** Takes one piece; resolves when `bytes` may be reused. Rejects with the first error of any stage. */
  write(bytes: Uint8Array): Promise<void>;
  /** The blob is over. */
  end(): Promise<StageOutcome>;
}

/** Everything on the calling thread. */
export class InlineStage implements PassStage {
  readonly #input = new ByteRing(new Uint8Array(INPUT_RING_SIZE));
  readonly #output = new ByteRing(new Uint8Array(OUTPUT_RING_SIZE));
  readonly #recorder: LayerRecorder;
  readonly #checkpoints = new CheckpointList();
  readonly #decoder: LayerDecoder;
  readonly #walker: TarReceiver | undefined;
  #head = 0;
  #walked = 0;

  constructor(settings: DecoderSettings, walker: TarReceiver | undefined) {
    this.#walker = walker;
    this.#recorder = new LayerRecorder(
      settings.compression,
      this.#input,
      this.#output,
    );
    const recorder = this.#recorder;
    this.#decoder = openDecoder(settings, this.#input, this.#output, {
      advance: (to) => recorder.advance(to),
      split: (checkpoint) => {
        this.#checkpoints.push(checkpoint);
        recorder.split();
      },
    });
  }

  // deno-lint-ignore require-await -- an error must reject, not throw
  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      const room = this.#input.capacity -
        (this.#head - this.#decoder.inputNeeded);
      const piece = bytes.subarray(at, at + room);
      this.#input.put(this.#head, piece);
      this.#head += piece.length;
      at += piece.length;
      this.#recorder.takeBlob(this.#head);
      this.#run(false);
    }
  }

  // deno-lint-ignore require-await -- an error must reject, not throw
  async end(): Promise<StageOutcome> {
    this.#run(true);
    return {
      record: this.#recorder.finish(),
      tarSize: this.#decoder.uncompressedOffset,
      members: this.#decoder.members,
      checkpoints: this.#checkpoints.columns(),
    };
  }

  #run(isEnd: boolean): void {
    while (true) {
      const read = Math.min(this.#walked, this.#recorder.tarOffset);
      const limit = read + this.#output.capacity;
      const need = this.#decoder.run(this.#head, isEnd, limit);
      const to = this.#decoder.uncompressedOffset;
      if (this.#walker) {
        for (const view of this.#output.views(this.#walked, to)) {
          this.#walker.push(view);
        }
      }
      this.#walked = to;
      if (need !== "output") return;
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#decoder.close();
    return Promise.resolve();
  }
}

/** Tar bytes handed to the walker at once; also the copy out of shared memory. */
const WALK_STEP = 256 * 1024;
/** How long a worker may take to notice that it is to stop. */
const STOP_DEADLINE_MS = 5000;

/** Decoding on a thread of its own; recording too, or between other things on the calling one. */
export class ThreadedStage implements PassStage {
  readonly #state: SharedState;
  readonly #onError: (error: unknown) => void;
  readonly #workers: Worker[] = [];
  readonly #ended: Promise<void>[] = [];
  /** What runs on the calling thread. These never reject: an error fails the stage. */
  readonly #loops: Promise<void>[] = [];
  #outcome: Partial<StageOutcome> = {};
  #error: unknown;
  #failed = false;
  #head = 0;
  #decoded = 0;
  #recorded = 0;

  /**
   * @param threads Threads in all: 2, or 3 to record on one of its own too.
   * @param onError Called with the first error, which `write` and `end` reject with too.
   */
  constructor(
    settings: DecoderSettings,
    walker: TarReceiver | undefined,
    threads: number,
    onError: (error: unknown) => void,
  ) {
    const memory = allocateShared();
    this.#state = new SharedState(memory);
    this.#onError = onError;
    const roles = threads > 2 ? [DECODE_ROLE, RECORD_ROLE] : [DECODE_ROLE];
    for (const role of roles) {
      const worker = startWorker(PASS_WORKER_URL, role);
      this.#workers.push(worker);
      this.#ended.push(this.#watch(worker));
      worker.postMessage({
        ...settings,
        memory,
        hasWalker: walker !== undefined,
      });
    }
    if (threads <= 2) this.#loops.push(this.#guard(this.#record(settings)));
    if (walker) this.#loops.push(this.#guard(this.#walk(walker)));
  }

  /** Resolves when the worker has sent its last message or died. */
  #watch(worker: Worker): Promise<void> {
    return new Promise((resolve) => {
      worker.onmessage = ({ data }: MessageEvent<PassReply>) => {
        if (data.kind === "decoded") {
          Object.assign(this.#outcome, data.outcome);
        } else if (data.kind === "recorded") {
          this.#outcome.record = data.record;
        } else if (data.kind === "error") {
          this.#fail(unpackError(data.error));
        }
        resolve();
      };
      worker.onerror = (event) => {
        event.preventDefault();
        this.#fail(
          new ObdError("state", `Layer worker failed: ${event.message}`),
        );
        resolve();
      };
    });
  }

  #fail(error: unknown): void {
    if (this.#failed) return;
    this.#failed = true;
    this.#error = error;
    this.#state.stop();
    this.#onError(error);
  }

  #listen(bell: number): number {
    if (this.#failed) throw this.#error;
    return this.#state.listen(bell);
  }

  async write(bytes: Uint8Array): Promise<void> {
    const state = this.#state;
    for (let at = 0; at < bytes.length;) {
      const heard = this.#listen(WORD.feedBell);
      this.#decoded = state.position(WORD.inputDecoded, this.#decoded);
      this.#recorded = state.position(WORD.inputRecorded, this.#recorded);
      const room = state.input.capacity -
        (this.#head - Math.min(this.#decoded, this.#recorded));
      if (room === 0) {
        await state.sleepAsync(WORD.feedBell, heard);
        continue;
      }
      const piece = bytes.subarray(at, at + room);
      state.input.put(this.#head, piece);
      this.#head += piece.length;
      at += piece.length;
      state.setPosition(WORD.inputHead, this.#head);
      state.ring(WORD.decodeBell, WORD.recordBell);
    }
  }

  async end(): Promise<StageOutcome> {
    this.#state.set(WORD.inputEnd);
    this.#state.ring(WORD.decodeBell, WORD.recordBell);
    await Promise.all([...this.#ended, ...this.#loops]);
    if (this.#failed) throw this.#error;
    const { record, tarSize, members, checkpoints } = this.#outcome;
    if (
      !record || !checkpoints || tarSize === undefined || members === undefined
    ) throw new CancelledError();
    return { record, tarSize, members, checkpoints };
  }

  async #guard(loop: Promise<void>): Promise<void> {
    try {
      await loop;
    } catch (error) {
      this.#fail(error);
    }
  }

  async #record(settings: DecoderSettings): Promise<void> {
    const state = this.#state;
    const { input, output } = state;
    const recorder = new LayerRecorder(settings.compression, input, output);
    const loop = new RecordLoop(state, recorder);
    while (true) {
      const heard = this.#listen(WORD.recordBell);
      const outcome = loop.step();
      if (outcome === "done") break;
      if (outcome === "idle") await state.sleepAsync(WORD.recordBell, heard);
      else await nextTurn();
    }
    this.#outcome.record = recorder.finish();
  }

  /** Hands the output ring to the walker. */
  async #walk(walker: TarReceiver): Promise<void> {
    const state = this.#state;
    const piece = new Uint8Array(WALK_STEP);
    let walked = 0;
    while (true) {
      const heard = this.#listen(WORD.walkBell);
      const isEnd = state.isSet(WORD.outputEnd);
      const head = state.position(WORD.outputHead, walked);
      if (head === walked) {
        if (isEnd) return;
        await state.sleepAsync(WORD.walkBell, heard);
        continue;
      }
      const to = Math.min(head, walked + WALK_STEP);
      let size = 0;
      for (const view of state.output.views(walked, to)) {
        piece.set(view, size);
        size += view.length;
      }
      walker.push(piece.subarray(0, size));
      walked = to;
      state.setPosition(WORD.outputWalked, walked);
      state.ring(WORD.decodeBell);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#fail(new CancelledError());
    let timer: ReturnType<typeof setTimeout> | undefined;
    await Promise.race([
      Promise.all([...this.#ended, ...this.#loops]),
      new Promise((resolve) => {
        timer = setTimeout(resolve, STOP_DEADLINE_MS);
      }),
    ]);
    clearTimeout(timer);
    for (const worker of this.#workers) worker.terminate();
  }
}

/** Lets other work of this thread go first, e.g. the fetch of more input. */
function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
