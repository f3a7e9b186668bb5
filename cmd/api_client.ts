/**
 * Talks to the status API of a running `obd serve`. Every call has a deadline
 * and a bound on what it reads.
 */

import { once } from "node:events";
import * as http from "node:http";
import * as v from "valibot";
import {
  CancelledError,
  concatBytes,
  DeadlineError,
  type ErrorCode,
  errorText,
  fromUtf8,
  LimitError,
  NotFoundError,
  ObdError,
  UsageError,
  utf8,
  withDeadline,
} from "../lib/io/mod.ts";
import type { ExportStatus, ServeStatus } from "./api.ts";
import { parseListen } from "./config.ts";

/** For answers that come from memory. */
const READ_DEADLINE_MS = 10_000;
/** An image may be built on the spot when it is added. */
const ADD_DEADLINE_MS = 30 * 60_000;
/** Connections are drained before an export goes. */
const REMOVE_DEADLINE_MS = 60_000;
/** 10,000 exports of 100 layers are about 200 MB of status; nobody needs that in one answer. */
const ANSWER_SIZE_MAX = 64 * 1024 * 1024;

/** What {@linkcode ApiClient.addExport} sends: a name and either an image or a config file. */
export interface NewExport {
  /** NBD export name. */
  name: string;
  /** Image reference. */
  image?: string;
  /** Path of an overlaybd `config.v1.json`, as the server sees it. */
  config?: string;
  /** `os/arch[/variant]` of an index. */
  platform?: string;
  /** Path of a trace to replay, as the server sees it; false: none at all. */
  trace?: string | false;
  /** Path of a list of files to fetch ahead, as the server sees it. */
  prefetchFiles?: string;
  /** Most that is fetched ahead, e.g. `20MB/s`. */
  prefetchRate?: string;
}

/** Options of one call. */
export interface CallOptions {
  /** Gives up with a `CancelledError`. */
  signal?: AbortSignal | undefined;
  /** Milliseconds for the whole call; each call has a default. */
  deadlineMs?: number | undefined;
}

/** The calls that commands make. */
export interface ApiClient extends Disposable {
  /** As given, for messages. */
  readonly address: string;
  /** `GET /v1/status` */
  status(options?: CallOptions): Promise<ServeStatus>;
  /** `GET /v1/log`: the last lines, oldest first. */
  log(options?: CallOptions): Promise<string[]>;
  /** `GET /metrics`: Prometheus text. */
  metrics(options?: CallOptions): Promise<string>;
  /** `POST /v1/exports`; resolves when the export can be connected to. */
  addExport(body: NewExport, options?: CallOptions): Promise<ExportStatus>;
  /**
   * `DELETE /v1/exports/NAME`
   *
   * @throws {ObdError} `conflict` while clients are connected, `not-found`.
   */
  removeExport(name: string, options?: CallOptions): Promise<void>;
  /** `POST /v1/traces/NAME`: begins to record what the export reads. */
  startTrace(name: string, options?: CallOptions): Promise<void>;
  /** `GET /v1/traces/NAME?from=N`: what was read so far, without the first N ranges. */
  readTrace(
    name: string,
    from: number,
    options?: CallOptions,
  ): Promise<TraceRange[]>;
  /** Fingerprint of the device that is recorded, hex: `GET /v1/traces/NAME`. */
  tracedDevice(name: string, options?: CallOptions): Promise<string>;
  /** `DELETE /v1/traces/NAME`: ends that. @returns Ranges of the device, bytes, in the order of first reads. */
  stopTrace(name: string, options?: CallOptions): Promise<TraceRange[]>;
}

/** A range of a device, in bytes. */
export interface TraceRange {
  offset: number;
  length: number;
}

/** No `obd serve` answers at the address. */
export class ApiUnreachableError extends ObdError {
  constructor(address: string, options?: ErrorOptions) {
    super("state", `No obd serve answers at "${address}"`, options);
  }
}

const ERROR_CODES: readonly ErrorCode[] = [
  "cancelled",
  "conflict",
  "deadline",
  "format",
  "integrity",
  "limit",
  "not-found",
  "registry",
  "state",
  "unsupported",
  "usage",
];

const failureSchema = v.looseObject({
  code: v.picklist(ERROR_CODES),
  message: v.pipe(v.string(), v.maxLength(64 * 1024)),
});

const stageSeconds = v.looseObject({
  queue: v.number(),
  fetch: v.number(),
  decode: v.number(),
});
const loadCounters = v.looseObject({
  loads: v.number(),
  storedBytes: v.number(),
  bytes: v.number(),
  seconds: stageSeconds,
});

