/** Media types of manifests, configs and layers (OCI image-spec `media-types.md`, Docker schema 2). */

import { UnsupportedError } from "../io/mod.ts";

/** The media types that obd knows. */
export const MediaType = {
  ociManifest: "application/vnd.oci.image.manifest.v1+json",
  ociIndex: "application/vnd.oci.image.index.v1+json",
  ociConfig: "application/vnd.oci.image.config.v1+json",
  ociLayer: "application/vnd.oci.image.layer.v1.tar",
  ociLayerGzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  ociLayerZstd: "application/vnd.oci.image.layer.v1.tar+zstd",
  ociEmpty: "application/vnd.oci.empty.v1+json",
  dockerManifest: "application/vnd.docker.distribution.manifest.v2+json",
  dockerList: "application/vnd.docker.distribution.manifest.list.v2+json",
  dockerConfig: "application/vnd.docker.container.image.v1+json",
  dockerLayer: "application/vnd.docker.image.rootfs.diff.tar",
  dockerLayerGzip: "application/vnd.docker.image.rootfs.diff.tar.gzip",
  /** Written by some tools, in no specification. */
  dockerLayerZstd: "application/vnd.docker.image.rootfs.diff.tar.zstd",
  dockerSchema1: "application/vnd.docker.distribution.manifest.v1+json",
  dockerSchema1Signed:
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
} as const;

/** `Accept` of manifest requests. */
export const MANIFEST_ACCEPT = [
  MediaType.ociIndex,
  MediaType.dockerList,
  MediaType.ociManifest,
  MediaType.dockerManifest,
].join(", ");

/** How a layer is compressed according to its media type. */
export type LayerCompression = "none" | "gzip" | "zstd";

const COMPRESSION: Record<string, LayerCompression> = {
  [MediaType.ociLayer]: "none",
  [MediaType.ociLayerGzip]: "gzip",
  [MediaType.ociLayerZstd]: "zstd",
  [MediaType.dockerLayer]: "none",
  [MediaType.dockerLayerGzip]: "gzip",
  [MediaType.dockerLayerZstd]: "zstd",
};

/** Whether a media type names a layer whose content is kept outside of registries. */
export function isForeignLayer(mediaType: string): boolean {
  return mediaType.startsWith(
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
  ) ||
    mediaType.startsWith(
      "application/vnd.docker.image.rootfs.foreign.diff.tar",
    );
}

/**
 * How a layer of this type is compressed. The type may lie: readers look at
 * the first bytes.
 *
 * @throws {UnsupportedError} For foreign, encrypted and unknown types, by name.
 */
export function layerCompression(mediaType: string): LayerCompression {
  const known = Object.hasOwn(COMPRESSION, mediaType)
    ? COMPRESSION[mediaType]
    : undefined;
  if (known) return known;
  const shown = mediaType.slice(0, 200);
  if (isForeignLayer(mediaType)) {
    throw new UnsupportedError(
      `layer type ${shown}`,
      `Layer type "${shown}" is not supported: its content is not kept in registries`,
    );
  }
  if (mediaType.endsWith("+encrypted")) {
    throw new UnsupportedError(
      `layer type ${shown}`,
      `Layer type "${shown}" is not supported: the layer is encrypted`,
    );
  }
  throw new UnsupportedError(
    `layer type ${shown}`,
    `Layer type "${shown}" is not supported`,
  );
}
