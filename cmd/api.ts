/**
 * The status API: a factory without globals. Routes are thin; what they show
 * and change is behind {@linkcode ServeControl}.
 */

import { type Context as HonoContext, Hono } from "hono";
import { timingSafeEqual } from "node:crypto";
import * as v from "valibot";
import {
  concatBytes,
  type ErrorCode,
  errorText,
  fromUtf8,
  NotFoundError,
  ObdError,
  utf8,
} from "../lib/io/mod.ts";
import type { ReadCounters } from "../lib/image/mod.ts";
import type { ImageConfig } from "./config.ts";
import { prefetchRate, traceSetting } from "./config_schema.ts";
import { renderMetrics } from "./metrics.ts";
import { statusPage } from "./status_page.ts";

/** One export, as the API shows it. */
export interface ExportStatus {
  name: string;
  uri: string;
  /** Bytes of the device. */
  size: number;
  /** What was asked for: a reference or a config file. */
  image: string;
  /** Digest of the source manifest, where there is one. */
  source?: string;
  /** Digest of the meta manifest, where there is one. */
  meta?: string;
  /** Lowest level over all layers. */
  integrity: string;
  layers: LayerStatus[];
  connections: number;
  /** Seconds after which a read that is not done is answered with an error. */
  requestTimeoutSeconds: number;
  counters: ExportCounters;
  /** What its reads waited for, and what was loaded for them, since it was added. */
  reading: ReadCounters;
}

/** One layer of an export. */
export interface LayerStatus {
  digest: string;
  kind: string;
  integrity: string;
  size: number;
}

/** Counters of one export since it was added. */
export interface ExportCounters {
  reads: number;
  readBytes: number;
  readErrors: number;
  readSeconds: number;
  inFlight: number;
}

/** Counters of one cache. */
export interface CacheStatus {
  name: string;
  hits: number;
  misses: number;
  storedBytes: number;
  limitBytes: number;
  evictions: number;
}

/** Counters of one registry host. */
export interface HostStatus {
  host: string;
  requests: number;
  bytes: number;
  errors: number;
}

/** Everything about a running `serve`. */
export interface ServeStatus {
  version: string;
  pid: number;
  started: string;
  uptimeSeconds: number;
  ready: boolean;
  exports: ExportStatus[];
  caches: CacheStatus[];
  hosts: HostStatus[];
  memory: { rssBytes: number; heapUsedBytes: number };
}

/** What the API shows and changes. */
export interface ServeControl {
  status(): ServeStatus;
  recentLog(): readonly string[];
  add(image: ImageConfig): Promise<ExportStatus>;
  /**
   * Removes an export; the opening of one is called off.
   *
   * @throws {ObdError} `conflict` while clients are connected, `not-found`.
   */
  remove(name: string): Promise<void>;
}

/** Recording of what exports read. */
export interface TraceControl {
  /** @throws {ObdError} `not-found`; `conflict` while it is recorded already. */
  start(name: string): void;
  /** What was read so far, without the first `from` ranges. The last one may still grow. */
  read(
    name: string,
    from: number,
  ): readonly { offset: number; length: number }[];
  /** Fingerprint of an export's device, hex. */
  device(name: string): Promise<string>;
  /** Ends a recording. @returns Ranges of the device in bytes, in the order of first reads. */
  stop(name: string): readonly { offset: number; length: number }[];
}

/** How requests of one listener are treated. */
export interface ApiOptions {
  /** Mutations are allowed: the listener is a Unix socket that only its owner can open. */
  trusted: boolean;
  /** Mutations are allowed with this bearer token. */
  token?: string;
  /**
   * Values of `Host` that are answered; `0.0.0.0` and `[::]` stand for every
   * address. Undefined answers all (Unix sockets).
   */
  hosts?: readonly string[];
  /** Absent: no routes for traces. */
  traces?: TraceControl;
}

