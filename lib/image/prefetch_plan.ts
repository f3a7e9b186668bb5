/**
 * From ranges that will be read to what has to be fetched for them: each piece
 * of a layer once, in the order of first need, neighbours in the blob together.
 */

import type { ByteSource } from "../io/mod.ts";
import { DEVICE_LAYER, SpanSource, type TraceRecord } from "../layers/mod.ts";
import type { OpenedImage } from "./open.ts";

/** Where no index says what is fetched together, layers are taken in pieces of this many bytes. */
const PIECE_BYTES = 64 * 1024;
/**
 * Stored bytes of one job: what a registry is asked for at once. Jobs that run
 * at the same time share the link, so the first ones are small: the program is
 * waiting for what is in them.
 */
const JOB_STORED_BYTES = 1024 * 1024;
const FIRST_JOB_STORED_BYTES = 256 * 1024;
/** So many jobs have each size before it doubles. */
const JOBS_OF_A_SIZE = 8;
/** How far later in the order a neighbour may be and still be fetched along. */
const LOOKAHEAD_UNITS = 64;
/** Pieces of one plan: 64 GiB of the smallest. */
const MAX_UNITS = 1_000_000;
/** Pieces looked at for one plan; a trace can name the same ones again and again. */
const MAX_STEPS = 4_000_000;

/** What is fetched with one call of {@linkcode ByteSource.prefetch}. */
export interface PrefetchJob {
  /** A layer's file; borrowed. */
  source: ByteSource;
  /** In it; bytes. */
  offset: number;
  length: number;
  /** About how many bytes come over the network for it. */
  storedBytes: number;
}

/** A range of a layer's target: what the layer's author marked, not somebody's trace. */
export interface TargetRecord {
  /** Position of the layer, 0 = bottom. */
  layer: number;
  /** Its target; borrowed. */
  target: ByteSource;
  /** Bytes. */
  offset: number;
  length: number;
}

type Image = Pick<OpenedImage, "source" | "layers">;

interface Unit extends PrefetchJob {
  /** Place in the order of first need. */
  order: number;
  isTaken: boolean;
}

/**
 * Plans the fetching of what a trace says. What is at hand (metadata, zeros),
 * what lies outside the device or its layers, and layers that keep nothing of
 * what is read ahead are left out. Nothing of the image's content is read.
 *
 * @param records Of the device, of single layers and of targets; any numbers.
 */
export function planPrefetch(
  image: Image,
  records: Iterable<TraceRecord | TargetRecord>,
): PrefetchJob[] {
  const units = new Units(image);
  for (const record of records) {
    if (units.isFull) break;
    if ("target" in record) units.addTarget(record);
    else if (record.layer === DEVICE_LAYER) units.addDevice(record);
    else units.addLayer(record);
  }
  return units.jobs();
}

/** The pieces of all layers that are needed. */
class Units {
  readonly #image: Image;
  readonly #inOrder: Unit[] = [];
  readonly #bySource = new Map<ByteSource, SourceUnits>();
  #steps = 0;

  constructor(image: Image) {
    this.#image = image;
  }

  get isFull(): boolean {
    return this.#inOrder.length >= MAX_UNITS || this.#steps >= MAX_STEPS;
  }

  addDevice({ offset, length }: TraceRecord): void {
    const { source } = this.#image;
    if (offset >= source.size) return;
    const inside = Math.min(length, source.size - offset);
    for (const origin of source.origins(offset, inside)) {
      this.#add(origin.source, origin.layer, origin.offset, origin.length);
      if (this.isFull) return;
    }
  }

  addTarget({ layer, target, offset, length }: TargetRecord): void {
    this.#add(target, layer, offset, length);
  }

  /** A record of overlaybd's, which counts in a layer's own file. */
  addLayer({ layer, offset, length }: TraceRecord): void {
    const source = this.#image.source.layerData(layer);
    if (source) this.#add(source, layer, offset, length);
  }

  #add(
    source: ByteSource,
    layer: number,
    offset: number,
    length: number,
  ): void {
    this.#steps++;
    if (!source.prefetch) return;
    let known = this.#bySource.get(source);
    if (!known) {
      const stored = this.#image.layers[layer]?.size ?? source.size;
      const ratio = Math.min(1, stored / Math.max(1, source.size));
      known = { byOffset: new Map(), byEnd: new Map(), ratio };
      this.#bySource.set(source, known);
    }
    const end = Math.min(offset + length, source.size);
    for (let at = offset; at < end && !this.isFull;) {
      const { offset: start, length: size, storedBytes } = unitAt(
        source,
        at,
        known.ratio,
      );
      at = start + size;
      this.#steps++;
      if (known.byOffset.has(start)) continue;
      const unit: Unit = {
        source,
        offset: start,
        length: size,
        storedBytes,
        order: this.#inOrder.length,
        isTaken: false,
      };
      this.#inOrder.push(unit);
      known.byOffset.set(start, unit);
      known.byEnd.set(at, unit);
    }
  }

  jobs(): PrefetchJob[] {
    const jobs: PrefetchJob[] = [];
    for (const unit of this.#inOrder) {
      if (unit.isTaken) continue;
      const doublings = Math.floor(jobs.length / JOBS_OF_A_SIZE);
      const most = Math.min(
        JOB_STORED_BYTES,
        FIRST_JOB_STORED_BYTES * 2 ** Math.min(doublings, 10),
      );
      jobs.push(this.#jobFrom(unit, most));
    }
    return jobs;
  }

  /** A unit and those of its neighbours that are needed soon after it. */
  #jobFrom(unit: Unit, mostStoredBytes: number): PrefetchJob {
    const { byOffset, byEnd } = this.#bySource.get(unit.source)!;
    const job: PrefetchJob = {
      source: unit.source,
      offset: unit.offset,
      length: unit.length,
      storedBytes: unit.storedBytes,
    };
    unit.isTaken = true;
    const take = (next: Unit | undefined): next is Unit => {
      if (
        !next || next.isTaken || next.order > unit.order + LOOKAHEAD_UNITS ||
        job.storedBytes + next.storedBytes > mostStoredBytes
      ) return false;
      next.isTaken = true;
      job.length += next.length;
      job.storedBytes += next.storedBytes;
      return true;
    };
    while (take(byOffset.get(job.offset + job.length)));
    for (let before; take(before = byEnd.get(job.offset));) {
      job.offset = before.offset;
    }
    return job;
  }
}

interface SourceUnits {
  byOffset: Map<number, Unit>;
  byEnd: Map<number, Unit>;
  /** Stored bytes of one of the content. */
  ratio: number;
}

/** What must be fetched as a whole to have byte `at`. */
function unitAt(
  source: ByteSource,
  at: number,
  ratio: number,
): { offset: number; length: number; storedBytes: number } {
  if (source instanceof SpanSource) {
    const { offset, length, blobLength } = source.unitAt(at);
    return { offset, length, storedBytes: blobLength };
  }
  const offset = at - at % PIECE_BYTES;
  const length = Math.min(PIECE_BYTES, source.size - offset);
  return { offset, length, storedBytes: Math.ceil(length * ratio) };
}
