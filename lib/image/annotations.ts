/** Names that TurboOCI and overlaybd images carry (formats: `lib/layers/README.md`), and ours beside them. */

const PREFIX = "containerd.io/snapshot/overlaybd";

/** Annotations of a layer descriptor. */
export const Annotation = {
  version: `${PREFIX}/version`,
  blobDigest: `${PREFIX}/blob-digest`,
  blobSize: `${PREFIX}/blob-size`,
  targetDigest: `${PREFIX}/turbo-oci/target-digest`,
  targetMediaType: `${PREFIX}/turbo-oci/target-media-type`,
  /** Read, never written. */
  legacyTargetDigest: `${PREFIX}/fastoci/target-digest`,
  /** Read, never written. */
  legacyTargetMediaType: `${PREFIX}/fastoci/target-media-type`,
  accelerationLayer: `${PREFIX}/acceleration-layer`,
  blobFsType: `${PREFIX}/blob-fs-type`,
  /** obd's: release-independent version of what `obd build` writes. */
  obdFormat: "io.obd.format",
  /** obd's: key of the layer chain, on the manifest. */
  obdChainKey: "io.obd.chain-key",
  /** obd's: size of the target blob in bytes, so that no request is needed to learn it. */
  obdTargetSize: "io.obd.target-size",
  /** obd's: entries of the source layer's tar, so that a build that reuses the layer can report them. */
  obdEntries: "io.obd.entries",
  /**
   * obd's: bytes at the start of the uncompressed target that its author marked
   * as needed soonest (the prefetch landmark of eStargz); absent without a mark.
   */
  obdPrefetch: "io.obd.prefetch",
  /** obd's: the target's true media type, where `targetMediaType` must not name it. */
  obdTargetType: "io.obd.target-type",
  /**
   * obd's: `2/3` is the second of three layers that one source layer became,
   * because it has more map entries than a reader takes.
   */
  obdPart: "io.obd.part",
  /** obd's, on a trace: SHA-256 of the start of the device whose offsets it has. */
  obdTraceDevice: "io.obd.trace.device",
  /** obd's, on a trace: of several, the one with the highest number counts. */
  obdTraceSerial: "io.obd.trace.serial",
  /** OCI: the image that this one was built on. */
  baseDigest: "org.opencontainers.image.base.digest",
} as const;

/** Value of {@linkcode Annotation.version} for TurboOCI layers. */
export const TURBO_VERSION = "0.1.0-turbo.ociv1";
/** Older value of the same; read only. */
export const LEGACY_TURBO_VERSION = "0.1.0-fastoci";
/** Value of {@linkcode Annotation.version} for native layers. */
export const NATIVE_VERSION = "0.1.0";

/** `artifactType` of a TurboOCI meta image. */
export const TURBO_ARTIFACT_TYPE =
  "application/vnd.containerd.overlaybd.turbo.v1+json";
/** `artifactType` of an overlaybd-native image. */
export const NATIVE_ARTIFACT_TYPE =
  "application/vnd.containerd.overlaybd.native.v1+json";

/** `artifactType` of a recorded trace that refers to an image, and the type of its blob. */
export const TRACE_ARTIFACT_TYPE = "application/vnd.obd.trace.v1";

/**
 * Version of everything that decides the bytes of a meta image: layout, block
 * placement, index policy. A higher number means that images built before are
 * built again.
 */
export const META_FORMAT_VERSION = 2;
