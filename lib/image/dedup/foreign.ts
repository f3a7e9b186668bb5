/**
 * Native layers that overlaybd's convertor noted in its tables, and whole images.
 *
 * A row says neither how a layer is stored nor what it lies on, and a native
 * layer is good only on exactly the layers that it was made on. So layers are
 * taken from one repository's rows only, where they were made on each other;
 * they must name each other as parents, be of one file system, and what they
 * show together must be sound.
 */

import { isDeepStrictEqual } from "node:util";
import {
  Ext4Model,
  fileSystemIdentity,
  SUPERBLOCK_OFFSET,
  SUPERBLOCK_SIZE,
} from "../../ext4/mod.ts";
import {
  FormatError,
  IntegrityError,
  NotFoundError,
  readBytes,
} from "../../io/mod.ts";
import {
  chainUuid,
  LayerStack,
  type OpenedLayer,
  openLayer,
} from "../../layers/mod.ts";
import {
  type Descriptor,
  type ImageManifest,
  MediaType,
  parseImageConfig,
  parseManifest,
  type Repository,
} from "../../registry/mod.ts";
import { chainId, type ChainParameters } from "../chain_key.ts";
import {
  isPassing,
  type Reuse,
  type ReuseFinder,
  type ReuseRequest,
} from "../find_reusable.ts";
import { layerRoles } from "../meta_image.ts";
import {
  close,
  entryCountOf,
  type ReusedLayer,
  type ReuseOrigin,
} from "../reuse.ts";
import { checkStorage } from "../reuse_parts.ts";
import { readSmallBlob } from "../source.ts";
import type { LayerRow, ManifestRow } from "./database.ts";

const CONFIG_SIZE_MAX = 4 * 1024 * 1024;
/** Rows that are looked at, each with requests to the registry. */
const ATTEMPTS_MAX = 4;
/** What image-spec `config.md` names beside the layers; other tools drop the rest. */
const CONFIG_KEYS = [
  "architecture",
  "author",
  "config",
  "created",
  "os",
  "os.features",
  "os.version",
  "variant",
];

/** A whole native image of the source, as a row of `overlaybd_manifests` names it. */
export async function findForeignImage(
  finder: ReuseFinder,
  request: ReuseRequest,
): Promise<Reuse | undefined> {
  const { source, types } = request;
  const mediaType = types === "docker"
    ? MediaType.dockerManifest
    : MediaType.ociManifest;
  const rows = await finder.database!.ask(
    [],
    (database) =>
      database.findManifests(
        finder.place!,
        source.resolved.descriptor.digest,
        mediaType,
      ),
  );
  for (const row of rows.slice(0, ATTEMPTS_MAX)) {
    try {
      return await openImage(finder, request, row);
    } catch (error) {
      if (error instanceof NotFoundError) {
        await finder.forget(
          "overlaybd_manifests",
          row,
          (database) => database.deleteManifest(row),
        );
        continue;
      }
      const repository = `${row.host}/${row.repository}`;
      finder.complain(error, { repository, manifest: row.digest });
      if (isPassing(error)) break;
    }
  }
  return undefined;
}

async function openImage(
  finder: ReuseFinder,
  request: ReuseRequest,
  row: ManifestRow,
): Promise<Reuse> {
  const { source } = request;
  const { signal } = finder.environment;
  const repository = await finder.open(row);
  const { bytes, descriptor } = await repository.resolve(row.digest, {
    signal,
  });
  if (bytes.length !== row.size) {
    throw new IntegrityError(
      "Size of the image in the database's row",
      String(bytes.length),
      String(row.size),
    );
  }
  const manifest = parseManifest(bytes, descriptor.mediaType);
  if (manifest.kind !== "image" || manifest.mediaType !== row.mediaType) {
    throw new FormatError(
      "native image",
      "media type",
      `is ${manifest.mediaType}, expected ${row.mediaType}`,
    );
  }
  const sourceDigest = source.resolved.descriptor.digest;
  if (manifest.subject && manifest.subject.digest !== sourceDigest) {
    throw new FormatError("native image", "subject", "is another image");
  }
  const descriptors = nativeLayers(manifest, request);
  const config = await readSmallBlob(
    repository,
    manifest.config,
    CONFIG_SIZE_MAX,
    "image config",
    signal,
  );
  checkConfig(config, descriptors, request);
  const from = finder.origin(row, "overlaybd_manifests");
  const reuse = await openStack(repository, descriptors, request, from);
  return {
    ...reuse,
    documents: {
      config: { descriptor: manifest.config, bytes: config },
      manifest: { descriptor, bytes },
      layers: descriptors,
    },
  };
}

/** The layers of an image that has one native layer for each of the source's. */
function nativeLayers(
  manifest: ImageManifest,
  { source }: ReuseRequest,
): Descriptor[] {
  const roles = layerRoles(manifest) ?? [];
  const { length } = source.manifest.layers;
  if (
    roles.length !== length || roles.some((role) => role.kind !== "native")
  ) {
    throw new FormatError(
      "native image",
      "layers",
      `are not ${length} native ones`,
    );
  }
  return roles.map((role) => role.descriptor);
}