const exportSchema = v.looseObject({
  name: v.string(),
  uri: v.string(),
  size: v.number(),
  image: v.string(),
  integrity: v.string(),
  layers: v.array(v.looseObject({ digest: v.string(), kind: v.string() })),
  connections: v.number(),
  reading: v.optional(v.looseObject({
    waits: v.number(),
    waitSeconds: v.number(),
    waitingSeconds: v.number(),
    waitingFor: v.looseObject({ ...stageSeconds.entries, other: v.number() }),
    demand: loadCounters,
    ahead: loadCounters,
  })),
});

const statusSchema = v.looseObject({
  version: v.string(),
  pid: v.number(),
  ready: v.boolean(),
  exports: v.array(exportSchema),
  caches: v.array(v.looseObject({ name: v.string() })),
  hosts: v.array(v.looseObject({ host: v.string() })),
});

const safeInteger = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const deviceSchema = v.looseObject({
  device: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)),
});
const traceSchema = v.looseObject({
  records: v.array(v.tuple([safeInteger, safeInteger])),
});

const logSchema = v.looseObject({ lines: v.array(v.string()) });

/**
 * A client for one address; nothing is sent before the first call.
 *
 * @param address `unix:/PATH` or `HOST:PORT`.
 * @param options.token Bearer token for changes over TCP; defaults to `OBD_API_TOKEN` of the environment.
 * @throws {UsageError} If the address is neither.
 */
export function createApiClient(
  address: string,
  options: { token?: string } = {},
): ApiClient {
  return new HttpApiClient(address, options);
}

interface Call {
  method: "GET" | "POST" | "DELETE";
  path: string;
  body?: unknown;
  deadlineMs: number;
}

/** Where requests go, as node:http wants it. */
type Target = { socketPath: string } | { host: string; port: number };

/**
 * Over node:http: fetch would heed `HTTP_PROXY` and, worse, `NO_PROXY`, which
 * also switches off the "proxy" that a Unix socket is to Deno's fetch.
 */
class HttpApiClient implements ApiClient {
  readonly address: string;
  readonly #target: Target;
  readonly #token: string | undefined;

  constructor(address: string, options: { token?: string }) {
    this.address = address;
    const at = parseListen(address, "--api");
    if (at.transport === "unix") {
      this.#target = { socketPath: at.path };
      return;
    }
    if (at.port === 0) {
      throw new UsageError(`Key "--api": "${address}" has no port`);
    }
    this.#target = { host: at.hostname, port: at.port };
    this.#token = options.token ?? Deno.env.get("OBD_API_TOKEN");
  }

  async status(options?: CallOptions): Promise<ServeStatus> {
    const answer = await this.#json(get("/v1/status"), options);
    return this.#checked(statusSchema, answer) as unknown as ServeStatus;
  }

  async log(options?: CallOptions): Promise<string[]> {
    const answer = await this.#json(get("/v1/log"), options);
    return this.#checked(logSchema, answer).lines;
  }

  metrics(options?: CallOptions): Promise<string> {
    return this.#call(get("/metrics"), options);
  }

