/** The server's half of the fixed newstyle handshake [proto.md, Handshake]. */

import { FormatError, utf8, viewOf } from "../io/mod.ts";
import type { ExportRegistry, NbdExport } from "./exports.ts";
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
  setU64be,
} from "./protocol.ts";
import { type ByteStream, type ReceiveBuffer, writeStream } from "./stream.ts";

/** Most bytes of an option's data that are looked at; must fit the receive buffer. */
const MAX_OPTION_DATA = 48 * 1024;
/** Most bytes of an option's data that are dropped politely. */
const MAX_OPTION_SKIP = 1024 * 1024;
/** Most options of one handshake: `nbdinfo --list` sends a few for each export. */
const MAX_OPTIONS = 4096;
/** Most queries in one meta context option. */
const MAX_QUERIES = 64;
/** What we tell clients about sizes: any byte may be read, and 4 KiB is a page. */
const MINIMUM_BLOCK = 1;
const PREFERRED_BLOCK = 4096;

/** What a finished handshake agreed on. */
export interface Negotiated {
  export: NbdExport;
  structured: boolean;
  /** Whether `base:allocation` was selected for this export. */
  allocation: boolean;
}

/** The context id that we give to `base:allocation`. */
export const ALLOCATION_ID = 1;

/** Reads the fields of an option's data, and never past its end. */
class OptionReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = viewOf(bytes);
  }

  u16(): number {
    const at = this.#advance(2);
    return this.#view.getUint16(at);
  }

  u32(): number {
    const at = this.#advance(4);
    return this.#view.getUint32(at);
  }

  /** A string of `length` bytes, which must be clean UTF-8. */
  string(length: number): string {
    if (length > MAX_STRING) throw badOption(`a string of ${length} bytes`);
    const at = this.#advance(length);
    return decodeString(this.#bytes.subarray(at, at + length));
  }

  end(): void {
    if (this.#at !== this.#bytes.length) throw badOption("bytes left over");
  }

  #advance(length: number): number {
    const at = this.#at;
    if (length > this.#bytes.length - at) throw badOption("is too short");
    this.#at += length;
    return at;
  }
}

function badOption(problem: string): FormatError {
  return new FormatError("NBD option", "data", problem);
}

function decodeString(bytes: Uint8Array): string {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
      .decode(bytes);
  } catch {
    throw badOption("a string that is not UTF-8");
  }
  if (text.includes("\0")) throw badOption("a string with a NUL");
  return text;
}

/** One handshake with one client. */
export class ServerHandshake {
  readonly #stream: ByteStream;
  readonly #rx: ReceiveBuffer;
  readonly #exports: ExportRegistry;
  #noZeroes = false;
  #structured = false;
  /** The export for which `base:allocation` was selected last. */
  #contextExport: NbdExport | undefined;

  constructor(
    stream: ByteStream,
    rx: ReceiveBuffer,
    exports: ExportRegistry,
  ) {
    this.#stream = stream;
    this.#rx = rx;
    this.#exports = exports;
  }

  /**
   * Talks until the client has chosen an export.
   *
   * @returns Undefined when the client went away or gave up.
   * @throws {FormatError} If the client does not speak the protocol; the
   * connection is then to be closed.
   */
  async run(): Promise<Negotiated | undefined> {
    await this.#greet();
    const rx = this.#rx;
    if (!await rx.need(4)) return undefined;
    const flags = rx.view.getUint32(rx.start);
    rx.start += 4;
    const known = HANDSHAKE.fixedNewstyle | HANDSHAKE.noZeroes;
    if ((flags & ~known) !== 0) {
      throw new FormatError("NBD handshake", "client flags", `are ${flags}`);
    }
    const fixed = (flags & HANDSHAKE.fixedNewstyle) !== 0;
    this.#noZeroes = (flags & HANDSHAKE.noZeroes) !== 0;
    for (let count = 0; count < MAX_OPTIONS; count++) {
      if (!await rx.need(OPTION_HEADER_SIZE)) return undefined;
      const { option, length } = this.#readOptionHeader();
      if (!fixed && option !== OPTION.exportName) {
        throw new FormatError("NBD handshake", "option", `is ${option}`);
      }
      if (length > MAX_OPTION_DATA) {
        if (length > MAX_OPTION_SKIP || option === OPTION.exportName) {
          throw new FormatError("NBD option", "length", `is ${length}`);
        }
        if (!await rx.skip(length)) return undefined;
        await this.#reply(option, REPLY.errTooBig);
        continue;
      }
      if (!await rx.need(length)) return undefined;
      const data = rx.bytes.slice(rx.start, rx.start + length);
      rx.start += length;
      const outcome = await this.#answer(option, data);
      if (outcome !== "next") return outcome === "end" ? undefined : outcome;
    }
    throw new FormatError("NBD handshake", "options", "are too many");
  }

