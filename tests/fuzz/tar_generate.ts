/**
 * Archives of every form that `lib/tar` reads, with what must come out of them.
 * Written by hand, block by block, so that nothing of a library's taste gets in.
 */

import { concatBytes, latin1FromBytes } from "../../lib/io/mod.ts";
import {
  base256,
  GNU,
  header,
  type HeaderFields,
  member,
  padded,
  pax,
  USTAR,
  V7,
} from "../tar/tar_bytes.ts";
import type { Random } from "./random.ts";

/** What an entry is, independent of how the archive says it. */
export interface ExpectedEntry {
  path: string;
  type:
    | "file"
    | "directory"
    | "symlink"
    | "hardlink"
    | "char"
    | "block"
    | "fifo";
  mode: number;
  uid: number;
  gid: number;
  /** Whole seconds. */
  mtime: number;
  link: string;
  devMajor: number;
  devMinor: number;
  /** Of a file, holes filled. */
  content: Uint8Array;
  xattrs: [name: string, value: string][];
  /** Readers that know no sparse files see something else. */
  sparse: boolean;
}

/** An archive and what is in it. */
export interface GeneratedTar {
  bytes: Uint8Array<ArrayBuffer>;
  entries: ExpectedEntry[];
}

/** What may occur. */
export interface GenerateOptions {
  entries: number;
  /**
   * Sparse files of all four forms. Default "any"; GNU tar can read segments only
   * that fill whole blocks.
   */
  sparse?: "any" | "blocks" | "none";
  /** Without header extensions of GNU's or PAX: what every reader knows. Default false. */
  plain?: boolean;
  /** Names of ASCII only: some readers take names for text. Default false. */
  ascii?: boolean;
  /** Device nodes: extracting them needs root. Default true. */
  devices?: boolean;
}

type Form = "v7" | "ustar" | "gnu" | "pax";

const LETTERS = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-+.,=@ ";
const ODD = "\xe4\xc3\xa9\xff\x01\\\"*?'";

/** A component: no slash, no NUL, not "." or "..", not a whiteout. */
function component(random: Random, length: number, ascii = false): string {
  let text = "";
  const odd = !ascii && random.oneIn(6);
  while (text.length < length) {
    text += odd && random.oneIn(5)
      ? ODD[random.below(ODD.length)]
      : LETTERS[random.below(LETTERS.length)];
  }
  return text.replace(/^[.\s-]/, "x").replace(/[\s.]$/, "x");
}

/** A name that nothing else in the archive has: it starts with the entry's number. */
function nameOf(
  random: Random,
  index: number,
  form: Form,
  ascii = false,
): string {
  const part = (length: number) => component(random, length, ascii);
  const parts = [`${index}${part(random.below(20))}x`];
  const isLong = form === "gnu" || form === "pax";
  if (isLong && random.oneIn(4)) {
    for (let n = 1 + random.below(12); n > 0; n--) {
      parts.push(part(1 + random.below(90)));
    }
  } else if (random.oneIn(3)) {
    for (let n = random.below(3); n > 0; n--) {
      parts.push(part(1 + random.below(15)));
    }
  }
  return parts.join("/");
}

/** A number as some writer puts it: octal in several ways, base-256 where GNU's header says so. */
function numberField(
  random: Random,
  value: number,
  width: number,
  form: Form,
): number | Uint8Array {
  const octal = value.toString(8);
  const isGnu = form === "gnu";
  if (value < 0 || octal.length > width - 1) {
    return base256(BigInt(value), width);
  }
  const text = (t: string) => new TextEncoder().encode(t);
  switch (random.below(isGnu ? 6 : 4)) {
    case 0:
      return text(octal.padStart(width - 1, "0") + " ");
    case 1:
      return text(octal.padStart(width - 2, " ") + " \0");
    case 4:
      return base256(BigInt(value), width);
    default:
      return text(octal.padStart(width - 1, "0") + "\0");
  }
}

const MAGIC: Record<Form, string> = {
  v7: V7,
  ustar: USTAR,
  gnu: GNU,
  pax: USTAR,
};
const NAME_MAX = 100;
const PREFIX_MAX = 155;

