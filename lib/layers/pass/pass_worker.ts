/** The decode and hash threads of a pass. Each serves one layer and then waits to be ended. */

import { type ErrorMessage, packError } from "../../compress/mod.ts";
import { CancelledError, workerRole } from "../../io/mod.ts";
import { packCheckpoint, type PackedCheckpoint } from "./checkpoint_list.ts";
import { type DecoderSettings, openDecoder } from "./layer_decoder.ts";
import { type LayerDigests, LayerHasher } from "./layer_hasher.ts";
import { COMMAND, type SharedMemory, SharedState, WORD } from "./shared.ts";

/** The roles of this module's workers. */
export const DECODE_ROLE = "obd:layer-decode";
export const HASH_ROLE = "obd:layer-hash";
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
  checkpoints: PackedCheckpoint[];
  tarSize: number;
  members: number;
}

/** The last message of a worker. */
export type PassReply =
  | { kind: "decoded"; outcome: DecodeOutcome }
  | { kind: "hashed"; digests: LayerDigests }
  | { kind: "stopped" }
  | { kind: "error"; error: ErrorMessage };

/** Output decoded before the other threads are told. */
const PUBLISH_SIZE = 1024 * 1024;
/** Bytes hashed before the ring is released. */
const HASH_STEP = 1024 * 1024;

function decode(start: PassStart): DecodeOutcome {
  const state = new SharedState(start.memory);
  const checkpoints: PackedCheckpoint[] = [];
  const decoder = openDecoder(start, state.input, state.output, {
    advance: (to) => state.putCommand(COMMAND.advance, to),
    split(checkpoint) {
      checkpoints.push(packCheckpoint(checkpoint));
      state.putCommand(COMMAND.split);
    },
    fork: () => state.putCommand(COMMAND.fork),
    resolve(checkpoint) {
      if (checkpoint) checkpoints.push(packCheckpoint(checkpoint));
      state.putCommand(
        checkpoint ? COMMAND.resolveSplit : COMMAND.resolveNone,
      );
    },
  });
  try {
    let inputEnd = 0;
    let hashed = 0;
    let walked = 0;
    while (true) {
      const heard = state.listen(WORD.decodeBell);
      const isEnd = state.isSet(WORD.inputEnd); // before the head, which is final then
      inputEnd = state.position(WORD.inputHead, inputEnd);
      hashed = state.position(WORD.outputHashed, hashed);
      if (start.hasWalker) walked = state.position(WORD.outputWalked, walked);
      const read = start.hasWalker ? Math.min(hashed, walked) : hashed;
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
      checkpoints,
      tarSize: decoder.uncompressedOffset,
      members: decoder.members,
    };
  } finally {
    decoder.close();
  }
}

function hash(start: PassStart): LayerDigests {
  const state = new SharedState(start.memory);
  const hasher = new LayerHasher(start.compression, state.input, state.output);
  let decoded = false;
  while (true) {
    const heard = state.listen(WORD.hashBell);
    const isEnd = state.isSet(WORD.inputEnd);
    const head = state.position(WORD.inputHead, hasher.blobOffset);
    const blobTo = Math.min(head, hasher.blobOffset + HASH_STEP);
    if (blobTo > hasher.blobOffset) {
      hasher.takeBlob(blobTo);
      state.setPosition(WORD.inputHashed, blobTo);
      state.ring(WORD.feedBell);
    }
    const taken = state.takeCommand();
    if (taken?.command === COMMAND.end) decoded = true;
    else if (taken) follow(state, hasher, taken.command, taken.value);
    if (taken || blobTo < head) continue;
    if (decoded && isEnd) return hasher.finish();
    state.sleep(WORD.hashBell, heard);
  }
}

function follow(
  state: SharedState,
  hasher: LayerHasher,
  command: number,
  value: number,
): void {
  if (command === COMMAND.split) hasher.split();
  else if (command === COMMAND.fork) hasher.fork();
  else if (command !== COMMAND.advance) {
    hasher.resolve(command === COMMAND.resolveSplit);
  } else {
    while (hasher.tarOffset < value) {
      hasher.advance(Math.min(value, hasher.tarOffset + HASH_STEP));
      state.setPosition(WORD.outputHashed, hasher.tarOffset);
      state.ring(WORD.decodeBell);
    }
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
} else if (workerRole() === HASH_ROLE) {
  serve((start) => ({ kind: "hashed", digests: hash(start) }));
}
