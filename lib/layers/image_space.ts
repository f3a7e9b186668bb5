/**
 * What an image needs of its device, summed up over all of its layers, so that
 * a device that is too small ends in an error that names one that is not.
 */

import {
  BLOCK_SIZE,
  computeGeometry,
  type Ext4Model,
  SpaceCounter,
  virtualSizeFor,
} from "../ext4/mod.ts";
import type { ByteString } from "../io/mod.ts";
import { parseWhiteout, type TarEntry } from "../tar/mod.ts";
import { bodyRanges } from "./bodies.ts";

/** Inodes that are never a file's: 1 to 10, of which 2 is the root. */
const RESERVED_INODES = 10;
const GIB = 2 ** 30;

/** Counts entries. Shared by the layers of one build. */
export class ImageSpace {
  readonly #counter = new SpaceCounter();
  readonly #virtualSize: number;
  readonly #belowBlocks: number;
  readonly #belowInodes: number;
  readonly #directories = new Set<ByteString>([""]);
  #fullLayer: number | undefined;

  /** @param model The device before its first counted layer: what is in use counts too. */
  constructor(model: Ext4Model) {
    const { virtualSize, freeBytes, freeInodes } = model;
    const geometry = computeGeometry(virtualSize);
    this.#virtualSize = virtualSize;
    this.#belowBlocks = geometry.blocksCount - geometry.dataStart -
      freeBytes / BLOCK_SIZE;
    this.#belowInodes = geometry.groupCount * geometry.inodesPerGroup -
      RESERVED_INODES - freeInodes;
  }

  /** The first layer that found no room: from it on entries are only counted. */
  get fullLayer(): number | undefined {
    return this.#fullLayer;
  }

  /** Notes that a layer found no room. */
  setFull(layer: number): void {
    this.#fullLayer ??= layer;
  }

  /** Bytes of the device that was too small. */
  get virtualSize(): number {
    return this.#virtualSize;
  }

  /** Counts what an entry needs at most. */
  add(entry: TarEntry): void {
    const { path, type } = entry;
    if (path === "" || parseWhiteout(path)) return;
    const slash = path.lastIndexOf("/");
    this.#addDirectories(slash < 0 ? "" : path.slice(0, slash));
    const nameLength = path.length - slash - 1;
    const hasXattrs = entry.xattrs.length > 0;
    switch (type) {
      case "directory":
        this.#addDirectories(path, hasXattrs);
        break;
      case "hardlink":
        this.#counter.addName(nameLength);
        break;
      case "symlink":
        this.#counter.add({
          type,
          nameLength,
          targetLength: entry.linkTarget.length,
          hasXattrs,
        });
        break;
      case "file":
        this.#counter.add({
          type,
          nameLength,
          body: { size: entry.size, ranges: bodyRanges(entry) },
          hasXattrs,
        });
        break;
      default:
        this.#counter.add({ type: "other", nameLength, hasXattrs });
    }
  }

  /**
   * The smallest device, in whole GiB, that holds everything that was counted.
   *
   * @throws {LimitError} If no device does.
   */
  sufficientSize(): number {
    const { blocks, inodes } = this.#counter.need;
    const size = virtualSizeFor({
      blocks: blocks + this.#belowBlocks,
      inodes: inodes + this.#belowInodes,
    });
    // Something did not fit, whatever the sum says.
    return Math.max(
      size,
      (Math.floor(this.#virtualSize / GIB) + 1) * GIB,
    );
  }

  /** A path and its parents, each once: entries may name files whose directories they never name. */
  #addDirectories(path: ByteString, hasXattrs = false): void {
    for (let at = path; !this.#directories.has(at);) {
      this.#directories.add(at);
      const slash = at.lastIndexOf("/");
      this.#counter.add({
        type: "directory",
        nameLength: at.length - slash - 1,
        hasXattrs,
      });
      at = slash < 0 ? "" : at.slice(0, slash);
    }
  }
}
