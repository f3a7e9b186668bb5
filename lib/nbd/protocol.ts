/**
 * Numbers and layouts of the NBD protocol. All integers are big-endian.
 *
 * Spec: NetworkBlockDevice/nbd, doc/proto.md, section names in brackets. No
 * I/O here. Not used by us: TLS, resize, extended headers, oldstyle.
 */

/** Magic numbers as pairs of u32, high half first. */
export const MAGIC = {
  /** "NBDMAGIC" [Newstyle negotiation]. */
  initHi: 0x4e42444d,
  initLo: 0x41474943,
  /** "IHAVEOPT" [Newstyle negotiation]. */
  optionHi: 0x49484156,
  optionLo: 0x454f5054,
  /** 0x3e889045565a9 [Fixed newstyle negotiation]. */
  optionReplyHi: 0x0003e889,
  optionReplyLo: 0x045565a9,
  request: 0x25609513,
  simpleReply: 0x67446698,
  structuredReply: 0x668e33ef,
} as const;

/** Handshake flags of the server and, with the same bits, of the client [Flag fields]. */
export const HANDSHAKE = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** Transmission flags: what an export can do [Transmission flags]. */
export const TRANSMISSION = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  rotational: 1 << 4,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
  sendResize: 1 << 9,
  sendCache: 1 << 10,
  sendFastZero: 1 << 11,
} as const;

/** Options of the handshake [Option types]. */
export const OPTION = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

/** Answers to options [Option reply types]. Errors have bit 31 set. */
export const REPLY = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errUnsup: 0x80000001,
  errPolicy: 0x80000002,
  errInvalid: 0x80000003,
  errPlatform: 0x80000004,
  errTlsRequired: 0x80000005,
  errUnknown: 0x80000006,
  errShutdown: 0x80000007,
  errBlockSizeRequired: 0x80000008,
  errTooBig: 0x80000009,
} as const;

/** Kinds of information in `NBD_REP_INFO` [Option reply types]. */
export const INFO = {
  export: 0,
  name: 1,
  description: 2,
  blockSize: 3,
} as const;

/** Requests [Request types]. */
export const COMMAND = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

/** Flags of a request [Command flags]. */
export const COMMAND_FLAG = {
  fua: 1 << 0,
  noHole: 1 << 1,
  df: 1 << 2,
  reqOne: 1 << 3,
  fastZero: 1 << 4,
} as const;

/** Kinds of structured reply chunks [Structured reply types]. Errors have bit 15 set. */
export const CHUNK = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;

/** The flag of a reply's last chunk [Structured reply flags]. */
export const CHUNK_DONE = 1;

/** Flags of an extent in the context `base:allocation` [Metadata contexts]. */
export const STATE = { hole: 1, zero: 2 } as const;

/** The one metadata context that we know. */
export const ALLOCATION_CONTEXT = "base:allocation";

/** Longest string of the protocol, in bytes [Conventions]. */
export const MAX_STRING = 4096;

/** Most bytes of a read or a write; what clients assume unless told otherwise [Block size constraints]. */
export const MAX_PAYLOAD = 32 * 1024 * 1024;

/** Bytes of the server's greeting: two magics and flags. */
export const GREETING_SIZE = 18;

/** Bytes of an option's header: magic, option, length. */
export const OPTION_HEADER_SIZE = 16;

/** Bytes of an option reply's header: magic, option, type, length. */
export const OPTION_REPLY_SIZE = 20;

/** Byte offsets in a request [Request message]. */
export const REQUEST = {
  magic: 0, // u32
  flags: 4, // u16
  type: 6, // u16
  cookie: 8, // 8 opaque bytes
  offset: 16, // u64
  length: 24, // u32
  SIZE: 28,
} as const;

/** Byte offsets in a simple reply [Simple reply message]. */
export const SIMPLE_REPLY = {
  magic: 0, // u32
  error: 4, // u32
  cookie: 8, // 8 opaque bytes
  SIZE: 16,
} as const;

