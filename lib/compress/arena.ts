/**
 * The WebAssembly kernels and their memory.
 *
 * Calls are synchronous, so one arena for each thread is enough. Bytes are
 * copied in and out (about 10 GB/s); that is what lets callers hand over
 * shared memory, and keeps a wrong length from ever touching their buffers.
 */

import * as kernels from "./wasm/kernels.wasm";

kernels.init();

/** Bytes behind each region that 16-byte copies may touch. */
const SLACK = 64;
const PAGE = 65536;

let view = new Uint8Array(kernels.memory.buffer);

/** Where a call's two regions lie in {@linkcode arenaBytes}. */
export interface ArenaLayout {
  input: number;
  output: number;
}

/** Makes room for an input and an output region of the given sizes in bytes. */
export function layOut(inputSize: number, outputSize: number): ArenaLayout {
  const input = kernels.BASE as unknown as number;
  const output = input + Math.ceil((inputSize + SLACK) / 16) * 16;
  const need = output + outputSize + SLACK;
  if (need > view.length) {
    kernels.memory.grow(Math.ceil((need - view.length) / PAGE));
    view = new Uint8Array(kernels.memory.buffer);
  }
  return { input, output };
}

/** The arena's bytes; valid until the next {@linkcode layOut}. */
export function arenaBytes(): Uint8Array {
  return view;
}

export { kernels };
