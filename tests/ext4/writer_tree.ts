/** A plain in-memory tree beside the model: random operations, and what a reader should then find. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import type { Ext4Model } from "../../lib/ext4/mod.ts";
import { Ext4Reader } from "../../lib/ext4/reader.ts";
import type { ByteSource } from "../../lib/io/mod.ts";
import { attrs, type Disk } from "./writer_disk.ts";

/** Deterministic random numbers (mulberry32). */
export function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

interface Content {
  type: string;
  attributes: ReturnType<typeof attrs>;
  body: Uint8Array;
  target: string;
  device: string;
}

interface Node {
  content: Content;
  children: Map<string, Node>;
}

/** Like `deepEqual`, but says no more than the first lines that differ. */
export function sameLines(got: readonly string[], want: readonly string[]) {
  const cut = (lines: readonly string[], not: readonly string[]) => {
    const known = new Set(not);
    return lines.filter((l) => !known.has(l)).slice(0, 3)
      .map((l) => l.slice(0, 300));
  };
  assert.deepEqual(
    { only: cut(got, want), count: got.length },
    { only: cut(want, got), count: want.length },
  );
}

/** One random change, made of nothing but numbers, so that it can be made to several models. */
export type Change = (model: Ext4Model, shadow: Shadow, disk?: Disk) => void;

/** The plain tree. */
export class Shadow {
  readonly root: Node = {
    content: {
      type: "directory",
      attributes: attrs(0o755, { mtime: { seconds: 0, nanoseconds: 0 } }),
      body: new Uint8Array(),
      target: "",
      device: "0:0",
    },
    children: new Map(),
  };

  /** Lists every path with all that a reader can see of it. */
  list(): string[] {
    const lines: string[] = [];
    const names = new Map<Content, number>();
    const count = (node: Node) => {
      names.set(node.content, (names.get(node.content) ?? 0) + 1);
      node.children.forEach(count);
    };
    count(this.root);
    const visit = (path: string, node: Node) => {
      const { content, children } = node;
      const subdirectories =
        [...children.values()].filter((c) => c.content.type === "directory")
          .length;
      const links = content.type === "directory"
        ? 2 + subdirectories
        : names.get(content)!;
      lines.push(
        line(path, { ...content, links, xattrs: content.attributes.xattrs }),
      );
      for (const [name, child] of children) {
        visit(path === "" ? name : `${path}/${name}`, child);
      }
    };
    visit("", this.root);
    return lines.sort();
  }
}

function line(
  path: string,
  facts: Omit<Content, "attributes"> & {
    attributes: Omit<Content["attributes"], "xattrs">;
    links: number;
    xattrs: readonly (readonly [string, Uint8Array])[];
  },
): string {
  const { mode, uid, gid, mtime } = facts.attributes;
  const xattrs = [...facts.xattrs].sort(([a], [b]) => a < b ? -1 : 1)
    .map(([name, value]) => `${name}=${value.toHex()}`);
  return JSON.stringify([
    path,
    facts.type,
    mode.toString(8),
    uid,
    gid,
    mtime.seconds,
    mtime.nanoseconds,
    facts.links,
    facts.target,
    facts.device,
    facts.body.length,
    createHash("sha256").update(facts.body).digest("hex").slice(0, 16),
    ...xattrs,
  ]);
}

/** The same list, from a device through the reader. */
export async function listDevice(device: ByteSource): Promise<string[]> {
  const reader = await Ext4Reader.open(device);
  const lines: string[] = [];
  for await (const { path, ino } of reader.walk()) {
    const stat = await reader.stat(ino);
    const { type, mode, uid, gid, mtime, links, devMajor, devMinor } = stat;
    let body = new Uint8Array();
    if (type === "file") {
      body = new Uint8Array(stat.size);
      await (await reader.openFile(ino)).pread(body, 0);
    }
    lines.push(line(path, {
      type,
      attributes: { mode, uid, gid, mtime },
      links,
      body,
      target: type === "symlink" ? await reader.readlink(ino) : "",
      device: `${devMajor}:${devMinor}`,
      xattrs: await reader.xattrs(ino),
    }));
  }
  return lines.sort();
}

/** The plain tree of a device that somebody else wrote. */
export async function shadowOf(device: ByteSource): Promise<Shadow> {
  const reader = await Ext4Reader.open(device);
  const shadow = new Shadow();
  const contents = new Map<number, Content>();
  const nodes = new Map<string, Node>([["", shadow.root]]);
  for await (const { path, ino } of reader.walk()) {
    const { type, mode, uid, gid, mtime, size, devMajor, devMinor } =
      await reader.stat(ino);
    let content = contents.get(ino);
    if (content === undefined) {
      const body = new Uint8Array(type === "file" ? size : 0);
      if (type === "file") await (await reader.openFile(ino)).pread(body, 0);
      const xattrs = (await reader.xattrs(ino)).map(([n, v]) =>
        [n, v] as [string, Uint8Array]
      );
      content = {
        type,
        attributes: { mode, uid, gid, mtime, xattrs },
        body,
        target: type === "symlink" ? await reader.readlink(ino) : "",
        device: `${devMajor}:${devMinor}`,
      };
      contents.set(ino, content);
    }
    if (path === "") {
      shadow.root.content = content;
      continue;
    }
    const node: Node = { content, children: new Map() };
    const cut = path.lastIndexOf("/");
    nodes.get(path.slice(0, Math.max(cut, 0)))!.children
      .set(path.slice(cut + 1), node);
    nodes.set(path, node);
  }
  return shadow;
}

