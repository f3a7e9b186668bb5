/** The client's half of the handshake [proto.md, Handshake]; everything received is checked. */

import {
  FormatError,
  fromUtf8,
  NotFoundError,
  utf8,
  viewOf,
  withDeadline,
} from "../io/mod.ts";
import type { NbdTarget } from "./address.ts";
import { NbdError } from "./errno.ts";
import {
  ALLOCATION_CONTEXT,
  getU64be,
  GREETING_SIZE,
  HANDSHAKE,
  INFO,
  MAGIC,
  MAX_PAYLOAD,
  MAX_STRING,
  OPTION,
  OPTION_HEADER_SIZE,
  OPTION_REPLY_SIZE,
  REPLY,
  TRANSMISSION,
} from "./protocol.ts";
import {
  type ByteStream,
  dial,
  ReceiveBuffer,
  SharedStream,
  writeStream,
} from "./stream.ts";

/** Most bytes of one option reply; must fit the receive buffer. */
const MAX_REPLY = 32 * 1024;
/** Most replies to one option, and so most exports of a list. */
const MAX_REPLIES = 65536;
/** Receive buffer: larger than the server's, for it holds data. */
const CLIENT_RECEIVE_BYTES = 256 * 1024;
/** Exports larger than this are refused: offsets are safe integers. */
const MAX_SIZE = Number.MAX_SAFE_INTEGER;

/** An export as a server describes it. */
export interface ExportInfo {
  /** Bytes. */
  size: number;
  /** Transmission flags as they came. */
  flags: number;
  /** Canonical name, if the server told it. */
  name: string | undefined;
  description: string | undefined;
  /** Smallest, best and largest request, in bytes. */
  minimumBlockSize: number;
  preferredBlockSize: number;
  maximumPayload: number;
  structured: boolean;
  /** Context id of `base:allocation`, if it was granted. */
  allocationId: number | undefined;
}

/** One entry of a server's list. */
export interface ListedExport {
  name: string;
  /** What follows the name: a text for people, or "". */
  description: string;
}

/** Talks to a server up to the transmission phase. */
export class ClientHandshake {
  readonly #stream: ByteStream;
  readonly #rx: ReceiveBuffer;
  #noZeroes = false;

  constructor(stream: ByteStream, rx: ReceiveBuffer) {
    this.#stream = stream;
    this.#rx = rx;
  }

