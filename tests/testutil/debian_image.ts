/**
 * A real image out of Debian packages (bench/images/make_app_image.sh), made
 * once per machine and shared by all interop tests: never write to it, copy
 * the layout or push it to a registry instead.
 */

import { cacheRoot } from "./cache_root.ts";

import { createHash } from "node:crypto";
import { requires, requiresRoot } from "./requires.ts";

const CACHE = `${cacheRoot()}/images`;
const SCRIPT =
  new URL("../../bench/images/make_app_image.sh", import.meta.url).pathname;
const TREE_SCRIPT = new URL("../interop/tree.py", import.meta.url).pathname;

/** An image in an OCI layout with tags `v1` (3 layers), `v1-python` (2), `v1-base` (1). */
export interface DebianImage {
  /** Directory of the layout; read-only by agreement. */
  layout: string;
  /** Directory of `v1` as `umoci unpack` writes it; read-only by agreement. */
  rootfs: string;
  /** Lines of `tests/interop/tree.py` for that directory. */
  tree: string[];
}

/** Whether this machine can make the image. */
export function requiresDebianImage(): boolean {
  return requiresRoot("debootstrap") &&
    requires("debootstrap", "umoci", "python3", "setfattr", "setfacl");
}

let made: Promise<DebianImage> | undefined;

/** The image; the first call on a machine takes a minute or two. */
export function debianImage(): Promise<DebianImage> {
  return made ??= make();
}

/** Copies a layout, so that a test may push into it. */
export async function copyLayout(from: string, to: string): Promise<void> {
  await runTool("cp", "-r", "--reflink=auto", from, to);
}

/** What {@linkcode DebianImage.tree} has, of any directory. */
export async function readTree(directory: string): Promise<string[]> {
  const text = await runTool("python3", TREE_SCRIPT, directory);
  return text.split("\n").filter((line) => line !== "");
}

async function make(): Promise<DebianImage> {
  const key = createHash("sha256").update(await Deno.readFile(SCRIPT))
    .update(Deno.env.get("OBD_IMAGE_PACKAGES") ?? "").digest("hex")
    .slice(0, 16);
  await Deno.mkdir(CACHE, { recursive: true });
  const dir = `${CACHE}/${key}`;
  // Test files are processes' threads of their own: the lock is a file's.
  using lock = await Deno.open(`${CACHE}/${key}.lock`, {
    write: true,
    create: true,
  });
  await lock.lock(true);
  if (!await exists(dir)) await makeInto(dir);
  const rootfs = `${dir}/v1/rootfs`;
  // The script that lists it changes sooner than the image.
  const lister = createHash("sha256").update(await Deno.readFile(TREE_SCRIPT))
    .digest("hex").slice(0, 16);
  const listing = `${dir}/tree-${lister}`;
  if (!await exists(listing)) {
    const tree = await readTree(rootfs);
    await Deno.writeTextFile(`${listing}.tmp`, tree.join("\n"));
    await Deno.rename(`${listing}.tmp`, listing);
  }
  const tree = await Deno.readTextFile(listing);
  return {
    layout: `${dir}/layout`,
    rootfs,
    tree: tree.split("\n").filter((line) => line !== ""),
  };
}

/** Makes everything beside its place and renames it. */
async function makeInto(dir: string): Promise<void> {
  const temp = `${dir}.tmp`;
  await remove(temp);
  await Deno.mkdir(temp);
  try {
    await runTool("bash", SCRIPT, `${temp}/layout`, "v1");
    await runTool(
      "umoci",
      "unpack",
      "--image",
      `${temp}/layout:v1`,
      `${temp}/v1`,
    );
    await Deno.rename(temp, dir);
  } catch (error) {
    await remove(temp);
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

async function remove(path: string): Promise<void> {
  if (await exists(path)) await Deno.remove(path, { recursive: true });
}

/**
 * Runs a program to its end.
 *
 * @returns Its stdout.
 * @throws {Error} With its stderr, if it fails.
 */
export async function runTool(
  program: string,
  ...args: string[]
): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(program, {
    args,
    stdin: "null",
  }).output();
  if (!success) {
    throw new Error(
      `${program} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`,
    );
  }
  return new TextDecoder().decode(stdout);
}
