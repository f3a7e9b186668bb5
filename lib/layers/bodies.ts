/** File bodies: from "these sectors of the tar" to "these sectors of the device". */

import type { FileExtent, MappedRanges } from "../ext4/mod.ts";
import {
  SECTOR_SIZE,
  type TarEntry,
  type TarPatch,
  type TarRun,
} from "../tar/mod.ts";
import type { LayerBlock, WarpMap } from "./lsmt/mod.ts";

const BLOCK_SIZE = 4096;
const BLOCK_SECTORS = BLOCK_SIZE / SECTOR_SIZE;

/** What a body is made of, as the tar's walker tells it. */
type Content = Pick<TarEntry, "runs" | "patches">;

/**
 * Where one file's content lies in the uncompressed tar of its layer. There is
 * one for each file of a layer, so the common body, one run from the file's
 * start, takes two numbers and no lists.
 */
export class FileBody {
  /** Source layer, 0 = bottom. */
  readonly layer: number;
  readonly #tarSector: number;
  readonly #sectors: number;
  readonly #scattered: Content | undefined;

  constructor(layer: number, content: Content) {
    this.layer = layer;
    const [run] = content.runs;
    const isPlain = run?.fileSector === 0 && content.runs.length === 1 &&
      content.patches.length === 0;
    this.#tarSector = isPlain ? run.tarSector : 0;
    this.#sectors = isPlain ? run.sectors : 0;
    this.#scattered = isPlain
      ? undefined
      : { runs: content.runs, patches: content.patches };
  }

  /** Pieces of the file that the tar holds. */
  get runs(): readonly TarRun[] {
    return this.#scattered?.runs ?? [{
      fileSector: 0,
      tarSector: this.#tarSector,
      sectors: this.#sectors,
    }];
  }

  /** Pieces that it does not. */
  get patches(): readonly TarPatch[] {
    return this.#scattered?.patches ?? [];
  }
}

/** Bodies by inode number. */
export type Bodies = Map<number, FileBody>;

/** A piece of a body in the file's own sectors. */
interface Piece {
  first: number;
  /** Exclusive. */
  limit: number;
  /** In the tar; undefined for patches. */
  tarSector: number | undefined;
  bytes: Uint8Array | undefined;
}

/**
 * Maps one file.
 *
 * @param extents The file's blocks on the device, ascending.
 * @param below What the layers below map: what this file leaves free of its
 * blocks must hide that.
 * @param map Gets the mappings.
 * @returns What the layer must store itself.
 */
export function mapBody(
  body: FileBody,
  extents: readonly FileExtent[],
  below: MappedRanges,
  map: WarpMap,
): LayerBlock[] {
  const stored: LayerBlock[] = [];
  const pieces = piecesOf(body);
  let next = 0;
  for (const extent of extents) {
    const first = extent.logicalBlock * BLOCK_SECTORS;
    const limit = first + extent.count * BLOCK_SECTORS;
    const device = (sector: number) =>
      extent.physicalBlock * BLOCK_SIZE + (sector - first) * SECTOR_SIZE;
    const hide = (from: number, to: number) => {
      const length = (to - from) * SECTOR_SIZE;
      if (length > 0 && below.isMapped(device(from), length)) {
        map.addZeroed(device(from), length);
      }
    };
    let at = first;
    while (next < pieces.length && pieces[next]!.first < limit) {
      const piece = pieces[next]!;
      const from = Math.max(piece.first, first);
      const to = Math.min(piece.limit, limit);
      hide(at, from);
      if (piece.tarSector !== undefined) {
        map.addTarget(
          device(from),
          (to - from) * SECTOR_SIZE,
          (piece.tarSector + from - piece.first) * SECTOR_SIZE,
        );
      } else {
        stored.push({
          offset: device(from),
          bytes: piece.bytes!.subarray(
            (from - piece.first) * SECTOR_SIZE,
            (to - piece.first) * SECTOR_SIZE,
          ),
        });
      }
      at = to;
      if (piece.limit > limit) break;
      next++;
    }
    hide(at, limit);
  }
  return stored;
}

function piecesOf(body: FileBody): Piece[] {
  const pieces: Piece[] = body.runs.map((run) => ({
    first: run.fileSector,
    limit: run.fileSector + run.sectors,
    tarSector: run.tarSector,
    bytes: undefined,
  }));
  for (const { fileSector, bytes } of body.patches) {
    pieces.push({
      first: fileSector,
      limit: fileSector + bytes.length / SECTOR_SIZE,
      tarSector: undefined,
      bytes,
    });
  }
  return body.patches.length === 0
    ? pieces
    : pieces.sort((a, b) => a.first - b.first);
}

/** Sectors of a file that hold anything; the rest are holes. */
export function bodyRanges(
  entry: TarEntry,
): { fileSector: number; sectors: number }[] {
  return [
    ...entry.runs,
    ...entry.patches.map(({ fileSector, bytes }) => ({
      fileSector,
      sectors: bytes.length / SECTOR_SIZE,
    })),
  ];
}
