/**
 * Conversions that were made before, as a database tells them: an index over
 * repositories of what can be mounted from one into another. Nothing in it is
 * believed: whoever uses a row looks at what it names.
 */

/** A chain of layers that obd built, of either format (table `obd_chains`). */
export interface ChainRow {
  /** Registry as people write it, e.g. `docker.io` or `127.0.0.1:5000`. */
  host: string;
  /** Path in the registry. */
  repository: string;
  /** Key of the chain's content and parameters, 64 hex digits. */
  chainKey: string;
  /** Image in `repository` whose lowest layers are the chain. */
  manifestDigest: string;
  /** How many of its source's layers the chain covers. */
  layerCount: number;
}

/** A native layer, as overlaybd's convertor notes it (table `overlaybd_layers`). */
export interface LayerRow {
  host: string;
  repository: string;
  /** Chain ID of the source layer: `sha256:…`. */
  chainId: string;
  /** Digest of the native layer's blob. */
  digest: string;
  /** Bytes of the blob. */
  size: number;
}

/** A native image, as overlaybd's convertor notes it (table `overlaybd_manifests`). */
export interface ManifestRow {
  host: string;
  repository: string;
  /** Digest of the source image's manifest. */
  sourceDigest: string;
  /** Digest of the native image's manifest. */
  digest: string;
  /** Bytes of the native image's manifest. */
  size: number;
  /** Media type of the native image's manifest. */
  mediaType: string;
}

/** A repository in a registry. */
export interface Place {
  host: string;
  repository: string;
}

/**
 * A database of conversions. Lookups return well-formed rows only, at most a
 * few hundred of them. Every call may fail: see `guard.ts` for one that does not.
 */
export interface ConversionDatabase extends AsyncDisposable {
  /** For people, without secrets: `sqlite:/PATH`, `mysql://HOST:PORT/NAME`. */
  readonly name: string;

  /** Rows of these chains on the place's host: longest chain first, then those in the place itself. */
  findChains(place: Place, keys: readonly string[]): Promise<ChainRow[]>;
  /** @returns False if there is such a row already. */
  addChain(row: ChainRow): Promise<boolean>;
  deleteChain(row: ChainRow): Promise<void>;

  /** Rows of these chain IDs in the place and in the repositories of its host that have most of them. */
  findLayers(place: Place, chainIds: readonly string[]): Promise<LayerRow[]>;
  /** Whether a layer other than `digest` is known for a chain ID anywhere on the host. */
  hasOtherLayer(row: LayerRow): Promise<boolean>;
  /** @returns False if there is such a row already. */
  addLayer(row: LayerRow): Promise<boolean>;
  deleteLayer(row: LayerRow): Promise<void>;

  /** Conversions of a source image on the place's host, those in the place first. */
  findManifests(
    place: Place,
    sourceDigest: string,
    mediaType: string,
  ): Promise<ManifestRow[]>;
  /** @returns False if there is such a row already. */
  addManifest(row: ManifestRow): Promise<boolean>;
  deleteManifest(row: ManifestRow): Promise<void>;
}
