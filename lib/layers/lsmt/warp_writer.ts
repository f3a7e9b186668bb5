/**
 * Writes the warp layers of one OCI layer: one as a rule, several with the same
 * target when it has more entries than a reader takes.
 *
 * All ranges are disjoint, so any distribution over layers reads the same: the
 * layer's own blocks are streamed into the first, and mappings fill up what
 * room is left there and in further ones.
 */

import { type ByteSink, invariant } from "../../io/mod.ts";
import { MAX_LAYER_ENTRIES, MAX_SEGMENT_SECTORS, SECTOR } from "./format.ts";
import {
  type LayerFields,
  type LayerSummary,
  LayerWriter,
  sortedTable,
} from "./layer_writer.ts";
import { KIND, SegmentColumns, type SegmentTable } from "./segment_table.ts";

/** Content that the layer stores itself. Bytes; whole sectors. */
export interface LayerBlock {
  /** Byte of the device. */
  offset: number;
  bytes: Uint8Array;
}

/** Ranges of the device that a warp layer maps without storing them. Bytes, whole sectors, any order. */
export class WarpMap {
  readonly #columns = new SegmentColumns(0);

  /** Ranges added, after joining those that were added in sequence. */
  get count(): number {
    return this.#columns.count;
  }

  /** Maps device bytes to bytes of the uncompressed target. */
  addTarget(offset: number, length: number, targetOffset: number): void {
    this.#add(offset, length, targetOffset, KIND.target);
  }

  /** Makes device bytes read as zeros over whatever lower layers map. */
  addZeroed(offset: number, length: number): void {
    this.#add(offset, length, 0, KIND.zeroed);
  }

  /** Sorted and joined; the map may not be added to afterwards. */
  sorted(): SegmentTable {
    return sortedTable(this.#columns);
  }

  #add(
    offset: number,
    length: number,
    targetOffset: number,
    kind: number,
  ): void {
    if (
      offset < 0 || offset % SECTOR !== 0 || length % SECTOR !== 0 ||
      targetOffset < 0 || targetOffset % SECTOR !== 0
    ) {
      throw new RangeError(
        `Cannot map ${length} bytes at ${offset} to ${targetOffset}: not whole sectors`,
      );
    }
    if (length <= 0) return;
    this.#columns.pushJoined(
      offset / SECTOR,
      length / SECTOR,
      targetOffset / SECTOR,
      kind,
      0,
    );
  }
}

/** Where the layers go. */
export interface WarpOutput {
  /** The sink of layer `index`, 0 = bottom; asked for when the layer before is closed. */
  open(index: number): Promise<ByteSink>;
  /** The layer is complete. */
  close(index: number, summary: LayerSummary): Promise<void>;
}

/** What {@linkcode writeWarpLayers} writes. */
export interface WarpContent extends LayerFields {
  map: WarpMap;
  /**
   * What the layer stores itself, in any order, at least one unless the map has
   * a zeroed range. Each is done with before the next is asked for.
   */
  blocks: Iterable<LayerBlock> | AsyncIterable<LayerBlock>;
  /** Entries of one layer at most; default what readers take. For tests. */
  maxEntries?: number | undefined;
}

/**
 * Writes one or more warp layers, bottom first. Their order in the stack does
 * not matter to readers, only that nothing lies between them.
 *
 * @returns One summary for each layer.
 * @throws {TypeError} If ranges overlap, or nothing is the layer's own.
 */
export async function writeWarpLayers(
  output: WarpOutput,
  content: WarpContent,
): Promise<LayerSummary[]> {
  const parts = new WarpParts(output, content);
  for await (const block of content.blocks) await parts.store(block);
  await parts.mapAll(content.map.sorted());
  return parts.summaries;
}

/**
 * Writes a warp layer that is known to fit in one.
 *
 * @param sink Gets the LSMT file and stays open.
 * @throws {LimitError} If it has more entries than a reader takes.
 */
