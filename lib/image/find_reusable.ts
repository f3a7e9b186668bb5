/**
 * Where layers that were built before are looked for: under the tags of the
 * target repository, then in the database of conversions.
 */

import { errorText, FormatError, NotFoundError, ObdError } from "../io/mod.ts";
import {
  type Descriptor,
  type ImageManifest,
  parseManifest,
  type Reference,
  type RegistryReference,
  type Repository,
} from "../registry/mod.ts";
import type { BuildFormat } from "./build.ts";
import { chainKey, chainTag } from "./chain_key.ts";
import type { ChainRow, Place } from "./dedup/database.ts";
import { findForeignImage } from "./dedup/foreign_image.ts";
import { findForeignLayers } from "./dedup/foreign_layers.ts";
import type { GuardedDatabase } from "./dedup/guard.ts";
import type { ImageEnvironment } from "./environment.ts";
import type { MetaDocuments } from "./meta_image.ts";
import {
  type ChainRequest,
  close,
  isPassing,
  openChain,
  type ReusedLayer,
  type ReusedPart,
  type ReuseOrigin,
} from "./reuse.ts";

/** A file system without content below a source's layers, as another tool put it there. */
export interface Floor {
  descriptor: Descriptor;
  from: ReuseOrigin;
  part: ReusedPart;
}

/** What a format has already. */
export interface Reuse {
  layers: ReusedLayer[];
  /** What lies below them. */
  floor?: Floor | undefined;
  /** How many of the source's layers these are: all, if the image is flattened. */
  count: number;
  /** Manifest and config that are taken over too: a whole image of another tool. */
  documents?: MetaDocuments | undefined;
  /** Digests of layers that obd did not place by its own rules: they are part of the key of what is put on them. */
  foreign?: readonly string[] | undefined;
}

/** A request for as many layers as there are. */
export type ReuseRequest = Omit<ChainRequest, "count" | "signal"> & {
  /** Media types of a native image. */
  types: "oci" | "docker";
  /** Whether layers of other tools will do: nothing else is built on the same device. */
  mayBeForeign: boolean;
};

/** Rows of the database that are looked at for one format, each with requests to the registry. */
const ATTEMPTS_MAX = 8;

/** Looks for layers on behalf of one build. Must be disposed of after the layers. */
export class ReuseFinder implements AsyncDisposable {
  readonly environment: ImageEnvironment;
  /** The target as it is before the build; undefined for a layout that is not there yet. */
  readonly target: Repository | undefined;
  /** The database, where there is one and the target is in a registry. */
  readonly database: GuardedDatabase | undefined;
  /** The target in its registry; undefined for a layout. */
  readonly place: Place | undefined;
  readonly #opened = new Map<string, Repository>();

  /** @param target Borrowed. */
  constructor(
    environment: ImageEnvironment,
    target: Repository | undefined,
    reference: Reference,
    database: GuardedDatabase | undefined,
  ) {
    this.environment = environment;
    this.target = target;
    const isRegistry = reference.kind === "registry";
    this.database = isRegistry ? database : undefined;
    this.place = isRegistry
      ? { host: reference.registry, repository: reference.repository }
      : undefined;
  }