/** Draws one change. All choices are drawn here, so that playing it twice does the same. */
export function drawChange(
  rnd: (below: number) => number,
  latest = 2 ** 34 - 1 - 2 ** 31,
): Change {
  const kind = rnd(100);
  const pick = rnd(2 ** 30);
  const other = rnd(2 ** 30);
  const name = drawName(rnd);
  const attributes = drawAttributes(rnd);
  if (attributes.mtime.seconds > latest) attributes.mtime.seconds = latest;
  const size = rnd(4) === 0 ? rnd(200_000) : rnd(9000);
  const fill = rnd(256);
  const hole = rnd(3) === 0;
  const targetLength = [1, 58, 59, 60, 61, 200, 4095][rnd(7)]!;
  return (model, shadow, disk) => {
    const dirs = directories(model, shadow);
    const { dir, node } = dirs[pick % dirs.length]!;
    const names = [...node.children.keys()].sort();
    const old = names[other % Math.max(names.length, 1)];
    if (kind < 12 && old !== undefined) {
      model.removeTree(dir, old);
      node.children.delete(old);
      return;
    }
    if (kind < 20 && old !== undefined) {
      const child = node.children.get(old)!;
      model.setAttributes(model.lookup(dir, old)!, attributes);
      child.content.attributes = attributes;
      return;
    }
    if (node.children.has(name)) {
      model.removeTree(dir, name);
      node.children.delete(name);
    }
    const add = (content: Partial<Content>) =>
      node.children.set(name, {
        content: {
          type: "file",
          attributes,
          body: new Uint8Array(),
          target: "",
          device: "0:0",
          ...content,
        },
        children: new Map(),
      });
    if (kind < 26 && old !== undefined && old !== name) {
      const child = node.children.get(old)!;
      if (child.content.type === "directory") return;
      model.link(dir, name, model.lookup(dir, old)!);
      node.children.set(name, { content: child.content, children: new Map() });
    } else if (kind < 40) {
      model.mkdir(dir, name, attributes);
      add({ type: "directory" });
    } else if (kind < 50) {
      const target = "t".repeat(targetLength);
      model.symlink(dir, name, attributes, target);
      add({ type: "symlink", target });
    } else if (kind < 55) {
      const major = pick % 4096, minor = other % 2 ** 20;
      model.mknod(dir, name, attributes, { type: "char", major, minor });
      add({ type: "char", device: `${major}:${minor}` });
    } else if (kind < 57) {
      model.mknod(dir, name, attributes, { type: "fifo" });
      add({ type: "fifo" });
    } else {
      const { body, ranges } = makeBody(size, fill, hole);
      const made = model.createFile(dir, name, attributes, {
        size,
        ...(ranges ? { ranges } : {}),
      });
      disk?.writeBody(made.extents, body);
      add({ body });
    }
  };
}

function makeBody(size: number, fill: number, hole: boolean) {
  const body = new Uint8Array(size);
  for (let i = 0; i < size; i++) body[i] = (fill + i * 7) & 0xff;
  if (!hole) return { body, ranges: undefined };
  const ranges: { fileSector: number; sectors: number }[] = [];
  for (let sector = 0; sector * 512 < size; sector += 16) {
    if ((sector >> 4) % 3 === 1) {
      body.fill(0, sector * 512, (sector + 16) * 512);
    } else {
      ranges.push({ fileSector: sector, sectors: 16 });
    }
  }
  return { body, ranges };
}

function drawName(rnd: (below: number) => number): string {
  const length = rnd(10) === 0 ? 200 + rnd(56) : 1 + rnd(3);
  let name = "";
  for (let i = 0; i < length; i++) {
    name += String.fromCharCode(rnd(8) === 0 ? 0x80 + rnd(128) : 97 + rnd(26));
  }
  return name;
}

function drawAttributes(rnd: (below: number) => number) {
  const xattrs: [string, Uint8Array][] = [];
  for (let i = rnd(5) - 2; i > 0; i--) {
    const bytes = new Uint8Array(rnd(4) === 0 ? rnd(900) : rnd(60)).fill(
      rnd(256),
    );
    const space = ["user.", "trusted.", "security."][rnd(3)]!;
    xattrs.push([`${space}n${rnd(5)}`, bytes]);
  }
  return attrs(rnd(0o10000), {
    uid: rnd(2) * rnd(2 ** 30) * 4 + rnd(4),
    gid: rnd(1000),
    mtime: {
      seconds: [-(2 ** 31), -1, 0, 2 ** 31, 2 ** 33, rnd(2 ** 30)][rnd(6)]!,
      nanoseconds: 0,
    },
    xattrs: [...new Map(xattrs)],
  });
}

function directories(
  model: Ext4Model,
  shadow: Shadow,
): { dir: number; node: Node }[] {
  const found: { dir: number; node: Node }[] = [];
  const visit = (dir: number, node: Node) => {
    found.push({ dir, node });
    for (const [name, child] of [...node.children].sort()) {
      if (child.content.type === "directory") {
        visit(model.lookup(dir, name)!, child);
      }
    }
  };
  visit(model.root, shadow.root);
  return found;
}

/** Marks the blocks of all bodies as mapped, as a layer would. */
export function mapBodies(model: Ext4Model, disk: Disk): void {
  const visit = (dir: number) => {
    for (const [, node] of model.children(dir)) {
      if (model.type(node) === "directory") visit(node);
      else if (model.type(node) === "file") {
        for (const { physicalBlock, count } of model.extents(node)) {
          disk.map(physicalBlock, count);
        }
      }
    }
  };
  visit(model.root);
}
