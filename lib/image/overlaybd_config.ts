/** overlaybd's `config.v1.json`: a stack of layers by file or by digest (its keys: `lib/layers/README.md`). */

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
import {
  type LayerServices,
  META_MEMBER,
  openLayer,
  openTarget,
  openTurboLayer,
  openWritableLayer,
  SpanCache,
} from "../layers/mod.ts";
import { isDigest, parseReference, type Repository } from "../registry/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import {
  disposeLayer,
  makeImage,
  type OpenedImage,
  type OpenedStackLayer,
  openNativeBlob,
  servicesOf,
} from "./open.ts";

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

type Lower = v.InferOutput<typeof lowerSchema>;
type Upper = NonNullable<v.InferOutput<typeof configSchema>["upper"]>;

/** Names that a layer has in its directory, in overlaybd's order of search. */
const LAYER_FILES = ["overlaybd.commit", ".commit", "overlaybd.sealed"];

/**
 * Opens an image by its `config.v1.json`.
 *
 * @throws {FormatError} Naming the key that is wrong.
 * @throws {NotFoundError} If a layer is neither a file nor in the registry.
 */
export async function openConfigImage(
  environment: ImageEnvironment,
  file: string,
  options: { writesResult?: boolean | undefined } = {},
): Promise<OpenedImage> {
  const config = await readConfig(file);
  const report = async (result: string) => {
    if (options.writesResult && config.resultFile !== "") {
      await writeResult(environment, config.resultFile, result);
    }
  };
  try {
    const image = await openConfig(environment, file, config);
    await report("success");
    return image;
  } catch (error) {
    await report(`failed:${errorText(error)}`);
    throw error;
  }
}

/**
 * What whoever asked for the device looks at, the snapshotter for one: no
 * newline, and a reason that is shown as it is (overlaybd
 * src/image_service.cpp: set_result_file).
 */
async function writeResult(
  environment: ImageEnvironment,
  file: string,
  result: string,
): Promise<void> {
  try {
    await Deno.writeTextFile(file, result);
  } catch (error) {
    environment.log.warn("cannot write the result file", {
      file,
      error: errorText(error),
    });
  }
}

async function openConfig(
  environment: ImageEnvironment,
  file: string,
  config: v.InferOutput<typeof configSchema>,
): Promise<OpenedImage> {
  if (config.accelerationLayer && config.recordTracePath !== "") {
    throw new FormatError(
      `config "${file}"`,
      "keys",
      '"accelerationLayer" and "recordTracePath" exclude each other',
    );
  }
  const lowers = config.accelerationLayer
    ? config.lowers.slice(0, -1)
    : config.lowers;
  // Without both files the image has no writable layer (overlaybd src/image_file.cpp: init_image_file).
  const upper = config.upper?.index && config.upper.data
    ? config.upper
    : undefined;
  if (lowers.length === 0 && !upper) {
    throw new FormatError(`config "${file}"`, "lowers", "are none");
  }
  await using stack = new AsyncDisposableStack();
  const repository = config.repoBlobUrl === "" ? undefined : stack.use(
    await environment.openRepository(referenceOf(config.repoBlobUrl, file), {
      plainHttp: config.repoBlobUrl.startsWith("http:"),
    }),
  );
  const places = { environment, repository, local: localServices(environment) };
  const layers: OpenedStackLayer[] = [];
  try {
    for (const [i, lower] of lowers.entries()) {
      layers.push(await openLower(places, lower, i, file));
    }
    if (upper) {
      layers.push(await openUpper(places, upper, lowers.length, file));
      environment.log.warn(
        "the writable layer is shown read-only, as it is now",
        { config: file, data: upper.data },
      );
    }
  } catch (error) {
    for (const layer of layers) await disposeLayer(layer);
    throw error;
  }
  return makeImage(file, layers, stack.move(), {});
}

