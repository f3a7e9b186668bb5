/**
 * The codec behind a node:zlib stream that is never used as a stream: an
 * internal of the runtime, so its shape stands here alone. Whoever uses it
 * tests it first and has another way.
 */

/** The calls that the runtime's own stream makes. */
export interface NativeHandle {
  /** Sizes and places in bytes; what is left of them is in the state afterwards. */
  writeSync(
    flush: number,
    input: Uint8Array,
    inputAt: number,
    inputSize: number,
    output: Uint8Array,
    outputAt: number,
    outputSize: number,
  ): void;
  /** Starts a new stream. */
  reset(): void;
  /** Frees native memory; nothing may follow. */
  close(): void;
  onerror: (message: string, errno: number, code?: string) => void;
}

/** A handle with what its last call left: bytes of output room, then bytes of input. */
export interface NativeCodec {
  readonly handle: NativeHandle;
  readonly state: Uint32Array;
}

/** Takes the codec out of a stream made by node:zlib. */
export function nativeCodec(stream: object): NativeCodec {
  const internals = stream as {
    _handle: NativeHandle;
    _writeState: Uint32Array;
  };
  return { handle: internals._handle, state: internals._writeState };
}