  async #greet(): Promise<void> {
    const view = new DataView(new ArrayBuffer(GREETING_SIZE));
    view.setUint32(0, MAGIC.initHi);
    view.setUint32(4, MAGIC.initLo);
    view.setUint32(8, MAGIC.optionHi);
    view.setUint32(12, MAGIC.optionLo);
    view.setUint16(16, HANDSHAKE.fixedNewstyle | HANDSHAKE.noZeroes);
    await writeStream(this.#stream, new Uint8Array(view.buffer));
  }

  #readOptionHeader(): { option: number; length: number } {
    const { view, start } = this.#rx;
    if (
      view.getUint32(start) !== MAGIC.optionHi ||
      view.getUint32(start + 4) !== MAGIC.optionLo
    ) {
      const got = getU64be(view, start).toString(16);
      throw new FormatError("NBD option", "magic", `is 0x${got}`);
    }
    this.#rx.start += OPTION_HEADER_SIZE;
    return {
      option: view.getUint32(start + 8),
      length: view.getUint32(start + 12),
    };
  }

  async #answer(
    option: number,
    data: Uint8Array,
  ): Promise<Negotiated | "next" | "end"> {
    if (option === OPTION.abort) {
      // The client may be gone before it has read this.
      await this.#reply(option, REPLY.ack).catch(() => {});
      return "end";
    }
    if (option === OPTION.exportName) return await this.#exportName(data);
    try {
      if (option === OPTION.go) return await this.#info(option, data);
      else if (option === OPTION.info) await this.#info(option, data);
      else if (option === OPTION.list) await this.#list(data);
      else if (option === OPTION.structuredReply) {
        new OptionReader(data).end();
        this.#structured = true;
        await this.#reply(option, REPLY.ack);
      } else if (
        option === OPTION.listMetaContext || option === OPTION.setMetaContext
      ) await this.#metaContext(option, data);
      else await this.#reply(option, REPLY.errUnsup);
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      await this.#reply(option, REPLY.errInvalid, error.message);
    }
    return "next";
  }

  /** The one option that cannot be refused but by hanging up. */
  async #exportName(data: Uint8Array): Promise<Negotiated | "end"> {
    const found = data.length <= MAX_STRING
      ? this.#exports.find(decodeString(data))
      : undefined;
    if (!found) return "end";
    const bytes = new Uint8Array(this.#noZeroes ? 10 : 134);
    const view = viewOf(bytes);
    setU64be(view, 0, found.source.size);
    view.setUint16(8, found.transmissionFlags(this.#structured));
    await writeStream(this.#stream, bytes);
    return this.#negotiated(found);
  }

  #negotiated(found: NbdExport): Negotiated {
    const structured = this.#structured;
    // Contexts count only for the export that they were selected for.
    const allocation = structured && this.#contextExport === found;
    return { export: found, structured, allocation };
  }

  async #list(data: Uint8Array): Promise<void> {
    new OptionReader(data).end();
    for (const { name, description } of this.#exports.list()) {
      const nameBytes = utf8(name);
      const text = utf8(description ?? "");
      const bytes = new Uint8Array(4 + nameBytes.length + text.length);
      viewOf(bytes).setUint32(0, nameBytes.length);
      bytes.set(nameBytes, 4);
      bytes.set(text, 4 + nameBytes.length);
      await this.#reply(OPTION.list, REPLY.server, bytes);
    }
    await this.#reply(OPTION.list, REPLY.ack);
  }

  /** INFO and GO: the same but for what follows. */
  async #info(
    option: number,
    data: Uint8Array,
  ): Promise<Negotiated | "next"> {
    const reader = new OptionReader(data);
    const name = reader.string(reader.u32());
    const wanted = new Set<number>();
    for (let count = reader.u16(); count > 0; count--) wanted.add(reader.u16());
    reader.end();
    const found = this.#exports.find(name);
    if (!found) {
      await this.#reply(option, REPLY.errUnknown, `No export "${name}"`);
      return "next";
    }
    const size = new Uint8Array(12);
    viewOf(size).setUint16(0, INFO.export);
    setU64be(viewOf(size), 2, found.source.size);
    viewOf(size).setUint16(10, found.transmissionFlags(this.#structured));
    await this.#reply(option, REPLY.info, size);
    if (wanted.has(INFO.name)) {
      await this.#reply(option, REPLY.info, textInfo(INFO.name, found.name));
    }
    if (wanted.has(INFO.description) && found.description !== undefined) {
      const text = textInfo(INFO.description, found.description);
      await this.#reply(option, REPLY.info, text);
    }
    if (wanted.has(INFO.blockSize)) {
      const bytes = new Uint8Array(14);
      const view = viewOf(bytes);
      view.setUint16(0, INFO.blockSize);
      view.setUint32(2, MINIMUM_BLOCK);
      view.setUint32(6, PREFERRED_BLOCK);
      view.setUint32(10, MAX_PAYLOAD);
      await this.#reply(option, REPLY.info, bytes);
    }
    await this.#reply(option, REPLY.ack);
    return option === OPTION.go ? this.#negotiated(found) : "next";
  }

  async #metaContext(option: number, data: Uint8Array): Promise<void> {
    const setting = option === OPTION.setMetaContext;
    // A failed selection selects nothing, whatever was selected before.
    if (setting) this.#contextExport = undefined;
    if (!this.#structured) throw badOption("needs structured replies first");
    const reader = new OptionReader(data);
    const name = reader.string(reader.u32());
    const count = reader.u32();
    if (count > MAX_QUERIES) throw badOption(`has ${count} queries`);
    let matched = !setting && count === 0;
    for (let i = 0; i < count; i++) {
      const query = reader.string(reader.u32());
      // "base:" lists its whole namespace; to select, a context must be named.
      matched ||= query === ALLOCATION_CONTEXT ||
        (!setting && query === "base:");
    }
    reader.end();
    const found = this.#exports.find(name);
    if (!found) {
      await this.#reply(option, REPLY.errUnknown, `No export "${name}"`);
      return;
    }
    if (matched) {
      const text = utf8(ALLOCATION_CONTEXT);
      const bytes = new Uint8Array(4 + text.length);
      viewOf(bytes).setUint32(0, setting ? ALLOCATION_ID : 0);
      bytes.set(text, 4);
      await this.#reply(option, REPLY.metaContext, bytes);
      if (setting) this.#contextExport = found;
    }
    await this.#reply(option, REPLY.ack);
  }

  async #reply(
    option: number,
    type: number,
    data: Uint8Array | string = new Uint8Array(),
  ): Promise<void> {
    const payload = typeof data === "string"
      ? utf8(data).subarray(0, MAX_STRING)
      : data;
    const bytes = new Uint8Array(OPTION_REPLY_SIZE + payload.length);
    const view = viewOf(bytes);
    view.setUint32(0, MAGIC.optionReplyHi);
    view.setUint32(4, MAGIC.optionReplyLo);
    view.setUint32(8, option);
    view.setUint32(12, type);
    view.setUint32(16, payload.length);
    bytes.set(payload, OPTION_REPLY_SIZE);
    await writeStream(this.#stream, bytes);
  }
}

function textInfo(kind: number, text: string): Uint8Array {
  const body = utf8(text);
  const bytes = new Uint8Array(2 + body.length);
  viewOf(bytes).setUint16(0, kind);
  bytes.set(body, 2);
  return bytes;
}
