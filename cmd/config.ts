/** Configuration files of `obd serve`: read, validated, merged, with their defaults. */

import { resolve } from "node:path";
import { parse, type ParseError, printParseErrorCode } from "jsonc-parser";
import * as v from "valibot";
import {
  errorText,
  fromUtf8,
  readFileUpTo,
  UsageError,
} from "../lib/io/mod.ts";
import type { OverlaybdSettings } from "./overlaybd_settings.ts";
import { overlaybdSettings } from "./overlaybd_settings.ts";
import {
  configSchema,
  IGNORED_OVERLAYBD_KEYS,
  KNOWN_KEYS,
  META_FROM,
  type RawConfig,
  SECTIONS,
} from "./config_schema.ts";
import { isSecretKey } from "./redact.ts";

const MAX_CONFIG_BYTES = 1024 * 1024;
const TOKEN_FILE_BYTES_MAX = 64 * 1024;
const GIB = 1024 ** 3;

/** One export. */
export interface ImageConfig {
  /** NBD export name. */
  export: string;
  /** Image reference; exactly one of `image` and `config` is there. */
  image?: string;
  /** Path of an overlaybd `config.v1.json`. */
  config?: string;
  platform?: string;
  /** Path of a trace that is replayed when the image is opened; false: none is looked for either. */
  trace?: string | false;
  /** Path of a file list; these files are fetched when the image is opened. */
  prefetchFiles?: string;
  /** Most bytes fetched ahead in a second. */
  prefetchRate?: number;
}

/** A bounded cache directory. */
export interface CacheConfig {
  directory: string;
  sizeBytes: number;
}

/** A complete configuration; every default is filled in. */
export interface ServeConfig {
  /** The files it came from. */
  files: string[];
  nbd: { listen: string; requestTimeoutMs: number; maxConnections: number };
  api: {
    listen: string;
    metricsListen?: string;
    /** Where the metrics are, next to `/metrics`. */
    metricsPath?: string;
    /** Bearer token for mutations over TCP. */
    token?: string;
  };
  images: ImageConfig[];
  metaFrom: (typeof META_FROM)[number][];
  requireSpans: boolean;
  /** What is fetched ahead of any reader. */
  prefetch: {
    /** Whether traces that lie beside an image are used. */
    traces: boolean;
    concurrency?: number;
    bytesPerSecond?: number;
  };
  workers: number;
  blobCache: CacheConfig & { refillSize: number };
  /** Absent when switched off. */
  gzipCache?: CacheConfig;
  /** How registries are reached, by overlaybd's keys. */
  registry: OverlaybdSettings;
  userAgent?: string;
  logLevel?: "debug" | "info" | "warn" | "error";
  /** Things worth one line each. */
  warnings: string[];
}

/** Where `serve` listens unless told otherwise. */
export const DEFAULT_NBD_LISTEN = "unix:/run/obd/nbd.sock";
export const DEFAULT_API_LISTEN = "unix:/run/obd/api.sock";

/**
 * Reads and merges configuration files: later files win, `images` add up.
 *
 * @param paths Files, or directories whose `*.json` and `*.jsonc` are taken in name order.
 * @throws {UsageError} Naming file and key, if a file cannot be read or a value is of the wrong type.
 */
export async function loadConfig(paths: string[]): Promise<ServeConfig> {
  const files = await configFiles(paths);
  if (files.length === 0) {
    throw new UsageError(
      `No *.json or *.jsonc file in "${paths.join('", "')}"`,
    );
  }
  const warnings: string[] = [];
  const parts: RawConfig[] = [];
  for (const file of files) parts.push(await readOne(file, warnings));
  return complete(merge(parts), files, warnings);
}

/**
 * The files that paths stand for, in the order in which they are merged.
 *
 * @throws {UsageError} If a path is not there.
 */
export async function configFiles(paths: string[]): Promise<string[]> {
  return (await Promise.all(paths.map(expandPath))).flat();
}

async function expandPath(path: string): Promise<string[]> {
  let info: Deno.FileInfo;
  try {
    info = await Deno.stat(path);
  } catch (error) {
    throw new UsageError(`Cannot read configuration "${path}"`, {
      cause: error,
    });
  }
  if (!info.isDirectory) return [path];
  const names: string[] = [];
  for await (const entry of Deno.readDir(path)) {
    if (!entry.isDirectory && /\.jsonc?$/.test(entry.name)) {
      names.push(`${path}/${entry.name}`);
    }
  }
  return names.sort();
}

async function readOne(file: string, warnings: string[]): Promise<RawConfig> {
  let content: string;
  try {
    const { size } = await Deno.stat(file);
    if (size > MAX_CONFIG_BYTES) {
      throw new Error(`${size} bytes, at most ${MAX_CONFIG_BYTES} are read`);
    }
    content = fromUtf8(await readFileUpTo(file, MAX_CONFIG_BYTES));
  } catch (error) {
    throw new UsageError(
      `Cannot read configuration "${file}": ${errorText(error)}`,
    );
  }
  return parseConfig(content, file, warnings);
}

