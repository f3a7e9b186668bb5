/** Whole native images that overlaybd's convertor noted: table `overlaybd_manifests`. */

import { isDeepStrictEqual } from "node:util";
import { FormatError, IntegrityError, NotFoundError } from "../../io/mod.ts";
import {
  type Descriptor,
  type ImageManifest,
  MediaType,
  parseImageConfig,
  parseManifest,
} from "../../registry/mod.ts";
import type { Reuse, ReuseFinder, ReuseRequest } from "../find_reusable.ts";
import { layerRoles } from "../meta_image.ts";
import { isPassing } from "../reuse.ts";
import { readSmallBlob } from "../source.ts";
import type { ManifestRow } from "./database.ts";
import { openStack } from "./foreign_stack.ts";

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
