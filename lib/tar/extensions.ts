/**
 * Headers that say something of the next entry: PAX "x" and "g", GNU "L" and
 * "K". Which of them wins, and that "g" counts for nothing, follows Go's
 * archive/tar (README.md).
 */
import { type ByteString, FormatError, LimitError } from "../io/mod.ts";
import { SECTOR_SIZE } from "./entry.ts";
import { readCString } from "./header.ts";
import type { TarLimits } from "./limits.ts";
import { parsePax, type PaxRecords } from "./pax.ts";

const PAX_NEXT = 0x78; // "x"
const PAX_GLOBAL = 0x67; // "g"
const GNU_LONG_NAME = 0x4c; // "L"
const GNU_LONG_LINK = 0x4b; // "K"

const EMPTY = new Uint8Array(0);

/** What the headers before an entry's own said of it. */
export interface Extensions {
  pax: PaxRecords | undefined;
  /** From GNU "L"; "" when absent. Wins over PAX records. */
  longName: ByteString;
  /** From GNU "K"; "" when absent. Wins over PAX records. */
  longLink: ByteString;
}

const NONE: Readonly<Extensions> = {
  pax: undefined,
  longName: "",
  longLink: "",
};

/** Whether headers of this type byte are extensions. */
export function isExtension(type: number): boolean {
  return type === PAX_NEXT || type === PAX_GLOBAL ||
    type === GNU_LONG_NAME || type === GNU_LONG_LINK;
}

/** Gathers extensions until the entry comes that they belong to. */
export class ExtensionReader {
  readonly #limits: TarLimits;
  #gathered = NONE;
  #type = 0;
  #offset = 0;
  #bytes = EMPTY;
  #fill = 0;

  constructor(limits: TarLimits) {
    this.#limits = limits;
  }

  /** Whether the current header's data is complete. */
  get done(): boolean {
    return this.#fill === this.#bytes.length;
  }

  /**
   * Starts a header whose data of `size` bytes follows.
   *
   * @param offset Byte offset of the header in the tar.
   * @throws {FormatError | LimitError} When the size is out of bounds.
   */
  start(type: number, size: number, offset: number): void {
    if (size < 0) {
      throw new FormatError("tar header", "size", `is ${size}`, { offset });
    }
    if (size > this.#limits.extensionBytes) {
      throw new LimitError(
        `Cannot take tar extension header at offset ${offset}: ${size} bytes, over ${this.#limits.extensionBytes}`,
      );
    }
    this.#type = type;
    this.#offset = offset;
    this.#bytes = size === 0 ? EMPTY : new Uint8Array(size);
    this.#fill = 0;
    if (size === 0) this.#apply();
  }

  /**
   * Takes bytes of the data.
   *
   * @returns How many were taken.
   * @throws {FormatError | LimitError} When the data is complete and wrong.
   */
  push(bytes: Uint8Array, at: number): number {
    const wanted = this.#bytes.length - this.#fill;
    const taken = Math.min(bytes.length - at, wanted);
    this.#bytes.set(bytes.subarray(at, at + taken), this.#fill);
    this.#fill += taken;
    if (taken === wanted) this.#apply();
    return taken;
  }

  /** What was gathered; the next entry starts with nothing. */
  take(): Readonly<Extensions> {
    const gathered = this.#gathered;
    this.#gathered = NONE;
    return gathered;
  }

  #apply(): void {
    const bytes = this.#bytes;
    this.#bytes = EMPTY;
    this.#fill = 0;
    const dataOffset = this.#offset + SECTOR_SIZE;
    const before = this.#gathered;
    switch (this.#type) {
      case GNU_LONG_NAME:
        this.#gathered = {
          ...before,
          longName: readCString(bytes, 0, bytes.length),
        };
        break;
      case GNU_LONG_LINK:
        this.#gathered = {
          ...before,
          longLink: readCString(bytes, 0, bytes.length),
        };
        break;
      case PAX_NEXT:
        this.#gathered = {
          ...before,
          pax: parsePax(bytes, this.#limits, dataOffset),
        };
        break;
      case PAX_GLOBAL:
        // Checked, then dropped together with what stood before it.
        parsePax(bytes, this.#limits, dataOffset);
        this.#gathered = NONE;
        break;
    }
  }
}
