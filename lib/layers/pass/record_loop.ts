/** Drives a recorder from shared memory; on a thread of its own, or between other things on the calling one. */

import type { LayerRecorder } from "./layer_recorder.ts";
import { COMMAND, type Command, type SharedState, WORD } from "./shared.ts";

/** Bytes recorded before the rings are released. */
const RECORD_STEP = 1024 * 1024;

/** What a step came to: go on, wait for the record bell, or all is recorded. */
export type StepOutcome = "progress" | "idle" | "done";

/** Takes the blob and follows the decode thread's commands, a little at a time. */
export class RecordLoop {
  readonly #state: SharedState;
  readonly #recorder: LayerRecorder;
  /** The target of the ADVANCE that is being followed. */
  #advanceTo = 0;
  #decoded = false;

  constructor(state: SharedState, recorder: LayerRecorder) {
    this.#state = state;
    this.#recorder = recorder;
  }

  /** Records at most 1 MiB of each ring. The caller listens to the record bell before. */
  step(): StepOutcome {
    const isEnd = this.#state.isSet(WORD.inputEnd); // before the head, which is final then
    const hadBlob = this.#takeBlob();
    if (this.#follow() || hadBlob) return "progress";
    return this.#decoded && isEnd ? "done" : "idle";
  }

  #takeBlob(): boolean {
    const recorder = this.#recorder;
    const head = this.#state.position(WORD.inputHead, recorder.blobOffset);
    if (head === recorder.blobOffset) return false;
    recorder.takeBlob(Math.min(head, recorder.blobOffset + RECORD_STEP));
    this.#state.setPosition(WORD.inputRecorded, recorder.blobOffset);
    this.#state.ring(WORD.feedBell);
    return true;
  }

  /** Follows commands until about a step of tar is recorded; false if there was none. */
  #follow(): boolean {
    const recorder = this.#recorder;
    const stop = recorder.tarOffset + RECORD_STEP;
    let any = false;
    while (recorder.tarOffset < stop) {
      if (recorder.tarOffset < this.#advanceTo) {
        recorder.advance(Math.min(this.#advanceTo, stop));
        this.#state.setPosition(WORD.outputRecorded, recorder.tarOffset);
        this.#state.ring(WORD.decodeBell);
      } else {
        const command = this.#state.takeCommand();
        if (command === undefined) return any;
        this.#obey(command);
      }
      any = true;
    }
    return true;
  }

  #obey({ command, to }: Command): void {
    if (command === COMMAND.advance) this.#advanceTo = to;
    else if (command === COMMAND.split) this.#recorder.split();
    else this.#decoded = true;
  }
}
