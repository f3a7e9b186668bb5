/**
 * The keys of a configuration file. overlaybd's names are used where overlaybd
 * has the setting (its `overlaybd.json` loads as it is), ours stand beside them.
 */

import * as v from "valibot";
import { parsePrefetchRate, RATE_FORM } from "./rate.ts";

const text = v.pipe(v.string(), v.maxLength(4096));
const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const seconds = v.pipe(v.number(), v.minValue(0.1), v.maxValue(86_400));
const gigabytes = v.pipe(
  v.number(),
  v.minValue(0.001),
  v.maxValue(1_048_576),
);

/** Bytes fetched around what is read while few wait; overlaybd wants a multiple of 4096 too. */
const refillSize = v.pipe(
  v.number(),
  v.integer(),
  v.minValue(4096),
  v.maxValue(16 * 1024 * 1024),
  v.check((n) => n % 4096 === 0, "must be a multiple of 4096"),
);

/** Bytes per second, written as on the command line. */
export const prefetchRate = v.pipe(
  v.string(),
  v.maxLength(100),
  v.check(
    (text) => parsePrefetchRate(text) !== undefined,
    `must be ${RATE_FORM}`,
  ),
  v.transform((text) => parsePrefetchRate(text)!),
);

/** Path of a trace, or false: none is looked for. */
export const traceSetting = v.union([
  v.pipe(v.string(), v.minLength(1), v.maxLength(4096)),
  v.literal(false),
]);

const image = v.pipe(
  v.looseObject({
    export: v.optional(v.pipe(v.string(), v.minLength(1), v.maxLength(4096))),
    image: v.optional(text),
    config: v.optional(text),
    platform: v.optional(text),
    trace: v.optional(traceSetting),
    prefetchFiles: v.optional(text),
    prefetchRate: v.optional(prefetchRate),
  }),
  v.check(
    (i) => (i.image === undefined) !== (i.config === undefined),
    'needs either "image" or "config"',
  ),
);

/** Ways to come to the meta image of a plain image. */
export const META_FROM = ["digest", "tag", "referrer", "build"] as const;

export const configSchema = v.looseObject({
  // obd's own keys
  nbd: v.optional(v.looseObject({
    listen: v.optional(text),
    requestTimeout: v.optional(seconds),
    maxConnections: v.optional(v.pipe(count, v.minValue(1))),
  })),
  api: v.optional(v.looseObject({
    listen: v.optional(text),
    metricsListen: v.optional(text),
    token: v.optional(text),
    tokenFile: v.optional(text),
  })),
  images: v.optional(v.array(image)),
  metaFrom: v.optional(v.array(v.picklist(META_FROM))),
  integrity: v.optional(v.picklist(["warn", "require-spans"])),
  prefetchConfig: v.optional(v.looseObject({
    enable: v.optional(v.boolean()),
    rate: v.optional(prefetchRate),
    // overlaybd's
    concurrency: v.optional(v.pipe(count, v.maxValue(256))),
  })),
  workers: v.optional(v.pipe(count, v.minValue(1), v.maxValue(256))),
  // overlaybd's keys that mean the same here
  registryCacheDir: v.optional(text),
  registryCacheSizeGB: v.optional(gigabytes),
  cacheConfig: v.optional(v.looseObject({
    cacheType: v.optional(text),
    cacheDir: v.optional(text),
    cacheSizeGB: v.optional(gigabytes),
    refillSize: v.optional(refillSize),
  })),
  gzipCacheConfig: v.optional(v.looseObject({
    enable: v.optional(v.boolean()),
    cacheDir: v.optional(text),
    cacheSizeGB: v.optional(gigabytes),
    refillSize: v.optional(refillSize),
  })),
  credentialFilePath: v.optional(text),
  credentialConfig: v.optional(v.looseObject({
    mode: v.optional(v.picklist(["", "file", "http", "https", "uds"])),
    path: v.optional(text),
    timeout: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(3600))),
    client_cert_path: v.optional(text),
    client_key_path: v.optional(text),
    server_ca_path: v.optional(text),
  })),
  certConfig: v.optional(v.looseObject({
    certFile: v.optional(text),
    keyFile: v.optional(text),
  })),
  p2pConfig: v.optional(v.looseObject({
    enable: v.optional(v.boolean()),
    address: v.optional(text),
  })),
  logConfig: v.optional(v.looseObject({
    logLevel: v.optional(v.pipe(count, v.maxValue(3))),
  })),
  logLevel: v.optional(v.pipe(count, v.maxValue(3))),
  exporterConfig: v.optional(v.looseObject({
    enable: v.optional(v.boolean()),
    port: v.optional(v.pipe(count, v.maxValue(65_535))),
    uriPrefix: v.optional(
      v.pipe(text, v.regex(/^\/[\w./-]*$/, "must be a path such as /metrics")),
    ),
  })),
  userAgent: v.optional(
    v.pipe(text, v.regex(/^[ -~]*$/, "must be printable ASCII")),
  ),
});

/** A configuration as read; see {@linkcode configSchema}. */
export type RawConfig = v.InferOutput<typeof configSchema>;

/** Every key that has a meaning here, as dotted paths. */
export const KNOWN_KEYS: ReadonlySet<string> = new Set(knownKeys());

/** Keys whose values are objects; the schema would take an array for an empty one. */
export const SECTIONS: readonly string[] = Object.entries(configSchema.entries)
  .filter(([, entry]) => entry.wrapped.type === "loose_object")
  .map(([key]) => key);

/** overlaybd's keys that obd accepts and does not use, so that its file loads without noise about typos. */
export const IGNORED_OVERLAYBD_KEYS: ReadonlySet<string> = new Set([
  "cacheType",
  "cacheConfig.cacheType",
  "cacheConfig.blockSize",
  "gzipCacheConfig.refillSize",
  "download",
  "enableAudit",
  "enableThread",
  "auditPath",
  "exporterConfig.updateInterval",
  "ioEngine",
  "logConfig.logPath",
  "logConfig.logSizeMB",
  "logConfig.logRotateNum",
  "logPath",
  "registryFsVersion",
  "serviceConfig",
]);

function* knownKeys(): Generator<string> {
  for (const [key, wrapped] of Object.entries(configSchema.entries)) {
    yield key;
    const inner = wrapped.wrapped;
    if (inner.type === "loose_object") {
      for (const name of Object.keys(inner.entries)) yield `${key}.${name}`;
    }
  }
  yield* ["images[].export", "images[].image", "images[].config"];
  yield* ["images[].platform", "images[].trace"];
  yield* ["images[].prefetchFiles", "images[].prefetchRate"];
}
