/** How much a set of files needs at most, to tell a user which device would do. */

import { type FileBody, logicalRuns } from "./body.ts";
import { direntSize, EXTENT_LENGTH_MAX, FAST_SYMLINK_MAX } from "./format.ts";
import { extentNodeCount } from "./extent_build.ts";
import {
  BLOCK_SIZE,
  DEFAULT_INODE_RATIO,
  type SpaceNeed,
  virtualSizeFor,
} from "./geometry.ts";

/** Bytes of names that a directory block holds at least: a block ends where the longest name no longer fits. */
const NAMES_PER_BLOCK = BLOCK_SIZE - direntSize(255) - 64;

/** One node to count. */
export interface CountedNode {
  type: "file" | "directory" | "symlink" | "other";
  /** Bytes of its name. */
  nameLength: number;
  /** Of a file. */
  body?: FileBody;
  /** Bytes of a symlink's target. */
  targetLength?: number;
  /** Whether it has xattrs. */
  hasXattrs?: boolean;
}

/**
 * Sums up what nodes need at most. Nothing is ever taken off, so that it holds
 * for all layers of an image together, whatever the upper ones remove.
 */
export class SpaceCounter {
  #inodes = 1;
  /** The root has a block. */
  #blocks = 1;
  #nameBytes = 0;

  /** Counts one node. */
  add(node: CountedNode): void {
    this.#inodes++;
    this.addName(node.nameLength);
    if (node.hasXattrs) this.#blocks++;
    switch (node.type) {
      case "directory":
        // One for "." and "..", one that is not full.
        this.#blocks += 2;
        break;
      case "symlink":
        if ((node.targetLength ?? 0) > FAST_SYMLINK_MAX) this.#blocks++;
        break;
      case "file": {
        let extents = 0;
        for (const { count } of logicalRuns(node.body ?? { size: 0 })) {
          this.#blocks += count;
          extents += Math.ceil(count / EXTENT_LENGTH_MAX);
        }
        this.#blocks += extentNodeCount(extents);
        break;
      }
    }
  }

  /** Counts another name of a node that was counted. */
  addName(nameLength: number): void {
    this.#nameBytes += direntSize(nameLength);
  }

  /** The sum. */
  get need(): SpaceNeed {
    return {
      inodes: this.#inodes,
      blocks: this.#blocks + Math.ceil(this.#nameBytes / NAMES_PER_BLOCK),
    };
  }

  /**
   * The smallest whole number of GiB that holds everything, in bytes.
   *
   * @throws {LimitError} If no device does.
   */
  virtualSize(inodeRatio: number = DEFAULT_INODE_RATIO): number {
    return virtualSizeFor(this.need, inodeRatio);
  }
}
