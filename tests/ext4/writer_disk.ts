/** A raw disk that takes emissions and hands them to the real tools. */

import * as fs from "node:fs";
import { BLOCK_SIZE, type Emission, Ext4Model } from "../../lib/ext4/mod.ts";
import { Ext4Reader } from "../../lib/ext4/reader.ts";
import {
  type ByteSource,
  FileSource,
  isZero,
  loadLibc,
} from "../../lib/io/mod.ts";
import { requires } from "../testutil/requires.ts";

// Opened once for the process: a test that opened it would be blamed for not closing it.
loadLibc();

/** What a layer wrote, for comparing layers. */
export interface LayerBytes {
  blocks: Map<number, string>;
  zeroed: string;
}

/** A sparse raw file with a map of what was ever written. */
export class Disk implements AsyncDisposable {
  readonly path: string;
  readonly size: number;
  readonly #dir: string;
  readonly #fd: number;
  /** Blocks that some layer maps. */
  readonly mapped = new Set<number>();

  private constructor(dir: string, size: number) {
    this.#dir = dir;
    this.path = `${dir}/disk.raw`;
    this.size = size;
    this.#fd = fs.openSync(this.path, "w+");
    fs.ftruncateSync(this.#fd, size);
  }

  static async create(size: number): Promise<Disk> {
    return new Disk(await Deno.makeTempDir({ prefix: "obd-ext4-" }), size);
  }

  /** A disk that a program makes a file system on; what is not zero counts as mapped. */
  static async made(
    size: number,
    make: (path: string, dir: string) => Promise<void>,
  ): Promise<Disk> {
    const disk = await Disk.create(size);
    try {
      await make(disk.path, disk.#dir);
      const bytes = new Uint8Array(BLOCK_SIZE);
      for (let block = 0; block * BLOCK_SIZE < size; block++) {
        fs.readSync(disk.#fd, bytes, 0, BLOCK_SIZE, block * BLOCK_SIZE);
        if (!isZero(bytes)) disk.mapped.add(block);
      }
      return disk;
    } catch (error) {
      await disk[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Writes what another device holds. */
  async copy(device: ByteSource): Promise<void> {
    const buffer = new Uint8Array(1 << 20);
    const whole = [{ offset: 0, length: device.size, kind: "data" }];
    for (const run of device.extents?.(0, device.size) ?? whole) {
      if (run.kind !== "data") continue;
      for (let at = 0; at < run.length; at += buffer.length) {
        const part = buffer.subarray(
          0,
          Math.min(buffer.length, run.length - at),
        );
        await device.pread(part, run.offset + at);
        if (isZero(part)) continue;
        fs.writeSync(this.#fd, part, 0, part.length, run.offset + at);
      }
    }
  }

  /** Writes a layer's metadata. */
  apply(emission: Emission): LayerBytes {
    const layer: LayerBytes = { blocks: new Map(), zeroed: "" };
    for (const { block, bytes } of emission.blocks) {
      fs.writeSync(this.#fd, bytes, 0, BLOCK_SIZE, block * BLOCK_SIZE);
      this.mapped.add(block);
      layer.blocks.set(block, bytes.toBase64());
    }
    const zeros = new Uint8Array(BLOCK_SIZE);
    for (const { block, count } of emission.zeroed) {
      for (let i = 0; i < count; i++) {
        fs.writeSync(this.#fd, zeros, 0, BLOCK_SIZE, (block + i) * BLOCK_SIZE);
        this.mapped.add(block + i);
      }
    }
    layer.zeroed = JSON.stringify(emission.zeroed);
    return layer;
  }

  /** Writes the body of a file where its extents say. */
  writeBody(
    extents: readonly {
      logicalBlock: number;
      physicalBlock: number;
      count: number;
    }[],
    bytes: Uint8Array,
  ): void {
    for (const { logicalBlock, physicalBlock, count } of extents) {
      const from = logicalBlock * BLOCK_SIZE;
      const part = bytes.subarray(from, from + count * BLOCK_SIZE);
      const padded = new Uint8Array(count * BLOCK_SIZE);
      padded.set(part);
      fs.writeSync(
        this.#fd,
        padded,
        0,
        padded.length,
        physicalBlock * BLOCK_SIZE,
      );
      this.map(physicalBlock, count);
    }
  }

  /** Notes that a layer maps blocks, without writing them. */
  map(block: number, count: number): void {
    for (let i = 0; i < count; i++) this.mapped.add(block + i);
  }

  /** The merged index that a loaded model would be given. */
  ranges() {
    const mapped = new Set(this.mapped);
    let highest = 0;
    for (const block of mapped) highest = Math.max(highest, block + 1);
    return {
      highestMapped: () => highest * BLOCK_SIZE,
      isMapped: (offset: number, length: number) => {
        const end = Math.ceil((offset + length) / BLOCK_SIZE);
        for (let b = Math.floor(offset / BLOCK_SIZE); b < end; b++) {
          if (mapped.has(b)) return true;
        }
        return false;
      },
    };
  }

  source(): Promise<ByteSource> {
    return FileSource.open(this.path);
  }

  /** Runs `e2fsck -fn`; throws unless it finds nothing at all to say. */
  async check(): Promise<void> {
    const { code, stdout, stderr } = await new Deno.Command("e2fsck", {
      args: ["-fn", this.path],
      env: { LC_ALL: "C", PATH: toolPath() },
    }).output();
    const text = new TextDecoder().decode(stdout);
    const said = text.split("\n").filter((line) =>
      line !== "" && !/^Pass \d/.test(line) &&
      !/^\/.*: \d+\/\d+ files/.test(line)
    );
    if (code !== 0 || said.length > 0) {
      throw new Error(
        `e2fsck exit ${code}: ${said.slice(0, 20).join("\n")}\n${
          new TextDecoder().decode(stderr)
        }`,
      );
    }
  }

  /** Runs debugfs requests, one output per request. */
  async debugfs(requests: readonly string[]): Promise<string[]> {
    const script = `${this.#dir}/requests`;
    await Deno.writeTextFile(script, requests.map((r) => `${r}\n`).join(""));
    const { stdout } = await new Deno.Command("debugfs", {
      args: ["-f", script, this.path],
      env: { LC_ALL: "C", TZ: "UTC", PATH: toolPath() },
    }).output();
    const text = new TextDecoder("latin1").decode(stdout);
    return text.split(/^debugfs: .*\n/m).slice(1);
  }

  /** Bytes of the file system that this file takes on its host. */
  get allocatedBytes(): number {
    return fs.fstatSync(this.#fd).blocks * 512;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    fs.closeSync(this.#fd);
    await Deno.remove(this.#dir, { recursive: true });
  }
}

/** Runs a program; throws what it said if it fails with another code than `codes` allow. */
export async function run(
  program: string,
  args: readonly string[],
  codes: readonly number[] = [0],
): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(program, {
    args: [...args],
    env: { LC_ALL: "C", TZ: "UTC", PATH: toolPath() },
  }).output();
  const text = new TextDecoder().decode(stdout);
  if (codes.includes(code)) return text;
  const said = new TextDecoder().decode(stderr);
  throw new Error(`${program} ${args.join(" ")}: exit ${code}: ${text}${said}`);
}

function toolPath(): string {
  return `${Deno.env.get("PATH") ?? ""}:/usr/sbin:/sbin`;
}

/** Builds one layer and checks it; `look` asks about the result. */
export function layerTest(
  name: string,
  options: { virtualSize?: number; inodeRatio?: number },
  build: (model: Ext4Model) => void,
  look: (disk: Disk, reader: Ext4Reader) => Promise<void> = async () => {},
): void {
  Deno.test({
    name,
    ignore: !requires("e2fsck", "debugfs"),
    fn: async () => {
      const model = Ext4Model.create({ virtualSize: 2 ** 30, ...options });
      build(model);
      await using disk = await Disk.create(model.virtualSize);
      disk.apply(model.emit());
      await disk.check();
      await using source = await disk.source();
      await look(disk, await Ext4Reader.open(source));
    },
  });
}

/** Attributes for tests. */
export function attrs(
  mode: number,
  rest: Partial<{
    uid: number;
    gid: number;
    mtime: { seconds: number; nanoseconds: number };
    xattrs: [string, Uint8Array][];
  }> = {},
) {
  return {
    mode,
    uid: 0,
    gid: 0,
    mtime: { seconds: 1_700_000_000, nanoseconds: 0 },
    xattrs: [],
    ...rest,
  };
}
