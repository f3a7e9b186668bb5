/** Takes a server's replies apart, for the client. Everything is checked before it is believed. */

import { type Extent, type ExtentKind, FormatError } from "../io/mod.ts";
import { Coverage } from "./coverage.ts";
import {
  CHUNK,
  CHUNK_DONE,
  CHUNK_HEADER,
  getU64be,
  MAGIC,
  MAX_STRING,
  SIMPLE_REPLY,
  STATE,
} from "./protocol.ts";
import type { ReceiveBuffer } from "./stream.ts";

/** Most bytes of a BLOCK_STATUS chunk: 8,191 descriptors fit the receive buffer. */
const MAX_STATUS_BYTES = 4 + 8 * 8000;

/** A request without its final reply. */
export interface PendingReply {
  readonly type: number;
  readonly offset: number;
  readonly length: number;
  /** Where a read's bytes go; undefined once the reader gave up: they are dropped. */
  dst: Uint8Array | undefined;
  /** Bytes are on their way into `dst` right now: it cannot be given back yet. */
  receiving: boolean;
  /** Set when a read is answered in several chunks. */
  coverage: Coverage | undefined;
  /** What a BLOCK_STATUS brought. */
  extents: Extent[] | undefined;
  /** First error number of the reply, 0 if none. */
  error: number;
  errorMessage: string;
}

/** What the reader asks the client. */
export interface PendingReplies {
  /** The request with that cookie, or undefined if there is none. */
  find(cookieHi: number, cookieLo: number): PendingReply | undefined;
  /** The reply is complete. */
  finish(pending: PendingReply, cookieLo: number): void;
  readonly isRead: (pending: PendingReply) => boolean;
  readonly isBlockStatus: (pending: PendingReply) => boolean;
  readonly structured: boolean;
  readonly allocationId: number | undefined;
}

function bad(field: string, problem: string): FormatError {
  return new FormatError("NBD reply", field, problem);
}

/**
 * Reads replies until the stream ends between two of them.
 *
 * @throws {FormatError} If a reply breaks the protocol; nothing after it can be trusted.
 */
export async function readReplies(
  rx: ReceiveBuffer,
  replies: PendingReplies,
): Promise<void> {
  while (rx.available > 0 || await rx.fill()) {
    await need(rx, 4);
    const magic = rx.view.getUint32(rx.start);
    if (magic === MAGIC.simpleReply) await readSimple(rx, replies);
    else if (magic === MAGIC.structuredReply && replies.structured) {
      await readChunk(rx, replies);
    } else throw bad("magic", `is 0x${magic.toString(16)}`);
  }
}

async function readSimple(
  rx: ReceiveBuffer,
  replies: PendingReplies,
): Promise<void> {
  await need(rx, SIMPLE_REPLY.SIZE);
  const { view, start } = rx;
  const error = view.getUint32(start + SIMPLE_REPLY.error);
  const { pending, cookieLo } = findPending(rx, replies, SIMPLE_REPLY.cookie);
  rx.start += SIMPLE_REPLY.SIZE;
  if (replies.isRead(pending)) {
    if (replies.structured) throw bad("type", "of a read is simple");
    if (error === 0) {
      await readData(rx, pending, pending.offset, pending.length);
    }
  } else if (error === 0 && replies.isBlockStatus(pending)) {
    throw bad("type", "of a block status is simple");
  }
  pending.error = error;
  replies.finish(pending, cookieLo);
}

async function readChunk(
  rx: ReceiveBuffer,
  replies: PendingReplies,
): Promise<void> {
  await need(rx, CHUNK_HEADER.SIZE);
  const { view, start } = rx;
  const flags = view.getUint16(start + CHUNK_HEADER.flags);
  const type = view.getUint16(start + CHUNK_HEADER.type);
  const length = view.getUint32(start + CHUNK_HEADER.length);
  const { pending, cookieLo } = findPending(rx, replies, CHUNK_HEADER.cookie);
  rx.start += CHUNK_HEADER.SIZE;
  const done = (flags & CHUNK_DONE) !== 0;
  if ((type & 0x8000) !== 0) await readError(rx, pending, type, length);
  else if (type === CHUNK.none) {
    if (length !== 0 || !done) throw bad("none chunk", "is not the end");
  } else if (type === CHUNK.blockStatus && replies.isBlockStatus(pending)) {
    await readStatus(rx, pending, length, replies.allocationId);
  } else if (!replies.isRead(pending)) throw bad("chunk type", `is ${type}`);
  else if (type === CHUNK.offsetData) {
    if (length < 9) throw bad("data chunk length", `is ${length}`);
    await need(rx, 8);
    const offset = getU64be(rx.view, rx.start);
    rx.start += 8;
    cover(pending, offset, length - 8, done);
    await readData(rx, pending, offset, length - 8);
  } else if (type === CHUNK.offsetHole) {
    if (length !== 12) throw bad("hole chunk length", `is ${length}`);
    await need(rx, 12);
    const offset = getU64be(rx.view, rx.start);
    const size = rx.view.getUint32(rx.start + 8);
    rx.start += 12;
    cover(pending, offset, size, done);
    const at = offset - pending.offset;
    pending.dst?.fill(0, at, at + size);
  } else throw bad("chunk type", `is ${type}`);
  if (!done) return;
  if (pending.error === 0) checkComplete(pending, replies);
  replies.finish(pending, cookieLo);
}

