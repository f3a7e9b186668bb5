/**
 * The push parser: an uncompressed tar in pieces of any size goes in, entries
 * come out. Bodies are skipped in constant time per piece.
 */
import {
  type ByteString,
  FormatError,
  invariant,
  LimitError,
  quoteName,
  roundUp,
  UnsupportedError,
} from "../io/mod.ts";
import { TarBody } from "./body.ts";
import { SECTOR_SIZE, type TarEntry } from "./entry.ts";
import { buildEntry, entryTypeOf, TYPE } from "./entry_builder.ts";
import { ExtensionReader, isExtension } from "./extensions.ts";
import {
  isZeroBlock,
  readDevice,
  readHeader,
  type TarHeader,
} from "./header.ts";
import { DEFAULT_TAR_LIMITS, PatchBudget, type TarLimits } from "./limits.ts";
import type { PaxSparse } from "./pax.ts";
import {
  BodyMap,
  checkSparseMap,
  OldGnuMap,
  paxSparseVersion,
  type SparseMap,
  type SparseVersion,
} from "./sparse.ts";

/** Settings of a {@linkcode TarWalker}. */
export interface TarWalkerOptions {
  /** Receives each entry once its body has passed, in the archive's order; it owns the entry. */
  onEntry(entry: TarEntry): void;
  /** Where they differ from {@linkcode DEFAULT_TAR_LIMITS}. */
  limits?: Partial<TarLimits>;
}

/** What the next byte belongs to. */
type State =
  /** A header block, or a zero block. */
  | "header"
  /** The records or name of an extension header. */
  | "extension"
  /** Zeros up to the next block; what they hold does not matter. */
  | "padding"
  /** An extension block of an old GNU sparse map. */
  | "mapBlock"
  /** A PAX 1.0 sparse map in front of the data. */
  | "map"
  | "body"
  /** Behind the two zero blocks: ignored. */
  | "end"
  /** After an error, or `finish`. */
  | "closed";

/** The file whose body is passing. */
interface OpenFile {
  entry: TarEntry;
  /** Of its header, for errors. */
  offset: number;
  /** Bytes of the tar where the body ends, without padding. */
  bodyEnd: number;
}

/**
 * Walks an uncompressed tar.
 *
 * @example
 * ```ts
 * import { TarWalker } from "./mod.ts";
 *
 * const walker = new TarWalker({ onEntry: (entry) => void entry.path });
 * walker.push(new Uint8Array(1024)); // the two zero blocks of an empty archive
 * walker.finish();
 * ```
 */
export class TarWalker {
  readonly #onEntry: (entry: TarEntry) => void;
  readonly #limits: TarLimits;
  readonly #budget: PatchBudget;

  #state: State = "header";
  /** Bytes of the tar consumed. */
  #position = 0;
  /** A block that comes in several pieces. */
  readonly #block = new Uint8Array(SECTOR_SIZE);
  #blockFill = 0;
  #sawZeroBlock = false;
  /** Where padding ends. */
  #paddingEnd = 0;

  readonly #extensions: ExtensionReader;

  #file: OpenFile | undefined;
  #oldMap: OldGnuMap | undefined;
  #bodyMap: BodyMap | undefined;
  #body: TarBody | undefined;
  readonly #tail = new Uint8Array(SECTOR_SIZE);

  /** @param options The receiver of entries, and limits. */
  constructor(options: TarWalkerOptions) {
    this.#onEntry = options.onEntry;
    this.#limits = { ...DEFAULT_TAR_LIMITS, ...options.limits };
    this.#budget = new PatchBudget(this.#limits.patchBytes);
    this.#extensions = new ExtensionReader(this.#limits);
  }

  /**
   * Takes the next bytes.
   *
   * After it threw, the walker is closed. Bytes behind the end of the archive
   * are ignored.
   *
   * @param bytes Any number; borrowed for the call.
   * @throws {FormatError} When the archive is damaged or a path leaves the root.
   * @throws {LimitError} When it asks for more than the limits.
   * @throws {UnsupportedError} For a type of entry that containers do not have.
   */
  push(bytes: Uint8Array): void {
    invariant(this.#state !== "closed", "push to a closed TarWalker");
    try {
      let at = 0;
      while (at < bytes.length) at += this.#step(bytes, at);
    } catch (error) {
      this.#close();
      throw error;
    }
  }

  /**
   * Ends the input. An archive may end without zero blocks, and within the
   * padding of its last body.
   *
   * @throws {FormatError} When it ends elsewhere.
   */
  finish(): void {
    invariant(this.#state !== "closed", "finish of a closed TarWalker");
    try {
      this.#endInput();
    } finally {
      this.#close();
    }
  }

  #close(): void {
    this.#state = "closed";
    this.#file =
      this.#oldMap =
      this.#bodyMap =
      this.#body =
        undefined;
  }

  /** Consumes at least one byte from `at` on; returns how many. */
  #step(bytes: Uint8Array, at: number): number {
    switch (this.#state) {
      case "header":
      case "mapBlock":
        return this.#takeBlock(bytes, at);
      case "extension":
        return this.#takeExtension(bytes, at);
      case "padding":
        return this.#takePadding(bytes.length - at);
      case "map":
        return this.#takeMap(bytes, at);
      case "body":
        return this.#takeBody(bytes, at);
      case "end":
      case "closed":
        this.#position += bytes.length - at;
        return bytes.length - at;
    }
  }