/** Byte offsets in the header of a structured reply chunk [Structured reply chunk message]. */
export const CHUNK_HEADER = {
  magic: 0, // u32
  flags: 4, // u16
  type: 6, // u16
  cookie: 8, // 8 opaque bytes
  length: 16, // u32, of what follows
  SIZE: 20,
} as const;

/** Bytes of an offset-hole chunk: header, u64 offset, u32 size. */
export const HOLE_CHUNK_SIZE = CHUNK_HEADER.SIZE + 12;

/** Bytes in front of the data of an offset-data chunk: header, u64 offset. */
export const DATA_CHUNK_PREFIX = CHUNK_HEADER.SIZE + 8;

/** Reads a big-endian u64; above 2^53 only the nearest Number, so compare it with a bound before use. */
export function getU64be(view: DataView, at: number): number {
  return view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
}

/** Writes a safe non-negative integer as a big-endian u64. */
export function setU64be(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / 2 ** 32));
  view.setUint32(at + 4, value % 2 ** 32);
}

/** A cookie as two u32: opaque, only ever copied. */
export interface Cookie {
  readonly cookieHi: number;
  readonly cookieLo: number;
}

/** A decoded request header. `offset` may lie above 2^53 and is then inexact, which no export reaches. */
export interface Request extends Cookie {
  readonly flags: number;
  readonly type: number;
  readonly offset: number;
  readonly length: number;
}

/** Writes a request header of {@linkcode REQUEST.SIZE} bytes. */
export function writeRequest(view: DataView, at: number, r: Request): void {
  view.setUint32(at + REQUEST.magic, MAGIC.request);
  view.setUint16(at + REQUEST.flags, r.flags);
  view.setUint16(at + REQUEST.type, r.type);
  view.setUint32(at + REQUEST.cookie, r.cookieHi);
  view.setUint32(at + REQUEST.cookie + 4, r.cookieLo);
  setU64be(view, at + REQUEST.offset, r.offset);
  view.setUint32(at + REQUEST.length, r.length);
}

/** Reads a request header, or undefined if its magic is wrong: the stream is then out of step. */
export function readRequest(view: DataView, at: number): Request | undefined {
  if (view.getUint32(at + REQUEST.magic) !== MAGIC.request) return undefined;
  return {
    flags: view.getUint16(at + REQUEST.flags),
    type: view.getUint16(at + REQUEST.type),
    cookieHi: view.getUint32(at + REQUEST.cookie),
    cookieLo: view.getUint32(at + REQUEST.cookie + 4),
    offset: getU64be(view, at + REQUEST.offset),
    length: view.getUint32(at + REQUEST.length),
  };
}

/** Writes a simple reply of {@linkcode SIMPLE_REPLY.SIZE} bytes. */
export function writeSimpleReply(
  view: DataView,
  at: number,
  cookie: Cookie,
  error: number,
): void {
  view.setUint32(at + SIMPLE_REPLY.magic, MAGIC.simpleReply);
  view.setUint32(at + SIMPLE_REPLY.error, error);
  view.setUint32(at + SIMPLE_REPLY.cookie, cookie.cookieHi);
  view.setUint32(at + SIMPLE_REPLY.cookie + 4, cookie.cookieLo);
}

/** Writes the {@linkcode CHUNK_HEADER.SIZE} bytes in front of a chunk's payload of `length` bytes. */
export function writeChunkHeader(
  view: DataView,
  at: number,
  cookie: Cookie,
  type: number,
  flags: number,
  length: number,
): void {
  view.setUint32(at + CHUNK_HEADER.magic, MAGIC.structuredReply);
  view.setUint16(at + CHUNK_HEADER.flags, flags);
  view.setUint16(at + CHUNK_HEADER.type, type);
  view.setUint32(at + CHUNK_HEADER.cookie, cookie.cookieHi);
  view.setUint32(at + CHUNK_HEADER.cookie + 4, cookie.cookieLo);
  view.setUint32(at + CHUNK_HEADER.length, length);
}
