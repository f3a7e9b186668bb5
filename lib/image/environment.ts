/** What building and opening images share in one process: registries, caches, workers, where to log. */

import {
  errorText,
  type Logger,
  ObdError,
  type Progress,
  Semaphore,
  silentLogger,
  silentProgress,
} from "../io/mod.ts";
import { CodecPool } from "../compress/mod.ts";
import {
  CacheStore,
  PinnedStore,
  type ReadStats,
  SpanCache,
  type SpanInflater,
  type ZstdDecoder,
} from "../layers/mod.ts";
import {
  checkClientFiles,
  type ClientPair,
  type CredentialService,
  type HostStatistics,
  openRepository,
  type Reference,
  RegistryClient,
  type Repository,
} from "../registry/mod.ts";

/** How registries are reached. */
export interface RegistrySettings {
  plainHttp?: boolean;
  caFile?: string;
  tlsSkipVerify?: boolean;
  authFile?: string;
  /** overlaybd's credential file. */
  overlaybdCredentialFile?: string;
  /** overlaybd's credential service, asked last. */
  overlaybdCredentialService?: CredentialService;
  /** Client certificate for hosts that have none of their own. */
  clientPair?: ClientPair;
  /** URL of a P2P agent that blobs are fetched through. */
  peerAddress?: string;
  userAgent?: string;
  /**
   * When whoever waits for a read gives up, in milliseconds. A registry that
   * answers with silence is asked again before that.
   */
  readDeadlineMs?: number;
}

/** A cache on disk. */
export interface CacheSettings {
  directory: string;
  sizeBytes: number;
}

/** Options of {@linkcode openEnvironment}. */
export interface EnvironmentOptions {
  log?: Logger;
  progress?: Progress;
  /** Aborts everything that waits. */
  signal?: AbortSignal;
  registry?: RegistrySettings;
  /** Compressed bytes of remote blobs; without it they are fetched again. */
  blobCache?: CacheSettings & { refillSize: number };
  /** Decompressed, checked spans; without it they are kept in memory only. */
  spanCache?: CacheSettings;
  /** Bytes of decompressed spans kept in memory. */
  spanMemoryBytes?: number;
  /** Threads for decompression. */
  workers?: number;
}

/** Opened by {@linkcode openEnvironment}; shared by all images of the process. */
export interface ImageEnvironment extends AsyncDisposable {
  readonly log: Logger;
  readonly progress: Progress;
  readonly signal: AbortSignal | undefined;
  /** Decodes spans in workers. */
  readonly inflater: SpanInflater & ZstdDecoder;
  readonly spanCache: SpanCache;
  /** Files of layers that can only be decoded from their start; they count in the span cache's bound. */
  readonly pinnedStore: PinnedStore;
  readonly blobStore: CacheStore | undefined;
  readonly blobBlockSize: number;
  /** Images that are built to be opened take turns: each needs the memory of `obd build`. */
  readonly localBuilds: Semaphore;
  /** Where the loads of an image that is opened are counted, in an environment of its own. */
  readonly readStats?: ReadStats;
  /** Requests to each registry host so far. */
  hostStatistics(): HostStatistics[];
  /** A repository that shares connections and tokens with the others; the caller disposes of it. */
  openRepository(
    reference: Reference,
    options?: {
      create?: boolean;
      /** A URL says `http:`, whatever is usual for the host. */
      plainHttp?: boolean;
    },
  ): Promise<Repository>;
}

/**
 * Looks at the certificates and credentials that settings name, which are else
 * read when a registry is first asked.
 *
 * @returns A line for each file that images can be opened without.
 * @throws {UsageError} Naming the one that is missing, cannot be read or used.
 * @throws {FormatError} If credentials are not in Docker's form.
 */
export function checkRegistryFiles(
  settings: RegistrySettings,
): Promise<string[]> {
  const { overlaybdCredentialFile, overlaybdCredentialService } = settings;
  return checkClientFiles({
    ...settings,
    overlaybdFile: overlaybdCredentialFile,
    overlaybdService: overlaybdCredentialService,
  });
}

const DEFAULT_REFILL_SIZE = 256 * 1024;
/** One of them may wait for its registry. */
const LOCAL_BUILDS_MAX = 2;

/**
 * Opens caches and workers.
 *
 * @throws {ObdError} If a cache directory has another owner.
 */
export async function openEnvironment(
  options: EnvironmentOptions = {},
): Promise<ImageEnvironment> {
  const log = options.log ?? silentLogger;
  await using stack = new AsyncDisposableStack();
  const openStore = async (
    name: string,
    settings: CacheSettings | undefined,
  ) => settings && stack.use(await openCache(name, settings, log));
  const blobStore = await openStore("blob", options.blobCache);
  const spanStore = await openStore("gzip", options.spanCache);
  const pinnedStore = stack.use(
    await PinnedStore.open({
      directory: options.spanCache && `${options.spanCache.directory}/pinned`,
      store: spanStore,
      logger: log,
    }),
  );
  const pool = stack.use(
    new CodecPool({ threads: options.workers }),
  );
  const client = stack.use(createClient(options.registry ?? {}, log));
  const owned = stack.move();
  return {
    log,
    progress: options.progress ?? silentProgress,
    signal: options.signal,
    inflater: pool,
    spanCache: new SpanCache({
      store: spanStore,
      ...(options.spanMemoryBytes === undefined
        ? {}
        : { memoryBytes: options.spanMemoryBytes }),
    }),
    pinnedStore,
    blobStore,
    localBuilds: new Semaphore(LOCAL_BUILDS_MAX),
    blobBlockSize: options.blobCache?.refillSize ?? DEFAULT_REFILL_SIZE,
    hostStatistics: () => client.statistics,
    openRepository: (reference, { create = false, plainHttp } = {}) => {
      if (plainHttp && reference.kind === "registry") {
        client.usePlainHttp(reference.registry);
      }
      return openRepository(reference, { create, client });
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function openCache(
  name: string,
  { directory, sizeBytes }: CacheSettings,
  logger: Logger,
): Promise<CacheStore> {
  try {
    return await CacheStore.open({ directory, sizeBytes, name, logger });
  } catch (error) {
    if (error instanceof ObdError) throw error;
    throw new ObdError(
      "state",
      `Cannot use cache directory "${directory}": ${errorText(error)}`,
      { cause: error },
    );
  }
}

/** A silent registry costs a read this part of its time. */
const SILENCE_SHARE = 3;
const SILENCE_MIN_MS = 1000;
const SILENCE_MAX_MS = 30_000;

function silenceMs(readDeadlineMs: number): number {
  const share = readDeadlineMs / SILENCE_SHARE;
  return Math.min(SILENCE_MAX_MS, Math.max(SILENCE_MIN_MS, share));
}

function createClient(
  settings: RegistrySettings,
  logger: Logger,
): RegistryClient {
  const { readDeadlineMs } = settings;
  const silence = readDeadlineMs === undefined
    ? undefined
    : silenceMs(readDeadlineMs);
  return new RegistryClient({
    ...(silence === undefined
      ? {}
      : { limits: { answerMs: silence, stallMs: silence } }),
    plainHttp: settings.plainHttp,
    caFile: settings.caFile,
    tlsSkipVerify: settings.tlsSkipVerify,
    userAgent: settings.userAgent,
    clientPair: settings.clientPair,
    peerAddress: settings.peerAddress,
    logger,
    credentials: {
      authFile: settings.authFile,
      overlaybdFile: settings.overlaybdCredentialFile,
      overlaybdService: settings.overlaybdCredentialService,
      logger,
    },
  });
}
