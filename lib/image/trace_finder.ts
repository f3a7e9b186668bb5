/** Finds what was recorded of an image and left with it: referrers and acceleration layers. */

import {
  CancelledError,
  errorText,
  ObdError,
  SharedFlight,
} from "../io/mod.ts";
import {
  ACCELERATION_SIZE_MAX,
  readAccelerationLayer,
  type TraceRecord,
} from "../layers/mod.ts";
import type { Repository } from "../registry/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import type { LayerRole } from "./meta_image.ts";
import type { OpenedImage, RecordedReads } from "./open.ts";
import { readSmallBlob } from "./source.ts";
import {
  deviceFingerprint,
  fetchTrace,
  isOfDevice,
  listTraces,
  type TraceArtifact,
} from "./trace_referrer.ts";

/** Of one image. Disposing of it ends what it waits for. */
export class TraceFinder implements Disposable {
  readonly #environment: ImageEnvironment;
  readonly #repository: Repository;
  readonly #subject: string;
  readonly #control = new AbortController();
  #listing: SharedFlight<TraceArtifact[]> | undefined;

  /** @param subject Digest of the manifest that traces refer to. */
  constructor(
    environment: ImageEnvironment,
    repository: Repository,
    subject: string,
  ) {
    this.#environment = environment;
    this.#repository = repository;
    this.#subject = subject;
  }

  /** Begins to look, while the image is opened. */
  start(): void {
    this.#list();
  }

  /** @throws {CancelledError} When `signal` is aborted or the image is closed. */
  async find(
    image: OpenedImage,
    roles: readonly LayerRole[],
    signal?: AbortSignal,
  ): Promise<RecordedReads> {
    const own = this.#control.signal;
    const either = signal ? AbortSignal.any([signal, own]) : own;
    const referrer = await this.#attempt(() => this.#fetch(image, either));
    const layer = await this.#attempt(() => this.#acceleration(roles, either));
    if (either.aborted) throw new CancelledError();
    return { records: [...referrer, ...layer] };
  }

  /** Begins to list them; whoever stops waiting ends that. */
  #list(): SharedFlight<TraceArtifact[]> {
    if (this.#listing) return this.#listing;
    const flight = new SharedFlight<TraceArtifact[]>(
      () => this.#control.abort(),
    );
    this.#listing = flight;
    listTraces(this.#repository, this.#subject, {
      log: this.#environment.log,
      signal: this.#control.signal,
    }).then(
      (found) => flight.resolve(found),
      (error) => flight.reject(error),
    );
    return flight;
  }

  async #fetch(
    image: OpenedImage,
    signal: AbortSignal,
  ): Promise<TraceRecord[]> {
    const artifacts = await this.#list().join(signal);
    if (artifacts.length === 0) return [];
    const device = await deviceFingerprint(image.source, signal);
    const artifact = artifacts.find((one) => isOfDevice(one, device));
    if (!artifact) {
      // Left from another way of building the image; recording again helps.
      this.#environment.log.info("traces are of other layouts of the image", {
        image: image.name,
        traces: artifacts.length,
      });
      return [];
    }
    return await fetchTrace(this.#repository, artifact, signal);
  }

  async #acceleration(
    roles: readonly LayerRole[],
    signal: AbortSignal,
  ): Promise<TraceRecord[]> {
    const role = roles.find((role) => role.kind === "acceleration");
    if (!role) return [];
    const tar = await readSmallBlob(
      this.#repository,
      role.descriptor,
      ACCELERATION_SIZE_MAX,
      "acceleration layer",
      signal,
    );
    return readAccelerationLayer(tar);
  }

  /** What is not usable is told and left out: traces only save time. */
  async #attempt(
    work: () => Promise<TraceRecord[]>,
  ): Promise<TraceRecord[]> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ObdError) || error.code === "cancelled") {
        throw error;
      }
      this.#environment.log.warn("cannot use a trace", {
        repository: this.#repository.name,
        reason: errorText(error),
      });
      return [];
    }
  }

  [Symbol.dispose](): void {
    this.#control.abort();
  }
}
