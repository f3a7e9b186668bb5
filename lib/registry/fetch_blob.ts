/** A whole blob as a stream that survives broken connections. */

import { IntegrityError, NotFoundError } from "../io/mod.ts";
import { DigestVerifier } from "./digest.ts";
import type { Descriptor } from "./manifest.ts";
import {
  brokenBody,
  checkRangeAnswer,
  rangeHeader,
  skipBytes,
} from "./range.ts";
import type { FetchBlobOptions } from "./repository.ts";
import { Retrier } from "./retry.ts";
import type { Session } from "./session.ts";
import { throwIfAborted } from "./signals.ts";
import type { Exchange } from "./transport.ts";

const PIECE_SIZE = 256 * 1024;

/** @see Repository.fetchBlob */
export async function* fetchBlob(
  session: Session,
  descriptor: Descriptor,
  options: FetchBlobOptions,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const { digest, size } = descriptor;
  const verifier = new DigestVerifier(`blob "${digest}"`, digest, size);
  const retrier = new Retrier(session.transport);
  let answer: Exchange | undefined;
  try {
    while (verifier.seen < size) {
      let piece: Uint8Array<ArrayBuffer>;
      try {
        throwIfAborted(options.signal);
        answer ??= await openAt(session, descriptor, verifier.seen, options);
        piece = await readPiece(answer, size - verifier.seen);
        if (piece.length === 0) throw brokenBody(answer, "ended early");
      } catch (error) {
        await answer?.discard();
        answer = undefined;
        await retrier.pause(error, options.signal);
        continue;
      }
      verifier.update(piece);
      retrier.progressed(piece.length);
      options.onProgress?.(verifier.seen);
      yield piece;
    }
    if (answer && await goesOn(answer, options.signal)) {
      throw new IntegrityError(
        `Size of blob "${digest}"`,
        `${size} bytes`,
        `more than ${size} bytes`,
      );
    }
    verifier.finish();
  } finally {
    await answer?.discard();
  }
}

/** Whether a body without a stated length has more than it should. One that breaks off here has brought all. */
async function goesOn(
  answer: Exchange,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  try {
    return await answer.read(new Uint8Array(1)) > 0;
  } catch {
    throwIfAborted(signal);
    return false;
  }
}

async function openAt(
  session: Session,
  descriptor: Descriptor,
  offset: number,
  options: FetchBlobOptions,
): Promise<Exchange> {
  const { digest, size } = descriptor;
  const wanted = { digest, size, offset, end: size };
  const answer = await session.send({
    method: "GET",
    target: `blobs/${digest}`,
    access: "pull",
    headers: offset === 0 ? {} : { range: rangeHeader(wanted) },
    signal: options.signal,
    priority: options.priority ?? "prefetch",
  });
  try {
    if (answer.status === 404) {
      throw new NotFoundError(
        `No blob "${digest}" in "${session.registry}/${session.repository}"`,
      );
    }
    if (answer.status !== 200 && answer.status !== 206) {
      throw await session.error(answer);
    }
    const base = await session.transport.baseUrl(session.registry);
    session.redirectsBlobs = answer.url.origin !== base.origin;
    await skipBytes(answer, checkRangeAnswer(answer, wanted));
    return answer;
  } catch (error) {
    await answer.discard();
    throw error;
  }
}

/** Fills a buffer as far as the connection gives; what came before a break is kept. */
async function readPiece(
  answer: Exchange,
  rest: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const piece = new Uint8Array(Math.min(PIECE_SIZE, rest));
  let at = 0;
  while (at < piece.length) {
    let length: number;
    try {
      length = await answer.read(piece.subarray(at));
    } catch (error) {
      if (at === 0) throw error;
      break; // the next read fails again and is seen then
    }
    if (length === 0) break;
    at += length;
  }
  return piece.subarray(0, at);
}
