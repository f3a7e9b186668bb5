/** `obd build --base`: going on from an image that another tool, or another obd, converted from the lower layers. */

import {
  FormatError,
  type Logger,
  MemorySource,
  UnsupportedError,
  UsageError,
} from "../io/mod.ts";
import {
  chainUuid,
  META_MEMBER,
  NULL_UUID,
  type OpenedLayer,
  openLayer,
  stackVirtualSize,
} from "../layers/mod.ts";
import {
  type Descriptor,
  parseReference,
  type Reference,
  type Repository,
} from "../registry/mod.ts";
import { chainId } from "./chain_key.ts";
import type { Floor, Reuse, ReuseFinder } from "./find_reusable.ts";
import { fetchMetaBlob } from "./meta_blobs.ts";
import {
  type ContentRole,
  layerGroups,
  layerRoles,
  metaFormatVersion,
} from "./meta_image.ts";
import {
  closeParts,
  entryCountOf,
  type ReusedLayer,
  type ReusedPart,
  type ReuseOrigin,
} from "./reuse.ts";
import { resolveSource, type SourceImage } from "./source.ts";

/** The layers to go on from. */
export interface BuildBase {
  reuse: Reuse;
  /** Bytes of their device. */
  virtualSize: number;
  /** The source layer that comes on top, and the UUID that it names as its parent. */
  top: { index: number; uuid: string };
}

/**
 * Opens the converted image `text` as the lowest layers of `source`. Its layers
 * are kept as they are, with their descriptors; TurboOCI and native ones may be
 * mixed. One more native layer at the bottom, an empty file system such as
 * convertor's `--mkfs=false` puts there, is kept too.
 *
 * @param finder Opens repositories beside the target's.
 * @param destination Where the result goes: the base must be reachable from there without a copy over the network.
 * @throws {UsageError} If it lies elsewhere.
 * @throws {FormatError} If it is of other layers than the source's.
 */
export async function openBase(
  finder: ReuseFinder,
  text: string,
  source: SourceImage,
  destination: Reference,
): Promise<BuildBase> {
  const { log, signal } = finder.environment;
  const reference = parseReference(text);
  const { repository, from } = await locateBase(finder, reference, destination);
  const image = await resolveSource(repository, reference, {
    platform: source.platform,
    signal,
  });
  const roles = layerRoles(image.manifest);
  if (!roles) throw wrong("layers", "are plain ones: it is no converted image");
  const groups = layerGroups(roles);
  const opener = new Opener(repository, image, signal);
  const opened: ReusedPart[][] = [];
  try {
    for (const group of groups) opened.push(await opener.openAll(group));
    const hasFloor = isFloor(groups, opened, image, source);
    const floor = hasFloor ? makeFloor(groups, opened, from) : undefined;
    const own = groups.slice(hasFloor ? 1 : 0);
    const ownParts = opened.slice(hasFloor ? 1 : 0);
    if (own.length > source.manifest.layers.length) {
      throw wrong(
        "layers",
        `are ${own.length}, the source has ${source.manifest.layers.length}`,
      );
    }
    const layers = own.map((group, i): ReusedLayer => {
      const parts = ownParts[i]!;
      checkTargets(group, i, source);
      if (group[0]!.kind === "native") {
        checkChain(parts.at(-1)!.opened, i, image, source, log);
      }
      return {
        reused: true,
        kind: group[0]!.kind,
        from,
        parts,
        descriptors: group.map((role) => role.descriptor),
        compression: "none",
        entryCount: entryCountOf(group[0]!.descriptor),
        spanCount: 0,
        breakdown: { fsMeta: 0, gzipIndex: 0, spans: 0 },
      };
    });
    const stack = opened.flat().map((part) => part.opened);
    return {
      reuse: {
        layers,
        count: layers.length,
        floor,
        foreign: image.manifest.layers.map(({ digest }) => digest),
      },
      virtualSize: stackVirtualSize(stack),
      top: { index: layers.length, uuid: uuidOf(stack.at(-1)) },
    };
  } catch (error) {
    await closeParts(opened.flat());
    throw error;
  }
}

/** In the form that layers are written with; many tools write none, or the null UUID. */
function uuidOf(layer: OpenedLayer | undefined): string {
  const uuid = layer?.uuid.toUpperCase() ?? "";
  return /^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$/.test(uuid)
    ? uuid
    : NULL_UUID;
}

function makeFloor(
  groups: readonly ContentRole[][],
  opened: readonly ReusedPart[][],
  from: ReuseOrigin,
): Floor {
  const { descriptor } = groups[0]![0]!;
  return { descriptor, from, part: opened[0]![0]! };
}

async function locateBase(
  finder: ReuseFinder,
  reference: Reference,
  destination: Reference,
): Promise<{ repository: Repository; from: ReuseOrigin }> {
  if (reference.kind === "registry" && destination.kind === "registry") {
    const { registry: host, repository } = reference;
    if (host === destination.registry) {
      const place = { host, repository };
      return {
        repository: await finder.open(place),
        from: finder.origin(place, "base"),
      };
    }
  } else if (
    reference.kind === "layout" && destination.kind === "layout" &&
    await isSamePath(reference.path, destination.path) && finder.target
  ) {
    const { target } = finder;
    return {
      repository: target,
      from: { repository: target.name, by: "base" },
    };
  }
  throw new UsageError(
    "--base: the image must be in the registry, or the layout, that the build goes to",
  );
}