  /** @throws {FormatError} If the server is not a fixed newstyle NBD server. */
  async greet(): Promise<void> {
    const at = await this.#need(GREETING_SIZE);
    const { view } = this.#rx;
    if (
      view.getUint32(at) !== MAGIC.initHi ||
      view.getUint32(at + 4) !== MAGIC.initLo ||
      view.getUint32(at + 8) !== MAGIC.optionHi ||
      view.getUint32(at + 12) !== MAGIC.optionLo
    ) throw new FormatError("NBD greeting", "magic", "is wrong");
    const flags = view.getUint16(at + 16);
    if ((flags & HANDSHAKE.fixedNewstyle) === 0) {
      throw new FormatError("NBD greeting", "flags", "lack fixed newstyle");
    }
    this.#noZeroes = (flags & HANDSHAKE.noZeroes) !== 0;
    const answer = new Uint8Array(4);
    const known = HANDSHAKE.fixedNewstyle | HANDSHAKE.noZeroes;
    viewOf(answer).setUint32(0, flags & known);
    await writeStream(this.#stream, answer);
  }

  /** Names and descriptions of the server's exports. */
  async list(): Promise<ListedExport[]> {
    const found: ListedExport[] = [];
    await this.#ask(OPTION.list, new Uint8Array(), (type, data) => {
      if (type !== REPLY.server || data.length < 4) throw badReply(type);
      const length = viewOf(data).getUint32(0);
      if (length > data.length - 4) throw badReply(type);
      found.push({
        name: fromUtf8(data.subarray(4, 4 + length)),
        description: fromUtf8(data.subarray(4 + length)),
      });
    });
    return found;
  }

  /**
   * Chooses an export; the transmission phase follows.
   *
   * @throws {NbdError} If the server refuses.
   */
  async go(
    exportName: string,
    options: { structured: boolean; allocation: boolean },
  ): Promise<ExportInfo> {
    const structured = options.structured &&
      await this.#mayAsk(OPTION.structuredReply, new Uint8Array());
    let allocationId: number | undefined;
    if (structured && options.allocation) {
      const query = contextQuery(exportName);
      await this.#mayAsk(OPTION.setMetaContext, query, (type, data) => {
        if (type !== REPLY.metaContext || data.length < 4) throw badReply(type);
        const name = fromUtf8(data.subarray(4));
        if (name === ALLOCATION_CONTEXT) {
          allocationId = viewOf(data).getUint32(0);
        }
      });
    }
    const name = utf8(exportName);
    const data = new Uint8Array(4 + name.length + 2 + 6);
    const view = viewOf(data);
    view.setUint32(0, name.length);
    data.set(name, 4);
    view.setUint16(4 + name.length, 3);
    [INFO.name, INFO.description, INFO.blockSize].forEach((kind, i) => {
      view.setUint16(6 + name.length + 2 * i, kind);
    });
    const info: ExportInfo = {
      size: -1,
      flags: 0,
      name: undefined,
      description: undefined,
      minimumBlockSize: 1,
      preferredBlockSize: 4096,
      maximumPayload: MAX_PAYLOAD,
      structured,
      allocationId,
    };
    try {
      await this.#ask(OPTION.go, data, (type, bytes) => {
        if (type !== REPLY.info) throw badReply(type);
        readInfo(bytes, info);
      });
    } catch (error) {
      const old = error instanceof NbdError && error.errno === REPLY.errUnsup;
      if (!old) throw error;
      await this.#exportName(name, info);
    }
    if (info.size < 0) {
      throw new FormatError("NBD option reply", "export size", "is missing");
    }
    if ((info.flags & TRANSMISSION.hasFlags) === 0) info.flags = 1;
    return info;
  }

  /** Gives up politely. */
  async abort(): Promise<void> {
    await this.#send(OPTION.abort, new Uint8Array());
  }

  /** The option of servers that do not know GO; a refusal is a closed connection. */
  async #exportName(name: Uint8Array, info: ExportInfo): Promise<void> {
    await this.#send(OPTION.exportName, name);
    const at = await this.#need(this.#noZeroes ? 10 : 134);
    info.size = checkSize(getU64be(this.#rx.view, at));
    info.flags = this.#rx.view.getUint16(at + 8);
  }

  /** Like {@linkcode #ask}; false when the server refuses. */
  async #mayAsk(
    option: number,
    data: Uint8Array,
    onReply: (type: number, data: Uint8Array) => void = badReplyTo,
  ): Promise<boolean> {
    try {
      await this.#ask(option, data, onReply);
      return true;
    } catch (error) {
      if (error instanceof NbdError) return false;
      throw error;
    }
  }

  /** Sends an option and takes its replies until the final one. */
  async #ask(
    option: number,
    data: Uint8Array,
    onReply: (type: number, data: Uint8Array) => void,
  ): Promise<void> {
    await this.#send(option, data);
    for (let count = 0; count < MAX_REPLIES; count++) {
      const at = await this.#need(OPTION_REPLY_SIZE);
      const { view } = this.#rx;
      if (
        view.getUint32(at) !== MAGIC.optionReplyHi ||
        view.getUint32(at + 4) !== MAGIC.optionReplyLo
      ) throw new FormatError("NBD option reply", "magic", "is wrong");
      const to = view.getUint32(at + 8);
      const type = view.getUint32(at + 12);
      const length = view.getUint32(at + 16);
      if (to !== option) {
        throw new FormatError("NBD option reply", "option", `is ${to}`);
      }
      if (length > MAX_REPLY) {
        throw new FormatError("NBD option reply", "length", `is ${length}`);
      }
      const from = await this.#need(length);
      const bytes = this.#rx.bytes.slice(from, from + length);
      if (type === REPLY.ack) return;
      if (type >= 0x80000000) {
        const text = fromUtf8(bytes.subarray(0, MAX_STRING));
        const reason = REASONS[type] ?? `reply 0x${type.toString(16)}`;
        throw new NbdError(
          `NBD server refuses option ${option}: ${reason}` +
            (text === "" ? "" : `: ${text}`),
          type,
        );
      }
      onReply(type, bytes);
    }
    throw new FormatError("NBD option reply", "count", "is too high");
  }

  async #send(option: number, data: Uint8Array): Promise<void> {
    const bytes = new Uint8Array(OPTION_HEADER_SIZE + data.length);
    const view = viewOf(bytes);
    view.setUint32(0, MAGIC.optionHi);
    view.setUint32(4, MAGIC.optionLo);
    view.setUint32(8, option);
    view.setUint32(12, data.length);
    bytes.set(data, OPTION_HEADER_SIZE);
    await writeStream(this.#stream, bytes);
  }

  /** Takes `length` bytes; returns where they start in the receive buffer. */
  async #need(length: number): Promise<number> {
    const rx = this.#rx;
    if (!await rx.need(length)) {
      throw new FormatError("NBD handshake", "length", "is cut short");
    }
    const at = rx.start;
    rx.start += length;
    return at;
  }
}

