/** A running `serve`: its images, its NBD server, and what the status API asks of them. */

import {
  type CacheStats,
  CountedSource,
  deviceFingerprint,
  type ImageEnvironment,
  type OpenedImage,
  openEnvironment,
  openImage,
  prefetchImage,
  ReadStats,
} from "../lib/image/mod.ts";
import {
  CancelledError,
  errorText,
  type Logger,
  mapConcurrent,
  NotFoundError,
  ObdError,
} from "../lib/io/mod.ts";
import {
  formatNbdUri,
  type NbdAddress,
  type NbdExport,
  NbdServer,
} from "../lib/nbd/mod.ts";
import type {
  CacheStatus,
  ExportStatus,
  HostStatus,
  ServeControl,
  ServeStatus,
  TraceControl,
} from "./api.ts";
import type { ImageConfig, ServeConfig } from "./config.ts";
import type { RegistrySettings } from "./context.ts";
import { firstRead } from "./first_read.ts";
import { giveBackMemory } from "./give_back_memory.ts";
import { readPrefetchFiles, TraceRecordings } from "./trace_files.ts";
import { VERSION } from "./version.ts";

/** Without a read for this long, memory is given back. */
const IDLE_INTERVAL_MS = 10_000;

/** Configured images that are opened at once; each waits for its registry most of the time. */
const OPEN_CONCURRENCY = 8;

/** One image that is open, and not yet served. */
interface Opened {
  config: ImageConfig;
  image: OpenedImage;
  reads: ReadStats;
  /** What the configuration names to be fetched ahead. */
  prefetch: Awaited<ReturnType<typeof readPrefetchFiles>>;
  findTraces: boolean;
}

/** One image that is served. */
interface Served {
  config: ImageConfig;
  image: OpenedImage;
  nbd: NbdExport;
  reads: ReadStats;
  /** Ends fetching ahead. */
  replay: AbortController;
  replaying: Promise<void>;
}

/** One that is being opened. */
interface Opening {
  control: AbortController;
  /** Settles when it is served, or nothing is left of it. */
  ended: Promise<void>;
}

/** Options of {@linkcode ServeSession.open}. */
export interface SessionOptions {
  config: ServeConfig;
  log: Logger;
  recentLog: () => readonly string[];
  registry: RegistrySettings;
  signal: AbortSignal;
}

/** Opens images and serves them until it is closed. */
export class ServeSession implements ServeControl {
  readonly #environment: ImageEnvironment;
  readonly #server: NbdServer;
  readonly #options: SessionOptions;
  readonly #started = new Date();
  readonly #served = new Map<string, Served>();
  readonly #opening = new Map<string, Opening>();
  #address: NbdAddress | undefined;
  #ready = false;
  readonly #recordings = new TraceRecordings(
    (name) => this.#served.has(name),
    (name) => deviceFingerprint(this.#served.get(name)!.image.source),
  );
  readonly #idleTimer: ReturnType<typeof setInterval>;
  #readsSeen = 0;
  #isTrimmed = true;