/** What a container would be told must be what the source says. */
function checkConfig(
  bytes: Uint8Array,
  layers: readonly Descriptor[],
  { source }: ReuseRequest,
): void {
  const config = parseImageConfig(bytes);
  const pick = (raw: object) =>
    CONFIG_KEYS.map((key) => plain((raw as Record<string, unknown>)[key]));
  if (!isDeepStrictEqual(pick(config.raw), pick(source.config.raw))) {
    throw new FormatError("image config", "settings", "are not the source's");
  }
  const digests = layers.map(({ digest }) => digest);
  if (!isDeepStrictEqual([...config.diffIds], digests)) {
    throw new FormatError(
      "image config",
      "rootfs.diff_ids",
      "are not the layers",
    );
  }
}

/** A JSON value without what means nothing: tools differ in whether they write empty fields. */
function plain(value: unknown): unknown {
  if (Array.isArray(value)) {
    return value.length === 0 ? undefined : value.map(plain);
  }
  if (typeof value !== "object" || value === null) {
    return value === "" || value === null || value === false
      ? undefined
      : value;
  }
  // Keys of a map, such as volumes, mean something without a value.
  const entries = Object.entries(value)
    .map(([key, inner]) => [key, plain(inner) ?? null])
    .sort(([a], [b]) => a! < b! ? -1 : 1);
  return entries.length === 0 ? undefined : Object.fromEntries(entries);
}

/** The longest chain of layers that rows of `overlaybd_layers` name, all of one repository. */
export async function findForeignLayers(
  finder: ReuseFinder,
  request: ReuseRequest,
  longerThan: number,
): Promise<Reuse | undefined> {
  const { diffIds } = request.source.config;
  const chainIds = diffIds.map((_, i) => chainId(diffIds.slice(0, i + 1)));
  const rows = await finder.database!.ask(
    [],
    (database) => database.findLayers(finder.place!, chainIds),
  );
  const chains = chainsOf(rows, chainIds, finder.place!.repository)
    .filter((chain) => chain.length > longerThan);
  for (const chain of chains.slice(0, ATTEMPTS_MAX)) {
    const [bottom] = chain;
    try {
      const repository = await finder.open(bottom!);
      const { descriptors, gone } = await presentLayers(
        finder,
        repository,
        chain,
      );
      for (const row of gone) {
        await finder.forget(
          "overlaybd_layers",
          row,
          (database) => database.deleteLayer(row),
        );
      }
      if (descriptors.length <= longerThan) continue;
      const from = finder.origin(bottom!, "overlaybd_layers");
      return await openStack(repository, descriptors, request, from);
    } catch (error) {
      const repository = `${bottom!.host}/${bottom!.repository}`;
      finder.complain(error, { repository });
      if (isPassing(error)) break;
    }
  }
  return undefined;
}

/** Rows from the bottom up without a gap, of each repository: longest first, then those of `own`. */
function chainsOf(
  rows: readonly LayerRow[],
  chainIds: readonly string[],
  own: string,
): LayerRow[][] {
  const byRepository = Map.groupBy(rows, (row) => row.repository);
  const chains = [...byRepository.values()].map((found) => {
    const byChain = new Map(found.map((row) => [row.chainId, row]));
    const gap = chainIds.findIndex((id) => !byChain.has(id));
    return chainIds.slice(0, gap < 0 ? undefined : gap)
      .map((id) => byChain.get(id)!);
  }).filter((chain) => chain.length > 0);
  const isOther = (chain: LayerRow[]) => Number(chain[0]!.repository !== own);
  return chains.sort((a, b) => b.length - a.length || isOther(a) - isOther(b));
}

/**
 * Descriptors of the layers that are there with the size that their row says.
 *
 * @returns Also the rows that must go: one whose blob has gone, and those above
 * it, which nothing can be put on any more.
 */
async function presentLayers(
  finder: ReuseFinder,
  repository: Repository,
  chain: readonly LayerRow[],
): Promise<{ descriptors: Descriptor[]; gone: readonly LayerRow[] }> {
  const { signal } = finder.environment;
  const descriptors: Descriptor[] = [];
  for (const [i, { digest, size }] of chain.entries()) {
    let found: number;
    try {
      found = await repository.blobSize(digest, { signal });
    } catch (error) {
      if (!(error instanceof NotFoundError)) throw error;
      return { descriptors, gone: chain.slice(i) };
    }
    if (found !== size) {
      throw new IntegrityError(
        `Size of layer "${digest}" in the database's row`,
        String(found),
        String(size),
      );
    }
    descriptors.push({ mediaType: MediaType.ociLayer, digest, size });
  }
  return { descriptors, gone: [] };
}

/**
 * Opens layers and looks at them one by one and together.
 *
 * @throws {FormatError} If they are not the layers that were asked for, or do
 * not belong together.
 */
async function openStack(
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