  /**
   * The longest chain of a source's layers that is there already. What is found
   * is checked: nothing is believed because of a tag or a row.
   */
  async find(request: ReuseRequest): Promise<Reuse> {
    const { count: all } = new Lengths(request);
    let best = await this.#byTags(request);
    if (best.count === all || !this.database || !this.place) return best;
    best = await this.#longer(best, await this.#byChains(request, best.count));
    const { flatten } = request.parameters;
    if (best.count === all || flatten || request.format !== "overlaybd") {
      return best;
    }
    best = await this.#longer(best, await findForeignImage(this, request));
    if (best.count === all || !request.mayBeForeign) return best;
    return await this.#longer(
      best,
      await findForeignLayers(this, request, best.count),
    );
  }

  async #longer(a: Reuse, b: Reuse | undefined): Promise<Reuse> {
    if (b === undefined) return a;
    const [kept, left] = b.count > a.count ? [b, a] : [a, b];
    await close(left.layers);
    return kept;
  }

  /** A repository on the target's host. */
  async open(place: Place): Promise<Repository> {
    const isTarget = place.repository === this.place?.repository;
    if (isTarget && this.target) return this.target;
    const known = this.#opened.get(place.repository);
    if (known) return known;
    const repository = await this.environment.openRepository(
      registryReference(place),
    );
    this.#opened.set(place.repository, repository);
    return repository;
  }

  /** Where the layers of a row are, in words and for mounts. */
  origin(place: Place, by: ReuseOrigin["by"]): ReuseOrigin {
    return {
      repository: `${place.host}/${place.repository}`,
      by,
      ...(place.repository === this.place?.repository
        ? {}
        : { elsewhere: registryReference(place) }),
    };
  }

  async #byTags(request: ReuseRequest): Promise<Reuse> {
    const { target } = this;
    if (!target) return { layers: [], count: 0 };
    const from: ReuseOrigin = { repository: target.name, by: "tag" };
    for (const count of new Lengths(request)) {
      const tag = chainTag(chainKey(request.parameters, count));
      try {
        const manifest = await this.resolve(target, tag);
        if (manifest === undefined) continue;
        const layers = await openChain(
          target,
          manifest,
          this.chain(request, count),
          from,
        );
        return { layers, count };
      } catch (error) {
        this.complain(error, { repository: target.name, tag });
        const { code } = error as ObdError;
        // What a registry refuses for one tag it refuses for all.
        if (code === "registry" || code === "deadline") break;
      }
    }
    return { layers: [], count: 0 };
  }

  async #byChains(
    request: ReuseRequest,
    longerThan: number,
  ): Promise<Reuse | undefined> {
    const lengths = new Map(
      [...new Lengths(request)].filter((n) => n > longerThan)
        .map((n) => [chainKey(request.parameters, n), n]),
    );
    const rows = await this.database!.ask(
      [],
      (database) => database.findChains(this.place!, [...lengths.keys()]),
    );
    const length = (row: ChainRow) => lengths.get(row.chainKey)!;
    // The same order as in the statement, whatever the rows say of their lengths.
    rows.sort((a, b) => length(b) - length(a));
    for (const row of rows.slice(0, ATTEMPTS_MAX)) {
      try {
        const repository = await this.open(row);
        const manifest = await this.resolve(repository, row.manifestDigest);
        if (manifest === undefined) {
          throw new NotFoundError(`No manifest "${row.manifestDigest}"`);
        }
        const layers = await openChain(
          repository,
          manifest,
          this.chain(request, length(row)),
          this.origin(row, "obd_chains"),
        );
        return { layers, count: length(row) };
      } catch (error) {
        if (error instanceof NotFoundError) {
          await this.forget("obd_chains", row, (db) => db.deleteChain(row));
          continue;
        }
        const { manifestDigest: manifest } = row;
        const repository = `${row.host}/${row.repository}`;
        this.complain(error, { repository, manifest });
        if (isPassing(error)) break;
      }
    }
    return undefined;
  }

  /** A request for a chain of one length. */
  chain(request: ReuseRequest, count: number): ChainRequest {
    return { ...request, count, signal: this.environment.signal };
  }

  /** The image under a tag or digest; undefined if there is none. */
  async resolve(
    repository: Repository,
    tagOrDigest: string,
  ): Promise<ImageManifest | undefined> {
    const { signal } = this.environment;
    try {
      const { bytes, descriptor } = await repository.resolve(tagOrDigest, {
        signal,
      });
      const manifest = parseManifest(bytes, descriptor.mediaType);
      if (manifest.kind === "image") return manifest;
      throw new FormatError("meta image", "manifest", "is an index");
    } catch (error) {
      if (error instanceof NotFoundError) return undefined;
      throw error;
    }
  }

  /**
   * Says why something found is not used.
   *
   * @throws {unknown} What is no reason to go on without.
   */
  complain(error: unknown, fields: Record<string, string>): void {
    if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
    this.environment.log.warn("not reusing layers that were built before", {
      ...fields,
      reason: errorText(error),
    });
  }

  /** Deletes a row that names what has gone. */
  async forget(
    table: string,
    row: Place,
    work: Parameters<GuardedDatabase["change"]>[0],
  ): Promise<void> {
    this.environment.log.info("a conversion of the database has gone", {
      table,
      repository: `${row.host}/${row.repository}`,
    });
    await this.database!.change(work);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const repository of this.#opened.values()) {
      await repository[Symbol.asyncDispose]();
    }
    this.#opened.clear();
  }
}

/** The lengths of chains that may be there, longest first: a flattened one has no prefixes. */
class Lengths {
  readonly count: number;
  readonly #shortest: number;

  constructor({ source, parameters }: ReuseRequest) {
    this.count = source.manifest.layers.length;
    this.#shortest = parameters.flatten ? this.count : 1;
  }

  *[Symbol.iterator](): Generator<number> {
    for (let n = this.count; n >= this.#shortest; n--) yield n;
  }
}

function registryReference(place: Place): RegistryReference {
  return {
    kind: "registry",
    registry: place.host,
    repository: place.repository,
  };
}

/** What every format has already; formats are looked for one by one. */
export async function findReuse(
  finder: ReuseFinder,
  formats: readonly BuildFormat[],
  requestOf: (format: BuildFormat) => ReuseRequest,
): Promise<Record<BuildFormat, Reuse>> {
  const found: Record<BuildFormat, Reuse> = {
    turbo: { layers: [], count: 0 },
    overlaybd: { layers: [], count: 0 },
  };
  try {
    for (const format of formats) {
      found[format] = await finder.find(requestOf(format));
    }
    return found;
  } catch (error) {
    await close([...found.turbo.layers, ...found.overlaybd.layers]);
    throw error;
  }
}
