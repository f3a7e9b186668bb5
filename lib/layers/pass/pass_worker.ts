/** The decode and record threads of a pass. Each serves one layer and then waits to be ended. */

import { type ErrorMessage, packError } from "../../compress/mod.ts";
import { CancelledError, workerRole } from "../../io/mod.ts";
import { type CheckpointColumns, CheckpointList } from "./checkpoint_list.ts";
import { type DecoderSettings, openDecoder } from "./layer_decoder.ts";
import { type LayerRecord, LayerRecorder } from "./layer_recorder.ts";
import { RecordLoop } from "./record_loop.ts";
import { COMMAND, type SharedMemory, SharedState, WORD } from "./shared.ts";

/** The roles of this module's workers. */
export const DECODE_ROLE = "obd:layer-decode";
export const RECORD_ROLE = "obd:layer-record";
/** This module; in a one-file bundle, the bundle. */
export const PASS_WORKER_URL = import.meta.url;

/** What a worker starts with. */
export interface PassStart extends DecoderSettings {
  memory: SharedMemory;
  /** Whether the calling thread reads the output ring too. */
  hasWalker: boolean;
}

/** What the decode thread found. */
export interface DecodeOutcome {
  tarSize: number;
  members: number;
  /** The start of each span. */
  checkpoints: CheckpointColumns;
}

/** The last message of a worker. */
export type PassReply =
  | { kind: "decoded"; outcome: DecodeOutcome }
  | { kind: "recorded"; record: LayerRecord }
  | { kind: "stopped" }
  | { kind: "error"; error: ErrorMessage };

/** Output decoded before the other threads are told. */
const PUBLISH_SIZE = 1024 * 1024;
function decode(start: PassStart): DecodeOutcome {
  const state = new SharedState(start.memory);
  const checkpoints = new CheckpointList();
  const decoder = openDecoder(start, state.input, state.output, {
    advance: (to) => state.putCommand(COMMAND.advance, to),
    split: (checkpoint) => {
      checkpoints.push(checkpoint);
      state.putCommand(COMMAND.split);
    },
  });
  try {
    let inputEnd = 0;
    let recorded = 0;
    let walked = 0;
    while (true) {
      const heard = state.listen(WORD.decodeBell);
      const isEnd = state.isSet(WORD.inputEnd); // before the head, which is final then
      inputEnd = state.position(WORD.inputHead, inputEnd);
      recorded = state.position(WORD.outputRecorded, recorded);
      if (start.hasWalker) walked = state.position(WORD.outputWalked, walked);
      const read = start.hasWalker ? Math.min(recorded, walked) : recorded;
      const limit = read + state.output.capacity;
      const soft = decoder.uncompressedOffset + PUBLISH_SIZE;
      const need = decoder.run(inputEnd, isEnd, Math.min(limit, soft));
      state.setPosition(WORD.inputDecoded, decoder.inputNeeded);
      state.setPosition(WORD.outputHead, decoder.uncompressedOffset);
      if (need === "nothing") break;
      state.ring(WORD.feedBell, WORD.walkBell);
      if (need === "output" && soft < limit) continue;
      state.sleep(WORD.decodeBell, heard);
    }
    state.setPosition(WORD.inputDecoded, inputEnd);
    state.putCommand(COMMAND.end);
    state.set(WORD.outputEnd);
    state.ring(WORD.feedBell, WORD.walkBell);
    return {
      tarSize: decoder.uncompressedOffset,
      members: decoder.members,
      checkpoints: checkpoints.columns(),
    };
  } finally {
    decoder.close();
  }
}

function record(start: PassStart): LayerRecord {
  const state = new SharedState(start.memory);
  const recorder = new LayerRecorder(
    start.compression,
    state.input,
    state.output,
  );
  const loop = new RecordLoop(state, recorder);
  while (true) {
    const heard = state.listen(WORD.recordBell);
    const outcome = loop.step();
    if (outcome === "done") return recorder.finish();
    if (outcome === "idle") state.sleep(WORD.recordBell, heard);
  }
}

function serve(work: (start: PassStart) => PassReply): void {
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<PassStart>) => void;
    postMessage(reply: PassReply): void;
  };
  scope.onmessage = ({ data }) => {
    let reply: PassReply;
    try {
      reply = work(data);
    } catch (error) {
      reply = error instanceof CancelledError
        ? { kind: "stopped" }
        : { kind: "error", error: packError(error) };
    }
    scope.postMessage(reply);
  };
}

if (workerRole() === DECODE_ROLE) {
  serve((start) => ({ kind: "decoded", outcome: decode(start) }));
} else if (workerRole() === RECORD_ROLE) {
  serve((start) => ({ kind: "recorded", record: record(start) }));
}
