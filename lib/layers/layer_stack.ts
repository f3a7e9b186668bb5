/** The layers built so far, as the device that the next layer changes. */

import { type ByteSource, FormatError } from "../io/mod.ts";
import {
  LsmtSource,
  mergeTables,
  type SegmentTable,
  stackVirtualSize,
} from "./lsmt/mod.ts";
import type { OpenedLayer } from "./open_layer.ts";

/** Stands for a layer's original content, which the file system's metadata never needs. */
class UnreadTarget implements ByteSource {
  readonly size = Number.MAX_SAFE_INTEGER;

  pread(): Promise<void> {
    return Promise.reject(
      // Only a file system that was made wrong, or on purpose, leads here.
      new FormatError(
        "file system",
        "metadata",
        "lies where a file's body is mapped",
      ),
    );
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/** Grows by one layer at a time; owns the layers' files. */
export class LayerStack implements AsyncDisposable {
  readonly #layers: OpenedLayer[] = [];
  /** Of the first layers. */
  #table = mergeTables([]);
  /** How many they are. */
  #merged = 0;

  /** Whether nothing was put on it yet. */
  get isEmpty(): boolean {
    return this.#layers.length === 0;
  }

  /** Puts a layer on top. */
  add(layer: OpenedLayer): void {
    this.#layers.push(layer);
  }

  /**
   * What all layers map. Each layer is merged once, onto those below, so which
   * layer a row belongs to is not kept.
   */
  table(): SegmentTable {
    const added = this.#layers.slice(this.#merged);
    if (added.length > 0) {
      this.#table = mergeTables([this.#table, ...added.map((l) => l.table)]);
      this.#merged = this.#layers.length;
    }
    return this.#table;
  }

  /** The merged device; only metadata can be read from it. Borrows the layers. */
  device(): ByteSource {
    return new LsmtSource(
      this.#layers.map(({ table, data }) => ({
        table,
        data,
        target: new UnreadTarget(),
      })),
      stackVirtualSize(this.#layers),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const layer of this.#layers) await layer.data[Symbol.asyncDispose]();
  }
}