  // ---- blocks

  #takeBlock(bytes: Uint8Array, at: number): number {
    const available = bytes.length - at;
    if (this.#blockFill === 0 && available >= SECTOR_SIZE) {
      this.#onBlock(bytes, at);
      return SECTOR_SIZE;
    }
    const taken = Math.min(available, SECTOR_SIZE - this.#blockFill);
    this.#block.set(bytes.subarray(at, at + taken), this.#blockFill);
    this.#blockFill += taken;
    if (this.#blockFill === SECTOR_SIZE) {
      this.#blockFill = 0;
      this.#onBlock(this.#block, 0);
    }
    return taken;
  }

  #onBlock(bytes: Uint8Array, at: number): void {
    const offset = this.#position;
    this.#position += SECTOR_SIZE;
    if (this.#state === "mapBlock") {
      this.#oldMap!.extend(bytes, at, offset);
      this.#file!.bodyEnd += SECTOR_SIZE; // the size does not count these blocks
      this.#endOldMap();
    } else if (isZeroBlock(bytes, at)) {
      if (this.#sawZeroBlock) this.#state = "end";
      this.#sawZeroBlock = true;
    } else if (this.#sawZeroBlock) {
      throw new FormatError(
        "tar",
        "end",
        "is a single zero block with more behind it",
        { offset: offset - SECTOR_SIZE },
      );
    } else {
      this.#onHeader(readHeader(bytes, at, offset), bytes, at, offset);
    }
  }