const BODY_SIZE_MAX = 64 * 1024;

const HTTP_STATUS: Partial<
  Record<ErrorCode, 400 | 404 | 409 | 422 | 502 | 504>
> = {
  usage: 400,
  format: 422,
  unsupported: 422,
  limit: 422,
  integrity: 502,
  registry: 502,
  deadline: 504,
  "not-found": 404,
  conflict: 409,
  // Somebody removed what was being opened.
  cancelled: 409,
};

const newExport = v.strictObject({
  name: v.pipe(v.string(), v.minLength(1), v.maxLength(4096)),
  image: v.optional(v.pipe(v.string(), v.minLength(1), v.maxLength(4096))),
  config: v.optional(v.pipe(v.string(), v.minLength(1), v.maxLength(4096))),
  platform: v.optional(v.pipe(v.string(), v.maxLength(200))),
  trace: v.optional(traceSetting),
  prefetchFiles: v.optional(
    v.pipe(v.string(), v.minLength(1), v.maxLength(4096)),
  ),
  prefetchRate: v.optional(prefetchRate),
});

/** The API over one control, for one listener. */
export function createApi(control: ServeControl, options: ApiOptions): Hono {
  const app = new Hono();
  app.use(async (c, next) => {
    // A page in a browser must not reach us through a name that it controls.
    if (options.hosts && !isKnown(hostName(c), options.hosts)) {
      return c.json(failure("usage", "Unknown Host header"), 421);
    }
    await next();
  });
  addReadRoutes(app, control);
  addMutations(app, control, options);
  app.notFound((c) => c.json(failure("not-found", "No such route"), 404));
  app.onError((error, c) => {
    const code = error instanceof ObdError ? error.code : "state";
    return c.json(failure(code, errorText(error)), HTTP_STATUS[code] ?? 500);
  });
  return app;
}

/** Only what a scraper needs: health and metrics. */
export function createMetricsApi(
  control: ServeControl,
  options: { path?: string | undefined } = {},
): Hono {
  const app = new Hono();
  addHealthRoutes(app, control);
  const { path } = options;
  if (path !== undefined && path !== "/metrics") addMetrics(app, control, path);
  return app;
}

function addHealthRoutes(app: Hono, control: ServeControl): void {
  app.get("/healthz", (c) => c.text("ok\n"));
  app.get(
    "/readyz",
    (c) =>
      control.status().ready ? c.text("ready\n") : c.text("starting\n", 503),
  );
  addMetrics(app, control, "/metrics");
}

function addMetrics(app: Hono, control: ServeControl, path: string): void {
  app.get(path, (c) =>
    c.text(renderMetrics(control.status()), 200, {
      "content-type": "text/plain; version=0.0.4; charset=utf-8",
    }));
}

function addReadRoutes(app: Hono, control: ServeControl): void {
  addHealthRoutes(app, control);
  app.get("/v1/status", (c) => c.json(control.status()));
  app.get("/v1/log", (c) => c.json({ lines: control.recentLog() }));
  app.get("/v1/exports", (c) => c.json({ exports: control.status().exports }));
  app.get("/v1/exports/:name{[^]+}", (c) => {
    const name = c.req.param("name");
    const found = control.status().exports.find((e) => e.name === name);
    if (!found) throw new NotFoundError(`No export "${name}"`);
    return c.json(found);
  });
  app.get("/", (c) => c.html(statusPage(control.status())));
}