  async addExport(
    body: NewExport,
    options?: CallOptions,
  ): Promise<ExportStatus> {
    const answer = await this.#json({
      method: "POST",
      path: "/v1/exports",
      body,
      deadlineMs: ADD_DEADLINE_MS,
    }, options);
    return this.#checked(exportSchema, answer) as unknown as ExportStatus;
  }

  async removeExport(name: string, options?: CallOptions): Promise<void> {
    await this.#call({
      method: "DELETE",
      path: `/v1/exports/${encodeURIComponent(name)}`,
      deadlineMs: REMOVE_DEADLINE_MS,
    }, options);
  }

  async startTrace(name: string, options?: CallOptions): Promise<void> {
    await this.#call({
      method: "POST",
      path: `/v1/traces/${encodeURIComponent(name)}`,
      deadlineMs: READ_DEADLINE_MS,
    }, options);
  }

  readTrace(
    name: string,
    from: number,
    options?: CallOptions,
  ): Promise<TraceRange[]> {
    const path = `/v1/traces/${encodeURIComponent(name)}?from=${from}`;
    return this.#traceRanges(get(path), options);
  }

  async tracedDevice(name: string, options?: CallOptions): Promise<string> {
    const path = `/v1/traces/${encodeURIComponent(name)}`;
    return this.#checked(deviceSchema, await this.#json(get(path), options))
      .device;
  }

  stopTrace(name: string, options?: CallOptions): Promise<TraceRange[]> {
    return this.#traceRanges({
      method: "DELETE",
      path: `/v1/traces/${encodeURIComponent(name)}`,
      deadlineMs: READ_DEADLINE_MS,
    }, options);
  }

  async #traceRanges(
    call: Call,
    options?: CallOptions,
  ): Promise<TraceRange[]> {
    const answer = await this.#json(call, options);
    return this.#checked(traceSchema, answer).records.map((
      [offset, length],
    ) => ({ offset, length }));
  }

  /** Every call has a connection of its own, which ends with it. */
  [Symbol.dispose](): void {}

  async #json(call: Call, options?: CallOptions): Promise<unknown> {
    const text = await this.#call(call, options);
    try {
      return JSON.parse(text);
    } catch (error) {
      throw this.#strange("not JSON", error);
    }
  }

  #checked<S extends v.GenericSchema>(
    schema: S,
    value: unknown,
  ): v.InferOutput<S> {
    const result = v.safeParse(schema, value);
    if (result.success) return result.output;
    const issue = result.issues[0];
    const key = v.getDotPath(issue) ?? "(top level)";
    throw this.#strange(`key "${key}": ${issue.message}`);
  }

  #strange(problem: string, cause?: unknown): ObdError {
    return new ObdError(
      "format",
      `The answer at "${this.address}" is not from obd serve: ${problem}`,
      cause === undefined ? undefined : { cause },
    );
  }

  async #call(call: Call, options: CallOptions = {}): Promise<string> {
    const { method, path } = call;
    return await withDeadline(
      `${method} ${path} at "${this.address}"`,
      options.deadlineMs ?? call.deadlineMs,
      async (signal) => {
        try {
          const { statusCode = 0, text } = await this.#send(call, signal);
          if (statusCode >= 200 && statusCode < 300) return text;
          throw this.#failure(statusCode, text);
        } catch (error) {
          throw this.#interrupted(error, signal);
        }
      },
      options.signal,
    );
  }

  async #send(
    call: Call,
    signal: AbortSignal,
  ): Promise<{ statusCode: number | undefined; text: string }> {
    const body = call.body === undefined
      ? undefined
      : utf8(JSON.stringify(call.body));
    const request = http.request({
      ...this.#target,
      method: call.method,
      path: call.path,
      agent: false,
      signal,
      headers: {
        connection: "close",
        ...(body
          ? {
            "content-type": "application/json",
            "content-length": body.length,
          }
          : {}),
        ...(this.#token === undefined
          ? {}
          : { authorization: `Bearer ${this.#token}` }),
      },
    });
    // A connection that breaks during the answer fails the answer, and once more the request.
    request.on("error", () => {});
    try {
      const answered = once(request, "response");
      request.end(body);
      const [response] = await answered as [http.IncomingMessage];
      return {
        statusCode: response.statusCode,
        text: await this.#readText(response),
      };
    } finally {
      request.destroy();
    }
  }

  async #readText(response: AsyncIterable<Uint8Array>): Promise<string> {
    const parts: Uint8Array[] = [];
    let size = 0;
    for await (const part of response) {
      size += part.length;
      if (size > ANSWER_SIZE_MAX) {
        throw new LimitError(
          `The answer at "${this.address}" has more than ${ANSWER_SIZE_MAX} bytes`,
        );
      }
      parts.push(part);
    }
    return fromUtf8(concatBytes(parts));
  }

  #interrupted(error: unknown, signal: AbortSignal): ObdError {
    if (error instanceof ObdError) return error;
    const { reason } = signal;
    if (reason instanceof DeadlineError) return reason;
    if (signal.aborted) return new CancelledError();
    return new ApiUnreachableError(this.address, { cause: error });
  }

  #failure(status: number, text: string): ObdError {
    let answer: unknown;
    try {
      answer = JSON.parse(text);
    } catch (error) {
      return this.#strange(`status ${status}: ${errorText(error)}`);
    }
    const parsed = v.safeParse(failureSchema, answer);
    if (!parsed.success) return this.#strange(`status ${status}`);
    const { code, message } = parsed.output;
    return code === "not-found"
      ? new NotFoundError(message)
      : new ObdError(code, message);
  }
}

function get(path: string): Call {
  return { method: "GET", path, deadlineMs: READ_DEADLINE_MS };
}