  #onHeader(
    header: TarHeader,
    bytes: Uint8Array,
    at: number,
    offset: number,
  ): void {
    if (!isExtension(header.type)) {
      this.#startEntry(header, bytes, at, offset);
      return;
    }
    this.#extensions.start(header.type, header.size, offset);
    this.#state = "extension";
    if (this.#extensions.done) this.#pad();
  }

  // ---- extension headers

  #takeExtension(bytes: Uint8Array, at: number): number {
    const taken = this.#extensions.push(bytes, at);
    this.#position += taken;
    if (this.#extensions.done) this.#pad();
    return taken;
  }

  /** Goes on at the next block boundary. */
  #pad(): void {
    this.#paddingEnd = roundUp(this.#position, SECTOR_SIZE);
    this.#state = "padding";
    if (this.#paddingEnd === this.#position) this.#endPadding();
  }

  #takePadding(available: number): number {
    const taken = Math.min(available, this.#paddingEnd - this.#position);
    this.#position += taken;
    if (this.#position === this.#paddingEnd) this.#endPadding();
    return taken;
  }

  #endPadding(): void {
    if (this.#bodyMap === undefined) this.#state = "header";
    else this.#startBody(this.#bodyMap.map);
  }

  // ---- entries

  #startEntry(
    header: TarHeader,
    bytes: Uint8Array,
    at: number,
    offset: number,
  ): void {
    const extensions = this.#extensions.take();
    const { pax } = extensions;
    const sparse = paxSparseVersion(pax?.sparse, offset);
    const name = sparse !== undefined && pax!.sparse!.name !== ""
      ? pax!.sparse!.name
      : extensions.longName || (pax?.path ?? header.name);
    const type = entryTypeOf(header.type, name, offset);
    const entry = buildEntry(
      type,
      name,
      header,
      extensions,
      () => readDevice(bytes, at, header.dialect, offset),
      offset,
    );
    if (type !== "file") {
      if (sparse !== undefined) {
        throw new FormatError("sparse map", "type", `is ${type}`, { offset });
      }
      // Links, devices and directories have no body, whatever their size says.
      this.#onEntry(entry);
      return;
    }
    const bodyBytes = this.#bounded(pax?.size ?? header.size, offset);
    entry.size = bodyBytes;
    this.#file = { entry, offset, bodyEnd: this.#position + bodyBytes };
    if (header.type === TYPE.gnuSparse) {
      this.#startOldMap(header, bytes, at);
    } else if (sparse !== undefined) {
      this.#startPaxMap(pax!.sparse!, sparse);
    } else {
      this.#startBody(undefined);
    }
  }

  #bounded(size: number, offset: number): number {
    if (size < 0) throw badSize(size, offset);
    if (size >= this.#limits.fileBytes) {
      throw new LimitError(
        `Cannot take tar entry at offset ${offset}: a file of ${size} bytes, not below ${this.#limits.fileBytes}`,
      );
    }
    return size;
  }

  // ---- sparse maps

  #startOldMap(header: TarHeader, bytes: Uint8Array, at: number): void {
    const { entry, offset } = this.#file!;
    if (header.dialect !== "gnu") {
      throw new UnsupportedError(
        "star sparse file",
        `Cannot take tar entry ${
          quoteName(entry.path)
        } at offset ${offset}: a sparse file in a form other than GNU's`,
      );
    }
    this.#oldMap = new OldGnuMap(
      bytes,
      at,
      this.#limits,
      entry.path,
      offset,
    );
    this.#endOldMap();
  }

  #endOldMap(): void {
    const map = this.#oldMap!;
    if (map.more) {
      this.#state = "mapBlock";
      return;
    }
    const { entry, offset } = this.#file!;
    entry.size = this.#bounded(map.realSize, offset);
    this.#startBody(map.map);
  }

  #startPaxMap(sparse: PaxSparse, version: SparseVersion): void {
    const { entry, offset, bodyEnd } = this.#file!;
    entry.size = this.#bounded(
      sparse.size ?? sparse.realSize ?? entry.size,
      offset,
    );
    if (version === "0.x") {
      const map = sparse.map ?? [];
      if (sparse.segmentCount !== map.length / 2) {
        throw new FormatError(
          "sparse map",
          "GNU.sparse.numblocks",
          `is ${
            sparse.segmentCount ?? "missing"
          }, the map has ${map.length} numbers`,
          { offset },
        );
      }
      this.#startBody(map);
      return;
    }
    this.#bodyMap = new BodyMap(this.#limits, entry.path);
    this.#state = "map";
    if (bodyEnd === this.#position) throw mapPassesBody(entry.path, offset);
  }

  #takeMap(bytes: Uint8Array, at: number): number {
    const { entry, offset, bodyEnd } = this.#file!;
    const map = this.#bodyMap!;
    const limit = Math.min(bytes.length, at + bodyEnd - this.#position);
    const taken = map.push(bytes, at, limit, this.#position);
    this.#position += taken;
    const needed = map.done
      ? roundUp(this.#position, SECTOR_SIZE)
      : this.#position + 1;
    if (needed > bodyEnd) throw mapPassesBody(entry.path, offset);
    if (map.done) this.#pad();
    return taken;
  }

  // ---- bodies

  #startBody(map: SparseMap | undefined): void {
    const { entry, offset, bodyEnd } = this.#file!;
    const bodyBytes = bodyEnd - this.#position;
    this.#oldMap = this.#bodyMap = undefined;
    if (map !== undefined) {
      checkSparseMap(map, entry.size, bodyBytes, entry.path, offset);
    }
    this.#body = new TarBody(
      map,
      this.#position,
      bodyBytes,
      entry.path,
      this.#budget,
      this.#tail,
    );
    this.#state = "body";
    if (bodyBytes === 0) this.#endBody();
  }

  #takeBody(bytes: Uint8Array, at: number): number {
    const body = this.#body!;
    const taken = Math.min(bytes.length - at, body.end - this.#position);
    body.take(bytes, at, taken, this.#position);
    this.#position += taken;
    if (this.#position === body.end) this.#endBody();
    return taken;
  }

  #endBody(): void {
    const body = this.#body!;
    const { entry } = this.#file!;
    body.finish(this.#position);
    entry.runs = body.runs;
    entry.patches = body.patches;
    this.#file = this.#body = undefined;
    this.#state = "header";
    this.#onEntry(entry);
  }

  // ---- end of input

  #endInput(): void {
    const inBlock = this.#blockFill > 0;
    switch (this.#state) {
      case "header":
        if (!inBlock) return;
        break;
      case "body":
        if (this.#position >= this.#body!.dataEnd) return this.#endBody();
        break;
      case "padding":
        if (this.#file === undefined) return;
        break;
      case "end":
        return;
    }
    const file = this.#file === undefined
      ? ""
      : ` in ${quoteName(this.#file.entry.path)}`;
    throw new FormatError("tar", "length", `is too short: it ends${file}`, {
      offset: this.#position + this.#blockFill,
    });
  }
}

function badSize(size: number, offset: number): FormatError {
  return new FormatError("tar header", "size", `is ${size}`, { offset });
}

function mapPassesBody(path: ByteString, offset: number): FormatError {
  return new FormatError(
    "sparse map",
    "length",
    `of ${quoteName(path)} passes the body`,
    { offset },
  );
}
