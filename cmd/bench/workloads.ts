/** What a bench starts, and when it counts as started. */

import { ObdError, UsageError } from "../../lib/io/mod.ts";
import { runTool } from "./process.ts";

/** When a service is available. */
export type Ready =
  /** The command exits with 0. */
  | { kind: "exit" }
  /** A GET of 127.0.0.1 is answered 200. */
  | { kind: "http"; port: number; path: string }
  /** A line with the text appears on stdout or stderr. */
  | { kind: "log"; text: string };

/** One thing to start. */
export interface Workload {
  name: string;
  /** Image made by bench/images/make_workload_image.sh, or undefined for one of the user's. */
  madeImage: string | undefined;
  command: string[];
  ready: Ready;
}

const HTTP: Ready = { kind: "http", port: 18080, path: "/" };

/** The workloads of the tree, by name. */
export const WORKLOADS: readonly Workload[] = [
  made("python-small-import", "python", [
    "python3",
    "/srv/app/app_small.py",
  ]),
  made("python-large-import", "python", [
    "python3",
    "/srv/app/app_large.py",
  ]),
  made("php-nginx", "php-nginx", ["/srv/app/php_start.sh"]),
  made("ai-classify", "ai-classify", ["python3", "/srv/app/classify.py"]),
  made("node-express", "node-express", ["node", "/srv/app/express.js"]),
  made("postgres", "postgres", ["/srv/app/postgres_start.sh"], {
    kind: "log",
    text: "database system is ready to accept connections",
  }),
  made("openjdk-hello", "openjdk-hello", [
    "java",
    "-cp",
    "/srv/app",
    "Hello",
  ], { kind: "exit" }),
  made("du-all", "python", ["du", "-sx", "/"], { kind: "exit" }),
  made("tar-all", "python", [
    "sh",
    "-c",
    "tar -C / --one-file-system -cf - . | cat >/dev/null",
  ], { kind: "exit" }),
];

function made(
  name: string,
  madeImage: string,
  command: string[],
  ready = HTTP,
): Workload {
  return { name, madeImage, command, ready };
}

/** @throws {UsageError} Naming those that there are. */
export function findWorkload(name: string): Workload {
  const workload = WORKLOADS.find((w) => w.name === name);
  if (workload) return workload;
  const names = WORKLOADS.map((w) => w.name).join(", ");
  throw new UsageError(`Unknown workload "${name}" (there are ${names})`);
}

/** An image in a form that skopeo reads. */
export interface ImageSource {
  /** e.g. "oci:/dir:tag" or "docker://host/repo:tag" */
  skopeo: string;
  /** Repository name in the bench's registry. */
  repository: string;
}

/**
 * The image of a workload of the tree, made if the cache does not have it.
 *
 * @param cache Directory that is kept between runs.
 */
export async function makeImage(
  name: string,
  cache: string,
  signal: AbortSignal,
): Promise<ImageSource> {
  const layout = `${cache}/images`;
  if (!await hasTag(layout, name)) {
    const script = new URL(
      "../../bench/images/make_workload_image.sh",
      import.meta.url,
    );
    if (
      script.protocol !== "file:" ||
      !await Deno.stat(script).then(() => true, () => false)
    ) {
      throw new ObdError(
        "not-found",
        `Cannot make the image "${name}": bench/images is not here (run from the source tree, or give an image)`,
      );
    }
    await runTool(`make the image "${name}"`, [
      "bash",
      script.pathname,
      name,
      layout,
    ], signal);
  }
  return {
    skopeo: `oci:${layout}:${name}`,
    repository: `workload/${name}`,
  };
}

async function hasTag(layout: string, tag: string): Promise<boolean> {
  try {
    const index = JSON.parse(await Deno.readTextFile(`${layout}/index.json`));
    return index.manifests.some((m: { annotations?: Record<string, string> }) =>
      m.annotations?.["org.opencontainers.image.ref.name"] === tag
    );
  } catch {
    return false;
  }
}

/** An image that the user named, for skopeo. */
export function userImage(reference: string): ImageSource {
  const skopeo = /^(oci|oci-archive|docker):/.test(reference)
    ? reference
    : `docker://${reference}`;
  return { skopeo, repository: "workload/given" };
}

/** Reads `--ready-*`. At most one may be given; exit is the default. */
export function parseReady(options: {
  readyExit?: boolean;
  readyHttp?: string;
  readyLog?: string;
}): Ready {
  const given = [options.readyExit, options.readyHttp, options.readyLog]
    .filter((o) => o !== undefined);
  if (given.length > 1) {
    throw new UsageError(
      "Give only one of --ready-exit, --ready-http, --ready-log",
    );
  }
  if (options.readyLog !== undefined) {
    if (options.readyLog === "") throw new UsageError("--ready-log is empty");
    return { kind: "log", text: options.readyLog };
  }
  if (options.readyHttp === undefined) return { kind: "exit" };
  const parts = /^:?(\d{1,5})(\/.*)?$/.exec(options.readyHttp);
  const port = Number(parts?.[1]);
  if (!parts || port < 1 || port > 65535) {
    throw new UsageError(
      `--ready-http "${options.readyHttp}" is not PORT/PATH, e.g. 8080/health`,
    );
  }
  return { kind: "http", port, path: parts[2] ?? "/" };
}