/** What error replies mean, for people. */
const REASONS: Readonly<Record<number, string>> = {
  [REPLY.errUnsup]: "not supported",
  [REPLY.errPolicy]: "forbidden by policy",
  [REPLY.errInvalid]: "invalid",
  [REPLY.errPlatform]: "not supported on its platform",
  [REPLY.errTlsRequired]: "TLS required",
  [REPLY.errUnknown]: "unknown export",
  [REPLY.errShutdown]: "shutting down",
  [REPLY.errBlockSizeRequired]: "block sizes must be negotiated",
  [REPLY.errTooBig]: "too big",
};

function badReply(type: number): FormatError {
  return new FormatError("NBD option reply", "type", `is ${type}`);
}

function badReplyTo(type: number): never {
  throw badReply(type);
}

function checkSize(size: number): number {
  if (size > MAX_SIZE) {
    throw new FormatError("NBD export", "size", `is ${size}`);
  }
  return size;
}

function contextQuery(exportName: string): Uint8Array {
  const name = utf8(exportName);
  const query = utf8(ALLOCATION_CONTEXT);
  const data = new Uint8Array(4 + name.length + 8 + query.length);
  const view = viewOf(data);
  view.setUint32(0, name.length);
  data.set(name, 4);
  view.setUint32(4 + name.length, 1);
  view.setUint32(8 + name.length, query.length);
  data.set(query, 12 + name.length);
  return data;
}

function readInfo(bytes: Uint8Array, info: ExportInfo): void {
  const view = viewOf(bytes);
  const problem = (field: string) =>
    new FormatError("NBD export information", field, "is wrong");
  if (bytes.length < 2) throw problem("length");
  switch (view.getUint16(0)) {
    case INFO.export:
      if (bytes.length !== 12) throw problem("length");
      info.size = checkSize(getU64be(view, 2));
      info.flags = view.getUint16(10);
      break;
    case INFO.name:
      info.name = fromUtf8(bytes.subarray(2));
      break;
    case INFO.description:
      info.description = fromUtf8(bytes.subarray(2));
      break;
    case INFO.blockSize: {
      if (bytes.length !== 14) throw problem("length");
      const [minimum, preferred, maximum] = [2, 6, 10].map((at) =>
        view.getUint32(at)
      ) as [number, number, number];
      const isPower = (n: number) => n > 0 && (n & (n - 1)) === 0;
      if (!isPower(minimum) || minimum > 65536) throw problem("minimum block");
      if (!isPower(preferred) || preferred < minimum) {
        throw problem("preferred block");
      }
      if (maximum < minimum) throw problem("maximum block");
      info.minimumBlockSize = minimum;
      info.preferredBlockSize = preferred;
      info.maximumPayload = Math.min(maximum, MAX_PAYLOAD);
      break;
    }
    default: // Clients ignore what they do not know.
  }
}

/**
 * Connects and runs `work` in the handshake; closes the stream if that fails.
 *
 * @param open How to connect.
 * @throws {NotFoundError} If the server does not know the export.
 * @throws {DeadlineError} If it takes longer than `deadlineMs`.
 */
export async function connectAndTalk<T>(
  target: NbdTarget,
  deadlineMs: number,
  work: (talk: ClientHandshake, rx: ReceiveBuffer) => Promise<T>,
  open: (target: NbdTarget) => Promise<ByteStream> = ({ address }) =>
    dial(address),
): Promise<{ stream: SharedStream; result: T }> {
  const stream = new SharedStream(await open(target));
  const onAbort = () => stream.close();
  try {
    const result = await withDeadline(
      "NBD handshake",
      deadlineMs,
      async (signal) => {
        signal.addEventListener("abort", onAbort);
        const rx = new ReceiveBuffer(stream, CLIENT_RECEIVE_BYTES);
        const talk = new ClientHandshake(stream, rx);
        await talk.greet();
        return await work(talk, rx);
      },
    );
    return { stream, result };
  } catch (error) {
    stream.close();
    if (error instanceof NbdError && error.errno === REPLY.errUnknown) {
      throw new NotFoundError(`No NBD export "${target.exportName}"`, {
        cause: error,
      });
    }
    throw error;
  }
}