  private constructor(environment: ImageEnvironment, options: SessionOptions) {
    this.#environment = environment;
    this.#options = options;
    const { nbd } = options.config;
    this.#server = new NbdServer({
      logger: options.log,
      requestDeadlineMs: nbd.requestTimeoutMs,
      maxConnections: nbd.maxConnections,
      onRead: (name, offset, length) =>
        this.#recordings.note(name, offset, length),
    });
    this.#idleTimer = setInterval(() => this.#trim(), IDLE_INTERVAL_MS);
  }

  /** Opens caches and workers; images come with {@linkcode openImages}. */
  static async open(options: SessionOptions): Promise<ServeSession> {
    const { config, log, registry } = options;
    const environment = await openEnvironment({
      log,
      signal: options.signal,
      registry: {
        ...registry,
        readDeadlineMs: config.nbd.requestTimeoutMs,
        ...config.registry,
        ...(config.userAgent ? { userAgent: config.userAgent } : {}),
      },
      blobCache: config.blobCache,
      ...(config.gzipCache ? { spanCache: config.gzipCache } : {}),
      workers: config.workers,
    });
    return new ServeSession(environment, options);
  }

  /**
   * Opens the configured images, all before any is served: one that waits for
   * its registry does not hold up the others. They are served in their order.
   *
   * @throws {unknown} The failure that comes first, which ends the others; of several the first in order.
   */
  async openImages(): Promise<void> {
    const { config: { images }, signal } = this.#options;
    const failed = new AbortController();
    const either = AbortSignal.any([signal, failed.signal]);
    const results = await mapConcurrent(
      images,
      OPEN_CONCURRENCY,
      async (config) => {
        const opening = this.#openImage(config, either);
        const [result] = await Promise.allSettled([opening]);
        if (result.status === "rejected") failed.abort(new CancelledError());
        return result;
      },
    );
    const opened = results.flatMap((r) =>
      r.status === "fulfilled" ? [r.value] : []
    );
    try {
      signal.throwIfAborted();
      const errors = results.flatMap((r) =>
        r.status === "rejected" ? [r.reason] : []
      );
      const error = errors.find((e) => !isCancelled(e)) ?? errors[0];
      if (error !== undefined) throw error;
      for (let one = opened.shift(); one; one = opened.shift()) {
        await this.#serve(one, signal);
      }
    } finally {
      for (const { image } of opened) await image[Symbol.asyncDispose]();
    }
    giveBackMemory();
  }

  /** Starts to answer clients. */
  async listen(): Promise<void> {
    const { listen } = this.#options.config.nbd;
    try {
      this.#address = await this.#server.listen(listen);
    } catch (error) {
      throw new ObdError(
        "conflict",
        `Cannot listen for NBD clients at "${listen}": ${errorText(error)}`,
        { cause: error },
      );
    }
    this.#ready = true;
  }

  status(): ServeStatus {
    const memory = Deno.memoryUsage();
    return {
      version: VERSION,
      pid: Deno.pid,
      started: this.#started.toISOString(),
      uptimeSeconds: (Date.now() - this.#started.getTime()) / 1000,
      ready: this.#ready,
      exports: [...this.#served.values()].map((s) => this.#exportStatus(s)),
      caches: this.#caches(),
      hosts: this.#hosts(),
      memory: { rssBytes: memory.rss, heapUsedBytes: memory.heapUsed },
    };
  }

  /** What the API needs to record exports. */
  get traces(): TraceControl {
    return this.#recordings;
  }

  recentLog(): readonly string[] {
    return this.#options.recentLog();
  }

  async add(config: ImageConfig): Promise<ExportStatus> {
    const served = await this.#open(config);
    this.#isTrimmed = false;
    return this.#exportStatus(served);
  }

  /** One that is being opened is called off: whoever asked for it may be gone. */
  async remove(name: string): Promise<void> {
    const opening = this.#opening.get(name);
    if (opening) {
      opening.control.abort(
        new CancelledError(`Export "${name}" was removed while it was opened`),
      );
      await opening.ended;
      if (!this.#served.has(name)) return;
    }
    const served = this.#served.get(name);
    if (!served) throw new NotFoundError(`No export "${name}"`);
    await this.#server.removeExport(name);
    this.#served.delete(name);
    this.#recordings.drop(name);
    await endReplay(served);
    await served.image[Symbol.asyncDispose]();
    this.#options.log.info("export removed", { export: name });
  }

  /**
   * Stops: no new clients, requests in flight are finished, then images and
   * caches are closed, outermost first.
   *
   * @param deadlineMs For requests in flight.
   */
  async close(deadlineMs: number): Promise<void> {
    this.#ready = false;
    clearInterval(this.#idleTimer);
    await this.#server.stop(deadlineMs);
    for (const served of this.#served.values()) {
      await endReplay(served);
      await served.image[Symbol.asyncDispose]();
    }
    this.#served.clear();
    await this.#environment[Symbol.asyncDispose]();
  }

  /** When nobody reads any more, spans that are on disk too leave memory. */
  #trim(): void {
    const { memory, store } = this.#environment.spanCache;
    let reads = 0;
    for (const { nbd } of this.#served.values()) reads += nbd.stats.reads;
    if (reads !== this.#readsSeen) this.#isTrimmed = false;
    else if (!this.#isTrimmed) {
      if (store) memory.clear();
      giveBackMemory();
      this.#isTrimmed = true;
    }
    this.#readsSeen = reads;
  }

  async #open(config: ImageConfig): Promise<Served> {
    const { export: name } = config;
    if (this.#served.has(name) || this.#opening.has(name)) {
      throw new ObdError("conflict", `Export "${name}" is there already`);
    }
    const control = new AbortController();
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    this.#opening.set(name, { control, ended });
    const signal = AbortSignal.any([this.#options.signal, control.signal]);
    try {
      const opened = await this.#openImage(config, signal);
      return await this.#serve(opened, signal);
    } finally {
      this.#opening.delete(name);
      end();
    }
  }

  async #openImage(config: ImageConfig, signal: AbortSignal): Promise<Opened> {
    const { config: settings } = this.#options;
    signal.throwIfAborted();
    try {
      // What is wrong with these is told before anything is opened.
      const prefetch = await readPrefetchFiles(config);
      const findTraces = prefetch.trace === undefined &&
        (config.trace ?? settings.prefetch.traces) !== false;
      const reads = new ReadStats();
      const image = await openImage(
        { ...this.#environment, readStats: reads, signal },
        config.image ?? config.config!,
        {
          platform: config.platform,
          metaFrom: settings.metaFrom,
          requireSpans: settings.requireSpans,
          isConfigFile: config.config !== undefined,
          traces: findTraces,
          writesResult: true,
        },
      );
      return { config, image, reads, prefetch, findTraces };
    } catch (error) {
      throw ofExport(config, error);
    }
  }

  /** Owns the image. */
  async #serve(opened: Opened, signal: AbortSignal): Promise<Served> {
    const { config, image, reads, prefetch: { trace, fileList } } = opened;
    const { config: settings, log } = this.#options;
    const { export: name } = config;
    let nbd: NbdExport;
    try {
      nbd = await this.#addExport(name, image, reads, signal);
    } catch (error) {
      throw ofExport(config, error);
    }
    const replay = new AbortController();
    const replaying = prefetchImage(this.#environment, image, {
      trace: trace?.records,
      traceDevice: trace?.device,
      fileList,
      findTraces: opened.findTraces,
      concurrency: settings.prefetch.concurrency,
      bytesPerSecond: config.prefetchRate ?? settings.prefetch.bytesPerSecond,
      ready: () => firstRead(nbd.stats, replay.signal),
      signal: replay.signal,
    });
    const served = { config, image, nbd, reads, replay, replaying };
    this.#served.set(name, served);
    log.info("export added", { export: name, integrity: image.integrity });
    return served;
  }

  /** Owns the image if it fails. */
  async #addExport(
    name: string,
    image: OpenedImage,
    reads: ReadStats,
    signal: AbortSignal,
  ): Promise<NbdExport> {
    try {
      signal.throwIfAborted();
      return this.#server.addExport({
        name,
        source: new CountedSource(image.source, reads),
        description: image.name,
        readOnly: true,
      });
    } catch (error) {
      await image[Symbol.asyncDispose]();
      throw error;
    }
  }

  #exportStatus({ config, image, nbd, reads }: Served): ExportStatus {
    const { stats } = nbd;
    return {
      name: config.export,
      uri: this.#address
        ? formatNbdUri({
          address: this.#address,
          exportName: config.export,
        })
        : "",
      size: image.source.size,
      image: image.name,
      ...(image.sourceDigest ? { source: image.sourceDigest } : {}),
      ...(image.metaDigest ? { meta: image.metaDigest } : {}),
      integrity: image.integrity,
      layers: image.layers.map(({ digest, kind, integrity, size }) => ({
        digest,
        kind,
        integrity,
        size,
      })),
      connections: stats.connections,
      requestTimeoutSeconds: this.#options.config.nbd.requestTimeoutMs / 1000,
      counters: {
        reads: stats.reads,
        readBytes: stats.readBytes,
        readErrors: stats.errors,
        readSeconds: stats.readLatency.sumSeconds,
        inFlight: stats.inFlight,
      },
      reading: reads.counters(),
    };
  }

  #caches(): CacheStatus[] {
    const { blobStore, spanCache } = this.#environment;
    const one = (
      name: string,
      stats: CacheStats,
      storedBytes: number,
      limitBytes: number,
    ): CacheStatus => ({
      name,
      hits: stats.hits,
      misses: stats.misses,
      storedBytes,
      limitBytes,
      evictions: stats.evictions,
    });
    return [blobStore, spanCache.store].flatMap((store) =>
      store
        ? [one(store.name, store.stats, store.storedBytes, store.sizeBytes)]
        : []
    );
  }

  #hosts(): HostStatus[] {
    return this.#environment.hostStatistics();
  }
}

function isCancelled(error: unknown): boolean {
  return error instanceof ObdError && error.code === "cancelled";
}

/** The error with the export's name, unless it says more than that. */
function ofExport({ export: name }: ImageConfig, error: unknown): unknown {
  if (!(error instanceof ObdError) || isCancelled(error)) return error;
  return new ObdError(
    error.code,
    `Cannot open export "${name}": ${errorText(error)}`,
    { cause: error },
  );
}

async function endReplay({ replay, replaying }: Served): Promise<void> {
  replay.abort();
  await replaying;
}
