/** `obd serve --config FILE`: the long-running process. Signals and listeners are handled here only. */

import { checkImageName, checkRegistryFiles } from "../lib/image/mod.ts";
import {
  bindUnixSocket,
  type BoundSocket,
  errorText,
  type Logger,
  ObdError,
  UsageError,
} from "../lib/io/mod.ts";
import { formatNbdAddress } from "../lib/nbd/mod.ts";
import { createApi, createMetricsApi } from "./api.ts";
import { type ApiApp, ApiServer } from "./api_server.ts";
import {
  type ImageConfig,
  type ListenAddress,
  loadConfig,
  parseListen,
  type ServeConfig,
} from "./config.ts";
import type { Context, RegistrySettings } from "./context.ts";
import { keepStderrSmall } from "./log_file.ts";
import { notifyServiceManager } from "./notify.ts";
import { ServeSession } from "./serve_session.ts";
import { printLine } from "./stdout.ts";
import { readPrefetchFiles } from "./trace_files.ts";

/** For requests in flight when the process is told to stop. */
const STOP_DEADLINE_MS = 20_000;
/** For requests of the API that are being answered then. */
const API_STOP_DEADLINE_MS = 3_000;

/** A listening API and how to be rid of it. */
interface ApiListener {
  address: string;
  close(): Promise<void>;
}

export async function run(
  context: Context,
  _args: string[],
  options: Record<string, unknown>,
): Promise<void> {
  await checkRegistryFiles(context.registry);
  const { config, addresses } = await readConfig(
    options.config as string[],
    context.registry,
  );
  for (const warning of config.warnings) context.log.warn(warning);
  if (config.logLevel && !context.debug) context.log.setLevel(config.logLevel);
  const logSizeMax = Number(Deno.env.get("OBD_LOG_SIZE_MAX"));
  if (logSizeMax > 0) keepStderrSmall(context.log, logSizeMax);
  if (options.check) {
    for (const image of config.images) await checkImage(image);
    context.say(
      `Configuration is valid: ${config.images.length} images, NBD at ${config.nbd.listen}, API at ${config.api.listen}`,
    );
    context.result({
      valid: true,
      files: config.files,
      images: config.images,
      warnings: config.warnings,
    });
    return;
  }
  await serve(context, config, addresses);
}

/** What the image would not be opened without, as far as nobody has to be asked. */
async function checkImage(image: ImageConfig): Promise<void> {
  try {
    if (image.image !== undefined) checkImageName(image.image, image.platform);
    await readPrefetchFiles(image);
  } catch (error) {
    if (!(error instanceof ObdError)) throw error;
    throw new ObdError(
      error.code,
      `Cannot open export "${image.export}": ${errorText(error)}`,
      { cause: error },
    );
  }
}

/** A mistake in a file is a failure (exit 1), not one of the command line's use. */
async function readConfig(
  paths: string[],
  { tlsSkipVerify }: RegistrySettings,
): Promise<{ config: ServeConfig; addresses: Addresses }> {
  try {
    const config = await loadConfig(paths);
    config.warnings.push(
      ...await checkRegistryFiles({
        ...config.registry,
        ...(tlsSkipVerify ? { tlsSkipVerify } : {}),
      }),
    );
    return { config, addresses: checkAddresses(config) };
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    throw new ObdError("format", errorText(error), { cause: error });
  }
}

interface Addresses {
  api: ListenAddress;
  metrics: ListenAddress | undefined;
}

function checkAddresses(config: ServeConfig): Addresses {
  parseListen(config.nbd.listen, "nbd.listen");
  const { listen, metricsListen } = config.api;
  return {
    api: parseListen(listen, "api.listen"),
    metrics: metricsListen === undefined
      ? undefined
      : parseListen(metricsListen, "api.metricsListen"),
  };
}

async function serve(
  context: Context,
  config: ServeConfig,
  addresses: Addresses,
): Promise<void> {
  const { log, signal } = context;
  const session = await ServeSession.open({
    config,
    log,
    recentLog: () => log.recent,
    registry: context.registry,
    // Opening is cut short by a signal; requests in flight are not.
    signal,
  });
  const apis: ApiListener[] = [];
  try {
    await session.openImages();
    await session.listen();
    apis.push(
      await listenApi(
        addresses.api,
        "api.listen",
        log,
        (trusted, hosts) =>
          createApi(session, {
            trusted,
            traces: session.traces,
            ...(hosts ? { hosts } : {}),
            ...(config.api.token ? { token: config.api.token } : {}),
          }),
      ),
    );
    if (addresses.metrics) {
      apis.push(
        await listenApi(
          addresses.metrics,
          "api.metricsListen",
          log,
          () => createMetricsApi(session, { path: config.api.metricsPath }),
        ),
      );
    }
    announce(session, apis[0]!.address, context);
    await untilAborted(signal);
  } catch (error) {
    // Told to stop while it was starting: that is no failure either.
    if (!signal.aborted || !isCancelled(error)) throw error;
  } finally {
    if (signal.aborted) sayStopping(context);
    await Promise.all(apis.map((api) => api.close()));
    await session.close(STOP_DEADLINE_MS);
  }
}

function isCancelled(error: unknown): boolean {
  return error instanceof ObdError && error.code === "cancelled";
}

function sayStopping({ log, signal }: Context): void {
  log.info("stopping", { reason: errorText(signal.reason) });
  notifyServiceManager("STOPPING=1", Deno.env.get("NOTIFY_SOCKET"), log);
}

/** The one machine-readable line that says that everything is there. */
function announce(
  session: ServeSession,
  api: string,
  { log }: Context,
): void {
  const exports = session.status().exports.map((e) => ({
    name: e.name,
    uri: e.uri,
    size: e.size,
    source: e.source,
    meta: e.meta,
  }));
  printLine(
    JSON.stringify({ event: "ready", pid: Deno.pid, api, exports }),
  );
  notifyServiceManager("READY=1", Deno.env.get("NOTIFY_SOCKET"), log);
}

function untilAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

async function listenApi(
  address: ListenAddress,
  key: string,
  log: Logger,
  makeApi: (trusted: boolean, hosts: string[] | undefined) => ApiApp,
): Promise<ApiListener> {
  try {
    if (address.transport === "unix") {
      const app = makeApi(true, undefined);
      const bound: BoundSocket<ApiServer> = await bindUnixSocket(
        address.path,
        (path) => ApiServer.listen({ path }, app, log),
        (server) => server.close(0),
      );
      return {
        address: `unix:${address.path}`,
        close: async () => {
          await bound.listener.close(API_STOP_DEADLINE_MS);
          await bound.remove();
        },
      };
    }
    const { hostname, port } = address;
    const app = makeApi(false, hostNames(hostname));
    const server = await ApiServer.listen({ hostname, port }, app, log);
    return {
      address: formatNbdAddress({
        transport: "tcp",
        hostname,
        port: server.port,
      }),
      close: () => server.close(API_STOP_DEADLINE_MS),
    };
  } catch (error) {
    throw new ObdError(
      "conflict",
      `Cannot listen at key "${key}": ${errorText(error)}`,
      { cause: error },
    );
  }
}

/** Names under which a TCP listener may be addressed. */
function hostNames(hostname: string): string[] {
  const name = hostname.includes(":") ? `[${hostname}]` : hostname;
  return [name.toLowerCase(), "localhost", "127.0.0.1", "[::1]"];
}