function addMutations(
  app: Hono,
  control: ServeControl,
  options: ApiOptions,
): void {
  const allowed = (c: HonoContext) =>
    options.trusted || hasToken(c, options.token);
  const refuse = (c: HonoContext) =>
    c.json(
      failure("usage", "Changes need the Unix socket or a bearer token"),
      options.token === undefined ? 403 : 401,
    );
  app.post("/v1/exports", async (c) => {
    if (!allowed(c)) return refuse(c);
    const bytes = await readBody(c.req.raw);
    if (!bytes) return c.json(failure("limit", "Body is too large"), 413);
    let body: unknown;
    try {
      body = JSON.parse(fromUtf8(bytes));
    } catch {
      return c.json(failure("usage", "Body is not JSON"), 400);
    }
    const parsed = v.safeParse(newExport, body);
    if (!parsed.success) {
      const issue = parsed.issues[0];
      const key = v.getDotPath(issue) ?? "body";
      // strictObject() "expected never" of what it does not know.
      const problem = issue.expected === "never"
        ? "there is no such key"
        : issue.message;
      return c.json(failure("usage", `Key "${key}": ${problem}`), 400);
    }
    const { name, ...image } = parsed.output;
    if ((image.image === undefined) === (image.config === undefined)) {
      return c.json(
        failure("usage", 'Either "image" or "config" is needed'),
        400,
      );
    }
    const given = Object.fromEntries(
      Object.entries(image).filter(([, value]) => value !== undefined),
    );
    return c.json(await control.add({ export: name, ...given }), 201);
  });
  app.delete("/v1/exports/:name{[^]+}", async (c) => {
    if (!allowed(c)) return refuse(c);
    await control.remove(c.req.param("name"));
    return c.body(null, 204);
  });
  const { traces } = options;
  if (!traces) return;
  app.post("/v1/traces/:name{[^]+}", (c) => {
    if (!allowed(c)) return refuse(c);
    traces.start(c.req.param("name"));
    return c.body(null, 204);
  });
  // What is read may be a secret, so this needs what changes need.
  app.get("/v1/traces/:name{[^]+}", async (c) => {
    if (!allowed(c)) return refuse(c);
    const from = c.req.query("from") ?? "0";
    if (!/^\d{1,9}$/.test(from)) {
      return c.json(failure("usage", `"from" is no number: "${from}"`), 400);
    }
    const name = c.req.param("name");
    const records = asJson(traces.read(name, Number(from)));
    return c.json({ ...records, device: await traces.device(name) });
  });
  app.delete("/v1/traces/:name{[^]+}", (c) => {
    if (!allowed(c)) return refuse(c);
    return c.json(asJson(traces.stop(c.req.param("name"))));
  });
}

function asJson(records: readonly { offset: number; length: number }[]) {
  return { records: records.map((r) => [r.offset, r.length]) };
}

/**
 * A request's body.
 *
 * Not hono's bodyLimit: that makes a new Request of every chunked body, which
 * makes Deno print a notice about signals.
 *
 * @returns Undefined if it has more than {@linkcode BODY_SIZE_MAX} bytes.
 */
async function readBody(request: Request): Promise<Uint8Array | undefined> {
  if (Number(request.headers.get("content-length")) > BODY_SIZE_MAX) {
    return undefined;
  }
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of request.body ?? []) {
    size += part.length;
    if (size > BODY_SIZE_MAX) return undefined;
    parts.push(part);
  }
  return concatBytes(parts);
}

function failure(code: ErrorCode, message: string) {
  return { code, message };
}

function hostName(c: HonoContext): string {
  const host = (c.req.header("host") ?? "").toLowerCase();
  return host.replace(/:\d+$/, "");
}

/** An address, unlike a name, is nobody's to point elsewhere. */
function isKnown(host: string, hosts: readonly string[]): boolean {
  const everywhere = hosts.includes("0.0.0.0") || hosts.includes("[::]");
  return hosts.includes(host) ||
    (everywhere && /^(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-f:.]+\])$/.test(host));
}

function hasToken(c: HonoContext, token: string | undefined): boolean {
  const given = /^Bearer (.+)$/.exec(c.req.header("authorization") ?? "")?.[1];
  if (token === undefined || given === undefined) return false;
  const a = utf8(given);
  const b = utf8(token);
  return a.length === b.length && timingSafeEqual(a, b);
}
