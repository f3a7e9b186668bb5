/** What the tests of `obd inspect` share. */

import assert from "node:assert/strict";
import {
  type BuildFormat,
  type ImageInspection,
  inspect,
  type Inspection,
  openEnvironment,
  publishImage,
} from "../../lib/image/mod.ts";
import { loadLibc, MemorySource } from "../../lib/io/mod.ts";
import { inspectFile } from "../../lib/layers/mod.ts";
import {
  file,
  hardlink,
  makeImage,
  opaque,
  symlink,
  whiteout,
} from "../testutil/oci_image.ts";
import { golden } from "../testutil/requires.ts";
import { seededBytes } from "../testutil/source_contract.ts";

// Opened once per process, so it must not count as a leak of the first test.
loadLibc();

export const lower = {
  entries: [
    file("etc/motd", "hello\n"),
    file("data", new Uint8Array(seededBytes(300_000, 7))),
    symlink("link", "data"),
    hardlink("hard", "data"),
  ],
};
export const upper = {
  entries: [whiteout("link"), opaque("etc"), file("new", "x")],
};
/** Two layers with files, links, a whiteout and an opaque directory. */
export const image = makeImage({ layers: [lower, upper] });

export async function inspectTarget(
  target: string,
  platform?: string,
): Promise<Inspection> {
  await using environment = await openEnvironment({ workers: 1 });
  return await inspect(environment, target, { platform });
}

export async function inspectImage(target: string, platform?: string) {
  const found = await inspectTarget(target, platform);
  assert.equal(found.what, "image");
  return found as ImageInspection;
}

export async function inspectBytes(bytes: Uint8Array) {
  return await inspectFile(new MemorySource(bytes));
}

export async function build(
  source: string,
  formats?: readonly BuildFormat[],
  base?: string,
  dest?: string,
) {
  await using environment = await openEnvironment({ workers: 1 });
  return await publishImage(environment, {
    source,
    formats,
    base,
    dest,
    jobs: 1,
    virtualSize: 2 ** 30,
  });
}

export function dataOf(name: string): Uint8Array<ArrayBuffer> {
  return Deno.readFileSync(golden(name)!);
}

export function flipped(bytes: Uint8Array, at: number): Uint8Array {
  const copy = bytes.slice();
  copy[at] = copy[at]! ^ 1;
  return copy;
}