function findPending(
  rx: ReceiveBuffer,
  replies: PendingReplies,
  at: number,
): { pending: PendingReply; cookieLo: number } {
  const cookieHi = rx.view.getUint32(rx.start + at);
  const cookieLo = rx.view.getUint32(rx.start + at + 4);
  const pending = replies.find(cookieHi, cookieLo);
  if (!pending) throw bad("cookie", "belongs to no request");
  return { pending, cookieLo };
}

/** Notes a content chunk; the usual single one costs nothing. */
function cover(
  pending: PendingReply,
  offset: number,
  length: number,
  done: boolean,
): void {
  const end = offset + length;
  if (
    length === 0 || offset < pending.offset ||
    end > pending.offset + pending.length
  ) throw bad("chunk range", "is outside the request");
  if (done && length === pending.length && !pending.coverage) {
    pending.coverage = WHOLE;
    return;
  }
  pending.coverage ??= new Coverage();
  if (pending.coverage === WHOLE || !pending.coverage.add(offset, end)) {
    throw bad("chunk range", "overlaps another");
  }
}

/** Stands for "all of it in one chunk". */
const WHOLE = new Coverage();

function checkComplete(pending: PendingReply, replies: PendingReplies): void {
  if (replies.isBlockStatus(pending)) {
    if (!pending.extents) throw bad("block status", "is missing");
    return;
  }
  if (!replies.isRead(pending) || pending.coverage === WHOLE) return;
  const end = pending.offset + pending.length;
  if (!pending.coverage?.is(pending.offset, end)) {
    throw bad("chunks", "do not cover the request");
  }
}

async function readData(
  rx: ReceiveBuffer,
  pending: PendingReply,
  offset: number,
  length: number,
): Promise<void> {
  const at = offset - pending.offset;
  let left = length;
  while (left > 0) {
    const { dst } = pending;
    if (rx.available === 0 && dst && left >= rx.bytes.length) {
      const from = at + length - left;
      pending.receiving = true;
      const ok = await rx.take(dst.subarray(from, from + left));
      pending.receiving = false;
      if (!ok) throw cutShort();
      return;
    }
    if (rx.available === 0 && !await rx.fill()) throw cutShort();
    const now = Math.min(left, rx.available);
    const from = at + length - left;
    pending.dst?.set(rx.bytes.subarray(rx.start, rx.start + now), from);
    rx.start += now;
    left -= now;
  }
}

async function readStatus(
  rx: ReceiveBuffer,
  pending: PendingReply,
  length: number,
  allocationId: number | undefined,
): Promise<void> {
  if (length < 12 || length > MAX_STATUS_BYTES || (length - 4) % 8 !== 0) {
    throw bad("block status length", `is ${length}`);
  }
  await need(rx, length);
  const { view, start } = rx;
  rx.start += length;
  if (view.getUint32(start) !== allocationId || pending.extents) {
    throw bad("block status context", "is not the one asked for");
  }
  const end = pending.offset + pending.length;
  let offset = pending.offset;
  const extents: Extent[] = [];
  for (let at = start + 4; at < start + length; at += 8) {
    const size = view.getUint32(at);
    if (size === 0 || offset >= end) throw bad("block status extent", "is odd");
    // Only the last may reach beyond what was asked for [NBD_REPLY_TYPE_BLOCK_STATUS].
    const clipped = Math.min(size, end - offset);
    const kind = kindOf(view.getUint32(at + 4));
    extents.push({ offset, length: clipped, kind });
    offset += clipped;
  }
  pending.extents = extents;
}

function kindOf(state: number): ExtentKind {
  // A hole of unknown content reads as anything, so it counts as data.
  if ((state & STATE.zero) === 0) return "data";
  return (state & STATE.hole) === 0 ? "zero" : "hole";
}

async function readError(
  rx: ReceiveBuffer,
  pending: PendingReply,
  type: number,
  length: number,
): Promise<void> {
  const least = type === CHUNK.errorOffset ? 14 : 6;
  if (length < least || length > least + MAX_STRING) {
    throw bad("error chunk length", `is ${length}`);
  }
  await need(rx, length);
  const error = rx.view.getUint32(rx.start);
  const textBytes = rx.view.getUint16(rx.start + 4);
  if (error === 0 || textBytes > length - least) {
    throw bad("error chunk", "is malformed");
  }
  const text = rx.bytes.subarray(rx.start + 6, rx.start + 6 + textBytes);
  if (pending.error === 0) {
    pending.error = error;
    pending.errorMessage = new TextDecoder().decode(text);
  }
  rx.start += length;
}

async function need(rx: ReceiveBuffer, length: number): Promise<void> {
  if (!await rx.need(length)) throw cutShort();
}

function cutShort(): FormatError {
  return bad("length", "is cut short: the server hung up");
}