export async function writeWarpLayer(
  sink: ByteSink,
  content: Omit<WarpContent, "maxEntries">,
): Promise<LayerSummary> {
  const output: WarpOutput = {
    open: () => Promise.resolve(sink),
    close: () => Promise.resolve(),
  };
  // Unlimited here, LayerWriter refuses what is too much.
  const [summary] = await writeWarpLayers(output, {
    ...content,
    maxEntries: Infinity,
  });
  return summary!;
}

class WarpParts {
  readonly summaries: LayerSummary[] = [];
  readonly #output: WarpOutput;
  readonly #content: WarpContent;
  readonly #maxEntries: number;
  #writer: LayerWriter | undefined;
  /** Whether the current layer has an entry of its own (tag 0). */
  #hasOwn = false;
  /** A copy of some block, for layers that would have nothing of their own. */
  #spare: LayerBlock | undefined;
  /** Ranges of all blocks; two layers could hide an overlap between them. */
  readonly #stored = new SegmentColumns(0);

  constructor(output: WarpOutput, content: WarpContent) {
    this.#output = output;
    this.#content = content;
    this.#maxEntries = content.maxEntries ?? MAX_LAYER_ENTRIES;
  }

  async store({ offset, bytes }: LayerBlock): Promise<void> {
    if (bytes.length === 0) return;
    let writer = await this.#current();
    // A block takes one entry, and one more where it crosses 16383 sectors.
    const need = 2 + Math.floor(bytes.length / SECTOR / MAX_SEGMENT_SECTORS);
    if (this.#hasOwn && writer.entryBound + need > this.#maxEntries) {
      await this.#close();
      writer = await this.#current();
    }
    this.#spare ??= { offset, bytes: bytes.slice(0, SECTOR) };
    this.#stored.pushJoined(
      offset / SECTOR,
      bytes.length / SECTOR,
      0,
      KIND.zeroed, // joins on the device, wherever the bytes are stored
      0,
    );
    this.#hasOwn = true;
    await writer.write(offset, bytes);
  }

  /** Distributes the mappings and closes the last layer. */
  async mapAll(table: SegmentTable): Promise<void> {
    this.#checkDisjoint(table);
    let writer = await this.#current();
    for (let row = 0; row < table.count; row++) {
      const need = 1 + Math.ceil(table.length[row]! / MAX_SEGMENT_SECTORS);
      if (
        writer.entryBound + need > this.#maxEntries && writer.entryBound > 0
      ) {
        await this.#close();
        writer = await this.#current();
        await this.#storeSpare(writer);
      }
      const offset = table.offset[row]! * SECTOR;
      const length = table.length[row]! * SECTOR;
      if (table.kind[row] === KIND.zeroed) {
        writer.zero(offset, length);
        this.#hasOwn = true;
      } else writer.map(offset, length, table.moffset[row]! * SECTOR);
    }
    await this.#close();
  }

  async #storeSpare(writer: LayerWriter): Promise<void> {
    if (this.#hasOwn || !this.#spare) return;
    this.#hasOwn = true;
    await writer.write(this.#spare.offset, this.#spare.bytes);
  }

  #checkDisjoint(table: SegmentTable): void {
    const all = this.#stored;
    for (let row = 0; row < table.count; row++) {
      all.push(table.offset[row]!, table.length[row]!, 0, KIND.zeroed, 0);
    }
    sortedTable(all);
  }

  async #current(): Promise<LayerWriter> {
    if (this.#writer) return this.#writer;
    const sink = await this.#output.open(this.summaries.length);
    this.#writer = await LayerWriter.start(sink, "warp", this.#content);
    this.#hasOwn = false;
    return this.#writer;
  }

  async #close(): Promise<void> {
    invariant(this.#writer !== undefined, "no layer is open");
    const summary = await this.#writer.finish();
    this.#writer = undefined;
    this.summaries.push(summary);
    await this.#output.close(this.summaries.length - 1, summary);
  }
}