/** How an entry's name gets into the archive: the header, its prefix, or an extension before it. */
class NameWriter {
  readonly blocks: Uint8Array[] = [];
  readonly records: [string, string][] = [];
  readonly #form: Form;
  readonly #random: Random;

  constructor(form: Form, random: Random) {
    this.#form = form;
    this.#random = random;
  }

  path(stored: string): Pick<HeaderFields, "name" | "prefix"> {
    if (stored.length <= NAME_MAX && !this.#random.oneIn(8)) {
      return { name: stored };
    }
    if (this.#form === "gnu") {
      this.blocks.push(longName("L", stored, this.#random));
      return { name: stored.slice(0, NAME_MAX) };
    }
    if (this.#form === "pax") {
      this.records.push(["path", stored]);
      return { name: stored.slice(0, NAME_MAX) };
    }
    const cut = stored.lastIndexOf("/", PREFIX_MAX);
    if (this.#form === "ustar" && cut > 0 && stored.length - cut - 1 > 0) {
      const rest = stored.slice(cut + 1);
      if (rest.length <= NAME_MAX) {
        return { prefix: stored.slice(0, cut), name: rest };
      }
    }
    return { name: stored.slice(0, NAME_MAX) };
  }

  link(target: string): string {
    if (target.length <= NAME_MAX && !this.#random.oneIn(8)) return target;
    if (this.#form === "gnu") {
      this.blocks.push(longName("K", target, this.#random));
    } else if (this.#form === "pax") this.records.push(["linkpath", target]);
    return target.slice(0, NAME_MAX);
  }
}

/** GNU's long name, with or without the NUL that ends it. */
function longName(type: "L" | "K", text: string, random: Random): Uint8Array {
  return member(
    { name: "././@LongLink", type, magic: GNU, mode: 0 },
    random.oneIn(3) ? text : `${text}\0`,
  );
}

/** Ranges of a sparse file: whole blocks, as file systems have them, or any bytes. */
function sparseSegments(
  random: Random,
  size: number,
  wholeBlocks: boolean,
): [offset: number, length: number][] {
  const unit = !wholeBlocks && random.oneIn(4) ? 1 : 512;
  const segments: [number, number][] = [];
  for (let at = 0; at < size && segments.length < 40;) {
    at += unit * random.below(8000 / unit | 1);
    const length = Math.min(unit * random.length(2000 / unit | 1), size - at);
    if (length > 0) segments.push([at, length]);
    at += length + unit;
  }
  return segments;
}

interface SparseFile {
  /** In front of the header. */
  records: [string, string][];
  /** Behind the header: map blocks and data. */
  body: Uint8Array;
  fields: HeaderFields;
  content: Uint8Array;
}

function sparseFile(
  random: Random,
  form: Form,
  name: string,
  wholeBlocks: boolean,
): SparseFile {
  const size = random.length(60_000);
  const segments = sparseSegments(random, size, wholeBlocks);
  const content = new Uint8Array(size);
  const data = concatBytes(segments.map(([offset, length]) => {
    const bytes = random.bytes(length);
    content.set(bytes, offset);
    return bytes;
  }));
  // A last, empty segment tells the size where the file ends in a hole.
  const listed =
    segments.at(-1) && segments.at(-1)![0] + segments.at(-1)![1] ===
        size
      ? segments
      : [...segments, [size, 0] as [number, number]];
  if (form === "gnu") return oldSparse(listed, size, data, content);
  const version = random.below(3);
  const flat = listed.flat();
  const common: [string, string][] = [
    ["GNU.sparse.size", String(size)],
    ["GNU.sparse.numblocks", String(listed.length)],
  ];
  if (version === 0) {
    const pairs = listed.flatMap(([offset, length]): [string, string][] => [
      ["GNU.sparse.offset", String(offset)],
      ["GNU.sparse.numbytes", String(length)],
    ]);
    return {
      records: [...common, ...pairs],
      body: padded(data),
      fields: { size: data.length },
      content,
    };
  }
  if (version === 1) {
    return {
      records: [
        ["GNU.sparse.name", name],
        ...common,
        ["GNU.sparse.map", flat.join(",")],
      ],
      body: padded(data),
      fields: { size: data.length, name: "GNUSparseFile.0/x" },
      content,
    };
  }
  const map = padded(
    new TextEncoder().encode(`${listed.length}\n${flat.join("\n")}\n`),
  );
  return {
    records: [
      ["GNU.sparse.major", "1"],
      ["GNU.sparse.minor", "0"],
      ["GNU.sparse.name", name],
      ["GNU.sparse.realsize", String(size)],
    ],
    body: concatBytes([map, padded(data)]),
    fields: { size: map.length + data.length, name: "GNUSparseFile.0/x" },
    content,
  };
}

/** Old GNU: four segments in the header, 21 in each block behind it. */
function oldSparse(
  listed: readonly [number, number][],
  size: number,
  data: Uint8Array,
  content: Uint8Array,
): SparseFile {
  const octal = (value: number) =>
    new TextEncoder().encode(`${value.toString(8).padStart(11, "0")}\0`);
  const pair = ([offset, length]: [number, number]) =>
    concatBytes([octal(offset), octal(length)]);
  const raw: Record<number, Uint8Array> = {
    386: concatBytes(listed.slice(0, 4).map(pair)),
    482: Uint8Array.of(listed.length > 4 ? 1 : 0),
    483: octal(size),
  };
  const blocks: Uint8Array[] = [];
  for (let i = 4; i < listed.length; i += 21) {
    const block = new Uint8Array(512);
    block.set(concatBytes(listed.slice(i, i + 21).map(pair)));
    block[504] = i + 21 < listed.length ? 1 : 0;
    blocks.push(block);
  }
  return {
    records: [],
    body: concatBytes([...blocks, padded(data)]),
    fields: { size: data.length, type: "S", raw },
    content,
  };
}

const TYPES = {
  file: "0",
  hardlink: "1",
  symlink: "2",
  char: "3",
  block: "4",
  directory: "5",
  fifo: "6",
} as const;

/** An archive; the same numbers give the same bytes. */
export function generateTar(
  random: Random,
  options: GenerateOptions,
): GeneratedTar {
  const entries: ExpectedEntry[] = [];
  const parts: Uint8Array[] = [];
  for (let i = 0; i < options.entries; i++) {
    const form: Form = options.plain
      ? "ustar"
      : random.pick(["v7", "ustar", "gnu", "gnu", "pax", "pax", "pax"]);
    parts.push(...generateEntry(random, options, form, i, entries));
  }
  // Two zero blocks, then whatever fills the last record.
  const end = new Uint8Array(1024 + 512 * random.below(20));
  return { bytes: concatBytes([...parts, end]), entries };
}

function generateEntry(
  random: Random,
  options: GenerateOptions,
  form: Form,
  index: number,
  entries: ExpectedEntry[],
): Uint8Array[] {
  const files = entries.filter((e) => e.type === "file");
  const kinds: ExpectedEntry["type"][] = [
    ...(["file", "file", "file", "directory", "symlink"] as const),
    ...(files.length > 0 ? ["hardlink" as const] : []),
    ...(form !== "v7" && options.devices !== false
      ? ["char" as const, "block" as const]
      : []),
    ...(form !== "v7" ? ["fifo" as const] : []),
  ];
  const type = random.pick(kinds);
  const path = nameOf(random, index, form, options.ascii);
  const names = new NameWriter(form, random);
  const isGnu = form === "gnu";
  const entry: ExpectedEntry = {
    path,
    type,
    mode: random.below(0o10000),
    uid: random.below(isGnu && random.oneIn(3) ? 2 ** 31 : 0o7777777),
    gid: random.below(isGnu && random.oneIn(3) ? 2 ** 31 : 0o7777777),
    mtime: isGnu && random.oneIn(5)
      ? random.oneIn(2) ? -random.below(2 ** 31) : random.below(2 ** 33)
      : random.below(2 ** 31),
    link: "",
    devMajor: 0,
    devMinor: 0,
    content: new Uint8Array(0),
    xattrs: [],
    sparse: false,
  };
  const stored = (options.plain ? "" : random.pick(["", "", "./"])) + path +
    (type === "directory" && random.oneIn(2) ? "/" : "");
  const fields: HeaderFields = {
    ...names.path(stored),
    type: TYPES[type],
    magic: MAGIC[form],
  };
  if (type === "hardlink") {
    const target = random.pick(files);
    entry.link = target.path;
    const room = isGnu || form === "pax" ? Infinity : NAME_MAX;
    if (entry.link.length > room) return [];
    fields.linkName = names.link(entry.link);
  } else if (type === "symlink") {
    const long = isGnu || form === "pax";
    entry.link = component(
      random,
      1 + random.below(long ? 300 : 100),
      options.ascii,
    );
    fields.linkName = names.link(entry.link);
  } else if (type === "char" || type === "block") {
    entry.devMajor = random.below(4096);
    entry.devMinor = random.below(0o7777777 >>> 1);
  }
  if (path.length > NAME_MAX && form !== "gnu" && form !== "pax") return [];
  let body: Uint8Array = new Uint8Array(0);
  if (type === "file") {
    entry.sparse = options.sparse !== "none" && random.oneIn(4) &&
      (form === "gnu" || form === "pax");
    if (entry.sparse) {
      const sparse = sparseFile(
        random,
        form,
        stored,
        options.sparse === "blocks",
      );
      entry.content = sparse.content;
      body = sparse.body;
      Object.assign(fields, sparse.fields);
      const named = sparse.records.some(([key]) => key === "GNU.sparse.name");
      if (named) {
        const at = names.records.findIndex(([key]) => key === "path");
        if (at >= 0) names.records.splice(at, 1);
      }
      names.records.push(...sparse.records);
    } else {
      entry.content = random.bytes(
        random.below(random.oneIn(4) ? 20_000 : 700),
      );
      const size = entry.content.length;
      fields.size = numberField(random, size, 12, form);
      body = padded(entry.content);
      // What fills the last block belongs to nobody.
      if (random.oneIn(3)) body.fill(random.below(256), size);
      if (form === "pax" && random.oneIn(4)) {
        names.records.push(["size", String(size)]);
        fields.size = 0;
      }
      if (form === "v7" && random.oneIn(2)) fields.type = "\0";
    }
  }
  if (form === "pax") addRecords(random, entry, names.records);
  const inHeader = <K extends "uid" | "gid" | "mtime">(key: K): number =>
    names.records.some(([k]) => k === key) ? 0 : entry[key];
  fields.mode = numberField(random, entry.mode, 8, "ustar");
  fields.uid = numberField(random, inHeader("uid"), 8, form);
  fields.gid = numberField(random, inHeader("gid"), 8, form);
  fields.mtime = numberField(random, inHeader("mtime"), 12, form);
  if (form !== "v7") {
    fields.devMajor = numberField(random, entry.devMajor, 8, "ustar");
    fields.devMinor = numberField(random, entry.devMinor, 8, "ustar");
  }
  entries.push(entry);
  const records = names.records.length > 0 ? [pax(names.records)] : [];
  return [...names.blocks, ...records, header(fields), body];
}

/** PAX records of other kinds: owners, times, xattrs, and what nobody here reads. */
function addRecords(
  random: Random,
  entry: ExpectedEntry,
  records: [string, string][],
): void {
  if (random.oneIn(4)) {
    entry.uid = random.below(2 ** 32 - 2);
    records.push(["uid", String(entry.uid)]);
  }
  if (random.oneIn(4)) {
    entry.mtime = random.below(2 ** 33);
    const fraction = random.pick(["", ".5", ".123456789", ".000000001"]);
    records.push(["mtime", `${entry.mtime}${fraction}`]);
  }
  if (random.oneIn(4)) records.push(["comment", component(random, 30)]);
  if (random.oneIn(4)) records.push(["atime", "1.5"]);
  if (entry.type !== "file" && entry.type !== "directory") return;
  if (entry.sparse) return;
  for (let n = random.oneIn(3) ? random.below(3) : 0; n > 0; n--) {
    const name = `user.${n}${component(random, 8, true).replace(/[= ]/g, "x")}`;
    const value = latin1FromBytes(random.bytes(random.below(40)));
    records.push([`SCHILY.xattr.${name}`, value]);
    entry.xattrs.push([name, value]);
  }
  entry.xattrs.sort(([a], [b]) => a < b ? -1 : 1);
}