async function readConfig(
  file: string,
): Promise<v.InferOutput<typeof configSchema>> {
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

/** The repository behind `https://host/v2/REPO/blobs`. */
function referenceOf(url: string, file: string) {
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

/** Where an image's parts come from. */
interface Places {
  environment: ImageEnvironment;
  repository: Repository | undefined;
  /** What layers use whose content is a file here. */
  local: LayerServices;
}

/**
 * A file's name does not say what is in it: what was read of one is kept no
 * longer than the image is open, and never on disk.
 */
function localServices(environment: ImageEnvironment): LayerServices {
  return {
    ...servicesOf(environment),
    blobStore: undefined,
    spanCache: new SpanCache({
      memoryBytes: environment.spanCache.memory.limit,
      inFlightBytes: environment.spanCache.budget.limit,
    }),
  };
}

async function openLower(
  places: Places,
  lower: Lower,
  index: number,
  config: string,
): Promise<OpenedStackLayer> {
  try {
    const part = await openPart(places.repository, {
      what: "layer",
      files: layerFiles(lower),
      digest: lower.digest,
      size: lower.size,
    });
    const isTurbo = lower.targetFile !== "" || lower.targetDigest !== "";
    return isTurbo
      ? await openTurboLower(places, lower, part.source)
      : part.isLocal
      ? await openNativeFile(part.source, lower)
      : await openNativeBlob(places.environment, part.source, {
        origin: places.repository?.name ?? "",
        digest: lower.digest,
      });
  } catch (error) {
    if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
    throw new ObdError(
      error.code,
      `"${config}": lowers.${index}: ${errorText(error)}`,
      { cause: error },
    );
  }
}

/** Where a layer may lie here, in overlaybd's order (src/image_file.cpp: open_lower_layer). */
function layerFiles({ file, dir }: Lower): string[] {
  return [
    ...(file === "" ? [] : [file]),
    ...(dir === "" ? [] : LAYER_FILES.map((name) => `${dir}/${name}`)),
  ];
}

/** What overlaybd's tools are writing, or have written and not committed. */
async function openUpper(
  places: Places,
  upper: Upper,
  lowerCount: number,
  config: string,
): Promise<OpenedStackLayer> {
  await using unused = new AsyncDisposableStack();
  try {
    const data = unused.use(await openFile("data file", upper.data));
    const isTurbo = upper.target !== "";
    const layer = await openWritableLayer(
      {
        data,
        openIndex: () => openFile("index file", upper.index),
        storedRanges: (offset) => data.storedRanges(offset),
      },
      isTurbo ? "warp" : "native",
      lowerCount,
    );
    const opened = isTurbo
      ? await openUpperTarget(places, upper, unused)
      : { integrity: "none" as const };
    unused.move();
    return {
      ...layer,
      ...opened,
      data,
      info: {
        digest: upper.data,
        kind: isTurbo ? "turbo" : "native",
        integrity: opened.integrity,
        size: data.size,
      },
    };
  } catch (error) {
    if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
    throw new ObdError(
      error.code,
      `"${config}": upper: ${errorText(error)}`,
      { cause: error },
    );
  }
}

async function openUpperTarget(
  { local }: Places,
  { target, gzipIndex }: Upper,
  unused: AsyncDisposableStack,
) {
  const members = await gzipMembers(gzipIndex);
  const blob = unused.use(await openFile("target", target));
  return await openTarget(members, {
    digest: `file:${target}`,
    mediaType: gzipIndex === "" ? "" : "+gzip",
    origin: "file",
    open: () => Promise.resolve(blob),
  }, local);
}

/** The members of a meta blob that a config names one by one. */
async function gzipMembers(
  gzipIndex: string,
): Promise<Map<string, Uint8Array>> {
  if (gzipIndex === "") return new Map();
  await using index = await openFile("gzip index", gzipIndex);
  return new Map([[META_MEMBER.gzipMeta, await readAll(index)]]);
}

async function openNativeFile(
  blob: ByteSource,
  lower: Lower,
): Promise<OpenedStackLayer> {
  const { size } = blob;
  const layer = await openLayer(blob, "native");
  return {
    ...layer,
    info: {
      digest: lower.digest || lower.file || lower.dir,
      kind: "native",
      integrity: layer.containers.includes("zfile") ? "block-crc" : "none",
      size,
    },
  };
}

async function openTurboLower(
  { environment, repository, local }: Places,
  lower: Lower,
  blob: ByteSource,
): Promise<OpenedStackLayer> {
  await using fsMeta = blob;
  const members = await gzipMembers(lower.gzipIndex);
  members.set(META_MEMBER.ext4, await readAll(fsMeta));
  const target = await openPart(repository, {
    what: "target",
    files: lower.targetFile === "" ? [] : [lower.targetFile],
    digest: lower.targetDigest,
    size: 0,
  });
  await using unused = new AsyncDisposableStack();
  unused.use(target.source);
  const layer = await openTurboLayer(members, {
    digest: lower.targetDigest || `file:${lower.targetFile}`,
    // Without an index the target is the tar itself: that is all a config can say.
    mediaType: lower.gzipIndex === "" ? "" : "+gzip",
    origin: target.isLocal ? "file" : repository?.name ?? "",
    open: () => {
      unused.move();
      return Promise.resolve(target.source);
    },
  }, target.isLocal ? local : servicesOf(environment));
  return {
    ...layer,
    info: {
      digest: lower.targetDigest || lower.targetFile,
      kind: "turbo",
      integrity: layer.integrity,
      size: layer.targetSize,
      metaSize: fsMeta.size,
    },
  };
}

/** A file if one is there, else the blob in the registry. */
async function openPart(
  repository: Repository | undefined,
  part: { what: string; files: string[]; digest: string; size: number },
): Promise<{ source: ByteSource; isLocal: boolean }> {
  for (const file of part.files) {
    try {
      return { source: await FileSource.open(file), isLocal: true };
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound) && !isMissing(error)) {
        throw error;
      }
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

async function openFile(what: string, path: string): Promise<FileSource> {
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

async function readAll(source: ByteSource): Promise<Uint8Array> {
  if (source.size > INDEX_SIZE_MAX) {
    throw new FormatError("index file", "size", `is ${source.size} bytes`);
  }
  return await readBytes(source, 0, source.size);
}