/**
 * Parses one JSONC text.
 *
 * @param warnings Gets one line naming all unknown keys.
 * @throws {UsageError} Naming file and line, or file and key.
 */
export function parseConfig(
  content: string,
  file: string,
  warnings: string[],
): RawConfig {
  const errors: ParseError[] = [];
  const value: unknown = parse(content, errors, { allowTrailingComma: true });
  const first = errors[0];
  if (first) {
    const line = content.slice(0, first.offset).split("\n").length;
    throw new UsageError(
      `Configuration "${file}" is not valid JSON: line ${line}: ${
        printParseErrorCode(first.error)
      }`,
    );
  }
  const array = arrayForObject(value);
  if (array !== undefined) {
    throw new UsageError(
      `Configuration "${file}": key "${array}": expected Object, found Array`,
    );
  }
  const result = v.safeParse(configSchema, value);
  if (!result.success) {
    const issue = result.issues[0];
    const key = v.getDotPath(issue) ?? "(top level)";
    throw new UsageError(
      `Configuration "${file}": key "${key}": ${describe(issue, key)}`,
    );
  }
  const unknown = unknownKeys(value as Record<string, unknown>);
  const ignored = unknown.filter((key) => IGNORED_OVERLAYBD_KEYS.has(key));
  const strange = unknown.filter((key) => !IGNORED_OVERLAYBD_KEYS.has(key));
  const said = [
    strange.length > 0 ? `unknown: ${strange.join(", ")}` : "",
    ignored.length > 0 ? `without meaning here: ${ignored.join(", ")}` : "",
  ].filter((part) => part !== "");
  if (said.length > 0) {
    warnings.push(
      `Configuration "${file}" has ignored keys (${said.join("; ")})`,
    );
  }
  return result.output;
}

/** The first key that has an array where an object belongs. */
function arrayForObject(value: unknown): string | undefined {
  if (Array.isArray(value)) return "(top level)";
  if (!isRecord(value)) return undefined;
  const section = SECTIONS.find((key) => Array.isArray(value[key]));
  if (section !== undefined) return section;
  const images = Array.isArray(value.images) ? value.images : [];
  const image = images.findIndex((item) => Array.isArray(item));
  return image < 0 ? undefined : `images.${image}`;
}

function describe(issue: v.BaseIssue<unknown>, key: string): string {
  const { expected, received, message } = issue;
  if (isSecretKey(key)) return `expected ${expected ?? "another value"}`;
  return expected && received && issue.kind === "schema"
    ? `expected ${expected}, found ${received}`
    : message;
}

function unknownKeys(value: Record<string, unknown>, prefix = ""): string[] {
  const found: string[] = [];
  for (const [name, inner] of Object.entries(value)) {
    const key = prefix + name;
    if (!KNOWN_KEYS.has(key) || IGNORED_OVERLAYBD_KEYS.has(key)) {
      found.push(key);
    } else if (Array.isArray(inner)) {
      for (const item of inner) {
        if (typeof item === "object" && item !== null) {
          found.push(
            ...unknownKeys(item as Record<string, unknown>, `${key}[].`),
          );
        }
      }
    } else if (typeof inner === "object" && inner !== null) {
      found.push(...unknownKeys(inner as Record<string, unknown>, `${key}.`));
    }
  }
  return [...new Set(found)];
}

