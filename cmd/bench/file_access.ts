/**
 * Which files a command opens, found out without root: it runs on the unpacked
 * tree in a user namespace, under strace.
 */

import { bytesFromLatin1, fromUtf8, ObdError } from "../../lib/io/mod.ts";
import { BenchProcess } from "./process.ts";
import { requireFreePort, waitForReady } from "./ready.ts";
import { imagePath, type Reads } from "./reads.ts";
import type { RunSettings } from "./settings.ts";

const TRACE_SIZE_MAX = 512 * 1024 * 1024;
const HEAD_BYTES = 4096;
/** Interpreters of interpreters: the kernel follows no more. */
const INTERPRETERS_MAX = 5;
const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** Becomes root of namespaces of its own, and there of the tree. */
const ENTER = `root=$1; shift
mkdir -p "$root/dev" "$root/proc" && mount --rbind /dev "$root/dev" || exit 125
mount -t proc proc "$root/proc" 2>/dev/null ||
  mount --rbind /proc "$root/proc" || exit 125
exec chroot "$root" "$@"`;

/**
 * Runs a workload until it is ready.
 *
 * @param root An unpacked tree.
 * @returns Every file of the tree that it opened, in the order of first use.
 * @throws {ObdError} If it cannot be run like that.
 */
export async function traceFileAccess(
  root: string,
  { workload, work, deadlineMs, signal }: RunSettings,
): Promise<Reads> {
  const log = `${work}/strace.log`;
  const tree = await Deno.realPath(root);
  await requireFreePort(workload.ready);
  {
    await using service = new BenchProcess([
      "strace",
      "-f",
      "-qq",
      "-y",
      "-e",
      "trace=open,openat,openat2,execve",
      "-e",
      "signal=none",
      "-o",
      log,
      "unshare",
      "--user",
      "--map-root-user",
      "--mount",
      "--pid",
      "--fork",
      "--kill-child",
      "sh",
      "-c",
      ENTER,
      "sh",
      tree,
      ...workload.command,
    ], { env: { PATH, HOME: "/root" } });
    await waitForReady(
      service,
      workload.ready,
      deadlineMs,
      signal,
      "command",
    );
  }
  const { size } = await Deno.stat(log);
  if (size > TRACE_SIZE_MAX) {
    throw new ObdError("limit", `strace said ${size} bytes`);
  }
  const paths = await withInterpreters(
    tree,
    openedFiles(await Deno.readTextFile(log), tree),
  );
  if (paths.length === 0) {
    throw new ObdError("state", "The command opened no file of the image");
  }
  return { kind: "files", paths: paths.map(imagePath) };
}

/**
 * Files of a tree that strace's lines say were opened or run, each once.
 *
 * @param tree The directory that is the traced program's root, for whoever traces.
 * @returns Paths within the tree.
 */
export function openedFiles(log: string, tree: string): string[] {
  const paths = new Set<string>();
  let inside = false;
  for (const line of log.split("\n")) {
    // What was opened, with all links followed, as the descriptor's name.
    const opened = unescape(
      /\bopen(?:at|at2)?\(.*\) = \d+<(.*?)(?:\(deleted\))?>$/.exec(line)?.[1],
    );
    if (opened?.startsWith(`${tree}/`)) paths.add(opened.slice(tree.length));
    const run = unescape(
      /\bexecve\("((?:[^"\\]|\\.)*)".*\) = 0$/.exec(line)?.[1],
    );
    if (run === undefined) continue;
    // Before chroot(1), programs are those of the system.
    if (inside && run.startsWith("/")) paths.add(run);
    inside ||= run.endsWith("/chroot");
  }
  return [...paths];
}

const ESCAPES: Record<string, string> = {
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v",
};

/** strace writes strings as C does, every byte beyond ASCII as an octal number. */
function unescape(text: string | undefined): string | undefined {
  const bytes = text?.replaceAll(
    /\\(?:([0-7]{1,3})|(.))/g,
    (_, octal: string | undefined, letter: string) =>
      octal === undefined
        ? ESCAPES[letter] ?? letter
        : String.fromCharCode(parseInt(octal, 8) & 0xff),
  );
  return bytes && fromUtf8(bytesFromLatin1(bytes));
}

/** With what the kernel reads to run a program: nobody opens that. */
async function withInterpreters(
  tree: string,
  paths: readonly string[],
): Promise<string[]> {
  const all = new Set<string>();
  for (const path of paths) {
    let next: string | undefined = path;
    for (let i = 0; next !== undefined && i < INTERPRETERS_MAX; i++) {
      const here: string = next;
      next = await interpreterOf(`${tree}${here}`);
      all.add(here);
    }
  }
  return [...all];
}

async function interpreterOf(path: string): Promise<string | undefined> {
  let head: Uint8Array;
  try {
    if (!(await Deno.stat(path)).isFile) return undefined;
    using file = await Deno.open(path);
    const buffer = new Uint8Array(HEAD_BYTES);
    head = buffer.subarray(0, await file.read(buffer) ?? 0);
  } catch {
    return undefined; // A link out of the tree, or not ours to read.
  }
  const text = String.fromCharCode(...head);
  const script = /^#! *(\/[^\s]+)/.exec(text)?.[1];
  if (script !== undefined) return script;
  if (!text.startsWith("\x7fELF")) return undefined;
  // The loader's path stands near the start of a program (ELF, PT_INTERP).
  return /\0(\/lib[\w./+-]*\/ld[\w.+-]*\.so[\w.]*)\0/.exec(text)?.[1];
}
