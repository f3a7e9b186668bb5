/** Byte ranges (RFC 9110 §14): what was asked for against what came. */

import { IntegrityError } from "../io/mod.ts";
import { redactText, redactUrl, RegistryError } from "./errors.ts";
import type { Exchange } from "./transport.ts";

/** Bytes `[offset, end)` of a blob of `size` bytes. */
export interface WantedRange {
  digest: string;
  size: number;
  offset: number;
  end: number;
}

/** Value of the `Range` header. */
export function rangeHeader(wanted: WantedRange): string {
  return `bytes=${wanted.offset}-${wanted.end - 1}`;
}

/** An error after which the rest is asked for again. */
export function brokenBody(answer: Exchange, problem: string): RegistryError {
  return new RegistryError(
    `Body of ${redactUrl(answer.url)} ${problem}`,
    {
      status: answer.status,
      method: answer.method,
      url: answer.url,
      temporary: true,
    },
  );
}

/**
 * Checks the headers of a 200 or 206 against what was asked for.
 *
 * @returns Bytes to pass over at the start of the body: 0 for the right
 * range, the offset when the server sent the whole blob.
 * @throws {IntegrityError} If the blob has another size.
 * @throws {RegistryError} If it is another range.
 */
export function checkRangeAnswer(
  answer: Exchange,
  wanted: WantedRange,
): number {
  const { status, headers } = answer;
  const coding = headers.get("content-encoding");
  if (coding && coding.toLowerCase() !== "identity") {
    throw wrong(answer, `is encoded as "${redactText(coding, 40)}"`);
  }
  const stated = headers.get("content-length");
  // Said twice it is a list; then the body tells.
  const length = /^[0-9]{1,16}$/.test(stated ?? "")
    ? Number(stated)
    : undefined;
  if (status === 200) {
    if (length !== undefined && length !== wanted.size) {
      throw wrongSize(wanted, length);
    }
    return wanted.offset;
  }
  const range = headers.get("content-range") ?? "";
  const match = /^bytes ([0-9]{1,16})-([0-9]{1,16})\/([0-9]{1,16}|\*)$/i
    .exec(range.trim());
  if (!match) {
    throw wrong(answer, `has Content-Range "${redactText(range, 80)}"`);
  }
  const [start, last] = [Number(match[1]), Number(match[2])];
  if (match[3] !== "*" && Number(match[3]) !== wanted.size) {
    throw wrongSize(wanted, Number(match[3]));
  }
  if (start !== wanted.offset || last < start || last >= wanted.end) {
    throw wrong(
      answer,
      `has Content-Range "${redactText(range, 80)}" for ${rangeHeader(wanted)}`,
    );
  }
  if (length !== undefined && length !== last - start + 1) {
    throw wrong(answer, `has ${length} bytes for "${redactText(range, 80)}"`);
  }
  return 0;
}

function wrongSize(wanted: WantedRange, got: number): IntegrityError {
  return new IntegrityError(
    `Size of blob "${wanted.digest}"`,
    `${wanted.size} bytes`,
    `${got} bytes`,
  );
}

function wrong(answer: Exchange, problem: string): RegistryError {
  return new RegistryError(
    `Answer of ${redactUrl(answer.url)} ${problem}`,
    {
      status: answer.status,
      method: answer.method,
      url: answer.url,
      temporary: false,
    },
  );
}

/** Reads and drops exactly `count` bytes. */
export async function skipBytes(
  answer: Exchange,
  count: number,
): Promise<void> {
  const scratch = new Uint8Array(Math.min(count, 64 * 1024));
  for (let rest = count; rest > 0;) {
    const length = await answer.read(
      scratch.subarray(0, Math.min(rest, scratch.length)),
    );
    if (length === 0) throw brokenBody(answer, "ended early");
    rest -= length;
  }
}