async function isSamePath(a: string, b: string): Promise<boolean> {
  if (a === b) return true;
  try {
    return await Deno.realPath(a) === await Deno.realPath(b);
  } catch {
    return false;
  }
}

/**
 * UUID of the file system that overlaybd's packages install as
 * `/opt/overlaybd/baselayers/ext4_64` (a bare ZFile, or in a tar wrapper).
 */
const BASE_LAYER_UUID = "C02FB491-B4D4-4904-8684-A014D032AF78";

/** Whether the lowest layer is a file system without content, below what the source's layers became. */
function isFloor(
  groups: readonly ContentRole[][],
  opened: readonly ReusedPart[][],
  image: SourceImage,
  source: SourceImage,
): boolean {
  const [lowest, next] = groups;
  if (lowest?.length !== 1 || lowest[0]!.kind !== "native") return false;
  const uuid = opened[0]![0]!.opened.uuid.toUpperCase();
  const chain = chainUuid(chainId(source.config.diffIds.slice(0, 1)));
  if (uuid === chain) return false;
  if (uuid === BASE_LAYER_UUID) return true;
  if (!next) return false;
  const [first] = source.manifest.layers;
  if (next[0]!.kind === "turbo") {
    return next[0]!.targetDigest === first!.digest;
  }
  if (opened[1]!.at(-1)!.opened.uuid.toUpperCase() === chain) return true;
  // The convertor leaves the history: its steps that are not empty are one for each source layer.
  const { history } = image.config.raw as { history?: unknown };
  if (!Array.isArray(history) || history.length === 0) return false;
  const steps =
    history.filter((step) =>
      (step as { empty_layer?: unknown } | null)?.empty_layer !== true
    ).length;
  return steps === groups.length - 1;
}

function checkTargets(
  roles: readonly ContentRole[],
  index: number,
  source: SourceImage,
): void {
  const wanted = source.manifest.layers[index]!.digest;
  for (const role of roles) {
    if (role.kind !== "turbo" || role.targetDigest === wanted) continue;
    throw wrong(
      `layer ${index + 1}`,
      `points to ${role.targetDigest}, the source's is ${wanted}`,
    );
  }
}

/**
 * Native layers of obd and of overlaybd's convertor carry the chain that they
 * are of; of others the user has to know.
 */
function checkChain(
  { uuid }: OpenedLayer,
  index: number,
  image: SourceImage,
  source: SourceImage,
  log: Logger,
): void {
  const chain = chainId(source.config.diffIds.slice(0, index + 1));
  const wanted = chainUuid(chain);
  if (uuid.toUpperCase() === wanted) return;
  if (metaFormatVersion(image.manifest) > 0) {
    throw wrong(
      `layer ${index + 1}`,
      `is of chain ${uuid}, the source's is ${wanted}`,
    );
  }
  log.warn("nothing proves that a layer of the base is the source's", {
    layer: index + 1,
    takenFor: source.manifest.layers[index]!.digest,
    uuid: uuid === NULL_UUID ? "none" : uuid,
    ofChain: wanted,
  });
}

/** Opens the layers of the base one after the other. */
class Opener {
  readonly #repository: Repository;
  readonly #diffIds = new Map<string, string>();
  readonly #signal: AbortSignal | undefined;

  constructor(
    repository: Repository,
    image: SourceImage,
    signal: AbortSignal | undefined,
  ) {
    this.#repository = repository;
    this.#signal = signal;
    for (const [i, { digest }] of image.manifest.layers.entries()) {
      this.#diffIds.set(digest, image.config.diffIds[i]!);
    }
  }

  async openAll(roles: readonly ContentRole[]): Promise<ReusedPart[]> {
    const parts: ReusedPart[] = [];
    try {
      for (const { kind, descriptor } of roles) {
        const { digest, size } = descriptor;
        const opened = kind === "native"
          ? await this.#openNative(descriptor)
          : await this.#openMeta(descriptor);
        const diffId = this.#diffIds.get(digest)!;
        parts.push({ digest, size, diffId, opened });
      }
      return parts;
    } catch (error) {
      await closeParts(parts);
      throw error;
    }
  }

  async #openNative(descriptor: Descriptor): Promise<OpenedLayer> {
    const blob = await this.#repository.openBlob(descriptor);
    return await openLayer(blob, "native");
  }

  async #openMeta(descriptor: Descriptor): Promise<OpenedLayer> {
    const blob = await fetchMetaBlob(
      this.#repository,
      descriptor,
      this.#signal,
    );
    const fsMeta = blob.members.get(META_MEMBER.ext4);
    if (!fsMeta) {
      throw new UnsupportedError(
        "EROFS",
        `Cannot build on meta layer ${descriptor.digest}: it has no "${META_MEMBER.ext4}" (members: ${
          [...blob.members.keys()].join(", ")
        })`,
      );
    }
    return await openLayer(new MemorySource(fsMeta), "warp");
  }
}

function wrong(field: string, problem: string): FormatError {
  return new FormatError("base image", field, problem);
}