function merge(parts: RawConfig[]): RawConfig {
  const merged: Record<string, unknown> = {};
  for (const part of parts) {
    for (const [key, value] of Object.entries(part)) {
      const earlier = merged[key];
      if (key === "images") {
        merged[key] = [
          ...((earlier as unknown[]) ?? []),
          ...(value as unknown[]),
        ];
      } else if (isRecord(earlier) && isRecord(value)) {
        const both: Record<string, unknown> = { ...earlier, ...value };
        // An earlier token would go before a later file with one.
        if (key === "api" && "tokenFile" in value && !("token" in value)) {
          delete both.token;
        }
        merged[key] = both;
      } else merged[key] = value;
    }
  }
  return merged as RawConfig;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

async function complete(
  raw: RawConfig,
  files: string[],
  warnings: string[],
): Promise<ServeConfig> {
  const cache = raw.cacheConfig ?? {};
  const gzip = raw.gzipCacheConfig ?? {};
  const exporter = raw.exporterConfig;
  const prefetch = raw.prefetchConfig ?? {};
  const metricsListen = raw.api?.metricsListen ??
    (exporter?.enable ? `127.0.0.1:${exporter.port ?? 9864}` : undefined);
  const token = await apiToken(raw);
  const level = raw.logConfig?.logLevel ?? raw.logLevel;
  const blobDirectory = cache.cacheDir ?? raw.registryCacheDir ??
    "/var/lib/obd/blobs";
  const gzipDirectory = gzip.cacheDir ?? "/var/lib/obd/gzip";
  if (
    gzip.enable !== false && resolve(blobDirectory) === resolve(gzipDirectory)
  ) {
    throw new UsageError(
      `The blob cache and "gzipCacheConfig.cacheDir" are one directory, "${gzipDirectory}"`,
    );
  }
  return {
    files,
    nbd: {
      listen: raw.nbd?.listen ?? DEFAULT_NBD_LISTEN,
      requestTimeoutMs: (raw.nbd?.requestTimeout ?? 60) * 1000,
      maxConnections: raw.nbd?.maxConnections ?? 256,
    },
    api: {
      listen: raw.api?.listen ?? DEFAULT_API_LISTEN,
      ...(metricsListen === undefined ? {} : { metricsListen }),
      ...(exporter?.enable && exporter.uriPrefix
        ? { metricsPath: exporter.uriPrefix }
        : {}),
      ...(token === undefined ? {} : { token }),
    },
    images: nameExports(raw.images ?? []),
    metaFrom: raw.metaFrom ?? [...META_FROM],
    requireSpans: raw.integrity === "require-spans",
    prefetch: {
      traces: prefetch.enable ?? true,
      ...(prefetch.concurrency ? { concurrency: prefetch.concurrency } : {}),
      ...(prefetch.rate === undefined ? {} : { bytesPerSecond: prefetch.rate }),
    },
    workers: raw.workers ?? navigator.hardwareConcurrency,
    blobCache: {
      directory: blobDirectory,
      sizeBytes: (cache.cacheSizeGB ?? raw.registryCacheSizeGB ?? 4) * GIB,
      refillSize: cache.refillSize ?? 262_144,
    },
    ...(gzip.enable === false ? {} : {
      gzipCache: {
        directory: gzipDirectory,
        sizeBytes: (gzip.cacheSizeGB ?? 4) * GIB,
      },
    }),
    registry: overlaybdSettings(raw),
    ...(raw.userAgent ? { userAgent: raw.userAgent } : {}),
    ...(level === undefined
      ? {}
      : { logLevel: (["debug", "info", "warn", "error"] as const)[level]! }),
    warnings,
  };
}

async function apiToken(raw: RawConfig): Promise<string | undefined> {
  if (raw.api?.token !== undefined) return raw.api.token;
  const file = raw.api?.tokenFile;
  if (file === undefined) return undefined;
  try {
    return fromUtf8(await readFileUpTo(file, TOKEN_FILE_BYTES_MAX)).trim();
  } catch (error) {
    throw new UsageError(`Cannot read key "api.tokenFile" "${file}"`, {
      cause: error,
    });
  }
}

function nameExports(images: NonNullable<RawConfig["images"]>): ImageConfig[] {
  const names = new Set<string>();
  return images.map((image, index) => {
    const name = image.export ?? image.image ?? image.config!;
    if (names.has(name)) {
      throw new UsageError(
        `Key "images.${index}.export": "${name}" is used twice`,
      );
    }
    names.add(name);
    return {
      export: name,
      ...(image.image === undefined ? {} : { image: image.image }),
      ...(image.config === undefined ? {} : { config: image.config }),
      ...(image.platform === undefined ? {} : { platform: image.platform }),
      ...(image.trace === undefined ? {} : { trace: image.trace }),
      ...(image.prefetchFiles === undefined
        ? {}
        : { prefetchFiles: image.prefetchFiles }),
      ...(image.prefetchRate === undefined
        ? {}
        : { prefetchRate: image.prefetchRate }),
    };
  });
}

/** A listen address: a Unix socket path, or host and port. */
export type ListenAddress =
  | { transport: "unix"; path: string }
  | { transport: "tcp"; hostname: string; port: number };

/**
 * Parses `unix:/PATH` or `HOST:PORT` (`[::1]:10809`).
 *
 * @throws {UsageError} Naming the key.
 */
export function parseListen(address: string, key: string): ListenAddress {
  if (address.startsWith("unix:")) {
    const path = address.slice("unix:".length);
    // sun_path has 108 bytes with its NUL; bind(2) would cut a longer one.
    if (!path.startsWith("/") || new TextEncoder().encode(path).length > 107) {
      throw new UsageError(
        `Key "${key}": "${address}" needs an absolute path of at most 107 bytes after "unix:"`,
      );
    }
    return { transport: "unix", path };
  }
  const match = /^(\[[0-9a-fA-F:.]+\]|[^:]+):(\d{1,5})$/.exec(address);
  const port = Number(match?.[2]);
  if (!match || port > 65_535) {
    throw new UsageError(
      `Key "${key}": "${address}" is neither unix:/PATH nor HOST:PORT`,
    );
  }
  return {
    transport: "tcp",
    hostname: match[1]!.replace(/^\[|\]$/g, ""),
    port,
  };
}
