/** What a `config.v1.json` says, and the files and blobs that it names (its keys: `README.md`). */

import * as v from "valibot";
import {
  type ByteSource,
  errorText,
  FileSource,
  FormatError,
  NotFoundError,
  ObdError,
  readBytes,
} from "../io/mod.ts";
import { META_MEMBER } from "../layers/mod.ts";
import { isDigest, parseReference, type Repository } from "../registry/mod.ts";

const CONFIG_SIZE_MAX = 4 * 1024 * 1024;
const LAYERS_MAX = 255;
const INDEX_SIZE_MAX = 1024 * 1024 * 1024;

const path = v.pipe(v.string(), v.maxLength(4096));
const digest = v.pipe(
  v.string(),
  v.check((d) => d === "" || isDigest(d), "is no sha256 digest"),
);
const lowerSchema = v.looseObject({
  file: v.optional(path, ""),
  dir: v.optional(path, ""),
  digest: v.optional(digest, ""),
  size: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 0),
  targetFile: v.optional(path, ""),
  targetDigest: v.optional(digest, ""),
  gzipIndex: v.optional(path, ""),
});
const configSchema = v.looseObject({
  repoBlobUrl: v.optional(path, ""),
  lowers: v.optional(v.pipe(v.array(lowerSchema), v.maxLength(LAYERS_MAX)), []),
  upper: v.optional(v.looseObject({
    index: v.optional(path, ""),
    data: v.optional(path, ""),
    target: v.optional(path, ""),
    gzipIndex: v.optional(path, ""),
  })),
  accelerationLayer: v.optional(v.boolean(), false),
  recordTracePath: v.optional(path, ""),
  resultFile: v.optional(path, ""),
  // Of overlaybd's service, which downloads layers in the background.
  download: v.optional(v.looseObject({})),
});

/** Whether an IMAGE argument is a configuration's path: it is a file, and looks like no reference. */
export function isConfigFile(image: string): boolean {
  if (/^(oci|oci-archive|docker):/.test(image)) return false;
  if (!image.includes("/") && !image.endsWith(".json")) return false;
  try {
    return Deno.statSync(image).isFile;
  } catch {
    return false;
  }
}

/** One read-only layer of a configuration. */
export type Lower = v.InferOutput<typeof lowerSchema>;
/** The writable layer. */
export type Upper = NonNullable<v.InferOutput<typeof configSchema>["upper"]>;

/** A whole configuration. */
export type OverlaybdConfig = v.InferOutput<typeof configSchema>;

/** Names that a layer has in its directory, in overlaybd's order of search. */
const LAYER_FILES = ["overlaybd.commit", ".commit", "overlaybd.sealed"];

/**
 * Reads a `config.v1.json`.
 *
 * @throws {NotFoundError} If it is not there.
 * @throws {FormatError} Naming the key that is wrong.
 */
export async function readConfig(file: string): Promise<OverlaybdConfig> {
  const what = `config "${file}"`;
  await using source = await openFile("config", file);
  if (source.size > CONFIG_SIZE_MAX) {
    throw new FormatError(what, "size", `is ${source.size} bytes`);
  }
  let json: unknown;
  try {
    const bytes = await readBytes(source, 0, source.size);
    json = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new FormatError(what, "content", "is not JSON", { cause: error });
  }
  const result = v.safeParse(configSchema, json);
  if (result.success) return result.output;
  const issue = result.issues[0];
  throw new FormatError(
    what,
    `key "${v.getDotPath(issue) ?? "(top level)"}"`,
    issue.expected
      ? `is ${issue.received}, expected ${issue.expected}`
      : issue.message,
  );
}

/**
 * The repository behind `https://host/v2/REPO/blobs`.
 *
 * @throws {FormatError} If the URL has another form.
 */
export function referenceOf(url: string, file: string) {
  const match = /^https?:\/\/([^/]+)\/v2\/(.+?)\/blobs\/?$/.exec(url);
  if (!match) {
    throw new FormatError(
      `config "${file}"`,
      'key "repoBlobUrl"',
      `is "${url}", expected https://HOST/v2/REPOSITORY/blobs`,
    );
  }
  return parseReference(`${match[1]}/${match[2]}`);
}

/** Where a layer may lie here, in overlaybd's order (src/image_file.cpp: open_lower_layer). */
export function layerFiles({ file, dir }: Lower): string[] {
  return [
    ...(file === "" ? [] : [file]),
    ...(dir === "" ? [] : LAYER_FILES.map((name) => `${dir}/${name}`)),
  ];
}

/** The members of a meta blob that a config names one by one. */
export async function gzipMembers(
  gzipIndex: string,
): Promise<Map<string, Uint8Array>> {
  if (gzipIndex === "") return new Map();
  await using index = await openFile("gzip index", gzipIndex);
  return new Map([[META_MEMBER.gzipMeta, await readAll(index)]]);
}

/** A file if one is there, else the blob in the registry. */
export async function openPart(
  repository: Repository | undefined,
  part: { what: string; files: string[]; digest: string; size: number },
): Promise<{ source: ByteSource; isLocal: boolean }> {
  for (const file of part.files) {
    try {
      return { source: await openFile(part.what, file), isLocal: true };
    } catch (error) {
      if (!(error instanceof NotFoundError)) throw error;
    }
  }
  if (repository && part.digest !== "") {
    const source = await repository.openBlob({
      mediaType: "application/octet-stream",
      digest: part.digest,
      size: part.size || await repository.blobSize(part.digest),
    });
    return { source, isLocal: false };
  }
  throw new NotFoundError(
    `The ${part.what} is not there (${
      part.files.join(", ") || "no file named"
    }), and ${
      repository ? "it has no digest" : "there is no repoBlobUrl"
    } to fetch it by`,
  );
}

export async function openFile(
  what: string,
  path: string,
): Promise<FileSource> {
  try {
    return await FileSource.open(path);
  } catch (error) {
    if (isMissing(error)) throw new NotFoundError(`No ${what} at "${path}"`);
    throw new ObdError(
      "state",
      `Cannot open ${what} "${path}": ${errorText(error)}`,
      { cause: error },
    );
  }
}

function isMissing(error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === "ENOENT";
}

/** All of a small file. @throws {FormatError} If it is none. */
export async function readAll(source: ByteSource): Promise<Uint8Array> {
  if (source.size > INDEX_SIZE_MAX) {
    throw new FormatError("index file", "size", `is ${source.size} bytes`);
  }
  return await readBytes(source, 0, source.size);
}
