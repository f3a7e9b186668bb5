/**
 * Native layers of other tools, as the bottom of a stack.
 *
 * A row says neither how a layer is stored nor what it lies on, and a native
 * layer is good only on exactly the layers that it was made on. So layers are
 * taken from one repository's rows only, where they were made on each other;
 * they must name each other as parents, be of one file system, and what they
 * show together must be sound.
 */

import {
  Ext4Model,
  fileSystemIdentity,
  SUPERBLOCK_OFFSET,
  SUPERBLOCK_SIZE,
} from "../../ext4/mod.ts";
import { FormatError, readBytes } from "../../io/mod.ts";
import {
  chainUuid,
  LayerStack,
  type OpenedLayer,
  openLayer,
} from "../../layers/mod.ts";
import type { Descriptor, Repository } from "../../registry/mod.ts";
import { chainId, type ChainParameters } from "../chain_key.ts";
import type { Reuse, ReuseRequest } from "../find_reusable.ts";
import {
  close,
  entryCountOf,
  type ReusedLayer,
  type ReuseOrigin,
} from "../reuse.ts";
import { checkStorage } from "../reuse_parts.ts";

/**
 * Opens layers and looks at them one by one and together.
 *
 * @throws {FormatError} If they are not the layers that were asked for, or do
 * not belong together.
 */
export async function openStack(
  repository: Repository,
  descriptors: readonly Descriptor[],
  request: ReuseRequest,
  from: ReuseOrigin,
): Promise<Reuse> {
  const layers: ReusedLayer[] = [];
  try {
    for (const [i, descriptor] of descriptors.entries()) {
      const blob = await repository.openBlob(descriptor);
      const opened = await openLayer(blob, "native");
      const { digest, size } = descriptor;
      layers.push({
        reused: true,
        kind: "native",
        from,
        parts: [{ digest, size, diffId: digest, opened }],
        compression: "none",
        entryCount: entryCountOf(descriptor),
        spanCount: 0,
        breakdown: { fsMeta: 0, gzipIndex: 0, spans: 0 },
      });
      checkLayer(opened, i, request);
    }
    await checkTogether(layers.map(({ parts }) => parts[0]!.opened));
  } catch (error) {
    await close(layers);
    throw error;
  }
  return {
    layers,
    count: layers.length,
    foreign: descriptors.map(({ digest }) => digest),
  };
}

function checkLayer(
  opened: OpenedLayer,
  index: number,
  { source, parameters }: ReuseRequest,
): void {
  const { diffIds } = source.config;
  const uuidOf = (layers: number) =>
    chainUuid(chainId(diffIds.slice(0, layers)));
  const wanted: [string, string, string][] = [
    ["UUID", opened.uuid.toUpperCase(), uuidOf(index + 1)],
  ];
  if (index > 0) {
    const parent = opened.parentUuid.toUpperCase();
    wanted.push(["parent's UUID", parent, uuidOf(index)]);
  }
  for (const [field, is, want] of wanted) {
    if (is === want) continue;
    throw new FormatError("native layer", field, `is ${is}, expected ${want}`);
  }
  checkVirtualSize(opened.virtualSize, index, parameters);
  checkStorage(opened, parameters);
}

/** overlaybd's convertor writes a size on the lowest layer only. */
function checkVirtualSize(
  virtualSize: number,
  index: number,
  parameters: ChainParameters,
): void {
  if (virtualSize === parameters.virtualSize) return;
  if (index > 0 && virtualSize === 0) return;
  throw new FormatError(
    "native layer",
    "virtual size",
    `is ${virtualSize}, expected ${parameters.virtualSize}`,
  );
}

async function checkTogether(layers: readonly OpenedLayer[]): Promise<void> {
  // The stack borrows here: it is not disposed of.
  const identities = new Set<string>();
  for (const layer of layers) {
    const alone = new LayerStack();
    alone.add(layer);
    const bytes = await readBytes(
      alone.device(),
      SUPERBLOCK_OFFSET,
      SUPERBLOCK_SIZE,
    ).catch(() => new Uint8Array());
    identities.add(fileSystemIdentity(bytes) ?? "none");
  }
  if (identities.size > 1 || identities.has("none")) {
    throw new FormatError(
      "native layers",
      "superblocks",
      "are not of one file system",
    );
  }
  const stack = new LayerStack();
  for (const layer of layers) stack.add(layer);
  // Reads all metadata that later layers depend on, and refuses what contradicts itself.
  await Ext4Model.load(stack.device(), stack.table());
}
