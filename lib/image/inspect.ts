/** `obd inspect`: what a name stands for, found out without changing anything. */

import {
  FileSource,
  NotFoundError,
  readBytes,
  UnsupportedError,
} from "../io/mod.ts";
import {
  type FileReport,
  firstProblem,
  inspectFile,
  type Problem,
} from "../layers/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import {
  type ImageInspection,
  inspectConfigImage,
  inspectImage,
} from "./inspect_image.ts";
import { inspectLayout, type LayoutInspection } from "./inspect_layout.ts";

/** Options of {@linkcode inspect}. */
export interface InspectTargetOptions {
  /** `OS/ARCH[/VARIANT]` of an index; default this machine's. */
  platform?: string | undefined;
}

/** What was found out about a file. */
export interface FileInspection {
  what: "file";
  path: string;
  report: FileReport;
  problem?: Problem;
}

/** What {@linkcode inspect} found; `problem` is the first thing that is wrong. */
export type Inspection = FileInspection | ImageInspection | LayoutInspection;

/** The path of a blob in an OCI layout says what it must hold. */
const BLOB_PATH = /(?:^|\/)blobs\/sha256\/([0-9a-f]{64})$/;
/** Bytes that tell a JSON document from everything else. */
const HEAD_SIZE = 64;

/**
 * Inspects whatever `target` names: a file that is there, a directory that is
 * there, else an image.
 *
 * @throws {NotFoundError} If there is no such image, or the directory is no OCI layout.
 */
export async function inspect(
  environment: ImageEnvironment,
  target: string,
  options: InspectTargetOptions = {},
): Promise<Inspection> {
  const info = await statOf(target);
  if (info?.isDirectory) {
    if (!await statOf(`${target}/index.json`)) {
      throw new NotFoundError(
        `Directory "${target}" is no OCI layout: index.json is missing`,
      );
    }
    return await inspectLayout(environment, target);
  }
  if (!info) return await inspectImage(environment, target, options);
  if (!info.isFile) {
    // A pipe would wait for a writer, and a device has no size of its own.
    throw new UnsupportedError(
      "special file",
      `"${target}" is neither a regular file nor a directory`,
    );
  }
  await using file = await FileSource.open(target);
  const head = await readBytes(file, 0, Math.min(HEAD_SIZE, file.size));
  if (/^\s*\{/.test(new TextDecoder().decode(head))) {
    return await inspectConfigImage(environment, target);
  }
  const digest = BLOB_PATH.exec(target)?.[1];
  const task = environment.progress.start(
    `inspect ${nameOf(target)}`,
    undefined,
  );
  try {
    const report = await inspectFile(file, {
      signal: environment.signal,
      onProgress: (bytes) => task.add(bytes),
      expectedDigest: digest && `sha256:${digest}`,
    });
    const problem = firstProblem(report);
    return {
      what: "file",
      path: target,
      report,
      ...(problem ? { problem } : {}),
    };
  } finally {
    task.done();
  }
}

/** The last part of a path, short enough for a line of progress. */
function nameOf(path: string): string {
  const name = path.slice(path.lastIndexOf("/") + 1);
  return name.length > 24 ? `${name.slice(0, 23)}…` : name;
}

/** Undefined also for what can be no path, such as a reference. */
async function statOf(path: string): Promise<Deno.FileInfo | undefined> {
  try {
    return await Deno.stat(path);
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) throw error;
    return undefined;
  }
}
