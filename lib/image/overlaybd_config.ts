/** overlaybd's `config.v1.json`: a stack of layers by file or by digest (its keys: `README.md`). */

import {
  type ByteSource,
  errorText,
  FormatError,
  ObdError,
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
import type { Repository } from "../registry/mod.ts";
import {
  gzipMembers,
  layerFiles,
  type Lower,
  openFile,
  openPart,
  type OverlaybdConfig,
  readAll,
  readConfig,
  referenceOf,
  type Upper,
} from "./config_file.ts";
import type { ImageEnvironment } from "./environment.ts";
import { configTraces } from "./config_trace.ts";
import {
  disposeLayer,
  makeImage,
  type OpenedImage,
  type OpenedStackLayer,
  openNativeBlob,
  servicesOf,
} from "./open.ts";

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

/** The layers of a configuration that make the device. */
export interface ConfigLayers {
  /** Bottom first. */
  lowers: Lower[];
  upper: Upper | undefined;
}

/**
 * Tells which layers make the device.
 *
 * @throws {FormatError} If keys contradict each other, or there are no layers.
 */
export function configLayers(
  file: string,
  config: OverlaybdConfig,
): ConfigLayers {
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
  return { lowers, upper };
}

/**
 * Where the parts of an image come from.
 *
 * @param stack Gets the repository, if the configuration names one.
 */
export async function openPlaces(
  environment: ImageEnvironment,
  file: string,
  { repoBlobUrl }: OverlaybdConfig,
  stack: AsyncDisposableStack,
): Promise<Places> {
  const repository = repoBlobUrl === "" ? undefined : stack.use(
    await environment.openRepository(referenceOf(repoBlobUrl, file), {
      plainHttp: repoBlobUrl.startsWith("http:"),
    }),
  );
  return { environment, repository, local: localServices(environment) };
}

async function openConfig(
  environment: ImageEnvironment,
  file: string,
  config: OverlaybdConfig,
): Promise<OpenedImage> {
  const { lowers, upper } = configLayers(file, config);
  await using stack = new AsyncDisposableStack();
  const places = await openPlaces(environment, file, config, stack);
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
  const image = makeImage(file, layers, stack.move(), {});
  image.traces = (signal) =>
    configTraces(file, config, {
      device: image.source,
      log: environment.log,
      signal,
    });
  return image;
}

/** Where an image's parts come from. */
export interface Places {
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
