/** A server to test, and a client that can say anything to it. */

import assert from "node:assert/strict";
import { concatBytes, loadLibc } from "../../lib/io/mod.ts";
import { NbdServer, type NbdServerOptions } from "../../lib/nbd/mod.ts";

// Opened here, for good: inside a test the sanitizer would call it a leak.
loadLibc();

/** What should happen at once and has not by then hangs, also on a machine that does other things. */
export const PATIENCE_MS = 60_000;

/** Runs a test against a server on a Unix socket of its own. */
export async function withServer(
  options: NbdServerOptions,
  run: (server: NbdServer, socket: string) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const server = new NbdServer(options);
  try {
    const socket = `${dir}/nbd.sock`;
    await server.listen(`unix:${socket}`);
    await run(server, socket);
  } finally {
    await server.stop(0);
    await Deno.remove(dir, { recursive: true });
  }
}

/** Rejects when `work` hangs. */
export async function soon<T>(work: Promise<T>, what = "work"): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} hangs`)), PATIENCE_MS);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Big-endian bytes: numbers as [value, bytes], strings and arrays as they are. */
export function pack(
  ...fields: (readonly [number | bigint, 1 | 2 | 4 | 8] | string | Uint8Array)[]
): Uint8Array<ArrayBuffer> {
  const parts = fields.map((field) => {
    if (typeof field === "string") return new TextEncoder().encode(field);
    if (field instanceof Uint8Array) return field;
    const [value, bytes] = field;
    const out = new Uint8Array(bytes);
    for (let i = 0; i < bytes; i++) {
      out[bytes - 1 - i] = Number((BigInt(value) >> BigInt(8 * i)) & 0xffn);
    }
    return out;
  });
  return concatBytes(parts);
}

export const IHAVEOPT = 0x49484156454f5054n;

/** One option on the wire. */
export function option(
  number: number,
  data: Uint8Array = new Uint8Array(),
) {
  return pack([IHAVEOPT, 8], [number, 4], [data.length, 4], data);
}

/** Data of INFO and GO. */
export function infoData(name: string, kinds: number[] = []): Uint8Array {
  const text = new TextEncoder().encode(name);
  return pack(
    [text.length, 4],
    text,
    [kinds.length, 2],
    ...kinds.map((k) => [k, 2] as const),
  );
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function contextData(name: string, queries: string[]): Uint8Array {
  const parts = queries.map((q) => pack([q.length, 4], q));
  return pack([name.length, 4], name, [queries.length, 4], ...parts);
}

/** One request on the wire. */
export function request(fields: {
  type: number;
  flags?: number;
  cookie?: bigint;
  offset?: number | bigint;
  length?: number;
  magic?: number;
  payload?: Uint8Array;
}): Uint8Array {
  return pack(
    [fields.magic ?? 0x25609513, 4],
    [fields.flags ?? 0, 2],
    [fields.type, 2],
    [fields.cookie ?? 1n, 8],
    [fields.offset ?? 0, 8],
    [fields.length ?? 0, 4],
    fields.payload ?? new Uint8Array(),
  );
}

/** An option reply. */
export interface OptionReply {
  option: number;
  type: number;
  data: Uint8Array;
}

/** A reply of the transmission phase. */
export interface Reply {
  structured: boolean;
  cookie: bigint;
  /** Simple: the error. Structured: of an error chunk. */
  error: number;
  /** Structured only. */
  type: number;
  done: boolean;
  data: Uint8Array;
}

/** A raw connection. */
export class RawPeer {
  readonly conn: Deno.Conn;

  private constructor(conn: Deno.Conn) {
    this.conn = conn;
  }

  static async open(socket: string): Promise<RawPeer> {
    return new RawPeer(
      await Deno.connect({ transport: "unix", path: socket }),
    );
  }

  /** Connects, greets and chooses an export. */
  static async inTransmission(
    socket: string,
    options: {
      name?: string;
      structured?: boolean;
      allocation?: boolean;
    } = {},
  ): Promise<RawPeer> {
    const peer = await RawPeer.open(socket);
    await peer.greet();
    const name = options.name ?? "";
    if (options.structured || options.allocation) {
      await peer.send(option(8));
      assert.equal((await peer.optionReply()).type, 1);
    }
    if (options.allocation) {
      await peer.send(option(10, contextData(name, ["base:allocation"])));
      assert.equal((await peer.optionReply()).type, 4);
      assert.equal((await peer.optionReply()).type, 1);
    }
    await peer.send(option(7, infoData(name)));
    assert.equal((await peer.optionReply()).type, 3);
    assert.equal((await peer.optionReply()).type, 1);
    return peer;
  }

  async send(bytes: Uint8Array): Promise<void> {
    let done = 0;
    while (done < bytes.length) {
      done += await this.conn.write(bytes.subarray(done));
    }
  }

  async receive(length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    let done = 0;
    while (done < length) {
      const got = await soon(this.conn.read(bytes.subarray(done)), "receive");
      if (got === null) throw new Error(`closed after ${done} of ${length}`);
      done += got;
    }
    return bytes;
  }

  /** Takes the greeting and answers it with client flags. */
  async greet(flags = 3): Promise<Uint8Array> {
    const greeting = await this.receive(18);
    await this.send(pack([flags, 4]));
    return greeting;
  }

  async optionReply(): Promise<OptionReply> {
    const head = await this.receive(20);
    const view = new DataView(head.buffer);
    assert.equal(view.getBigUint64(0), 0x3e889045565a9n);
    return {
      option: view.getUint32(8),
      type: view.getUint32(12),
      data: await this.receive(view.getUint32(16)),
    };
  }

  /** Takes a reply; `length` is that of the data behind a good simple one. */
  async reply(length = 0): Promise<Reply> {
    const magic = new DataView((await this.receive(4)).buffer).getUint32(0);
    if (magic === 0x67446698) {
      const view = new DataView((await this.receive(12)).buffer);
      const error = view.getUint32(0);
      const cookie = view.getBigUint64(4);
      const data = await this.receive(error === 0 ? length : 0);
      return { structured: false, cookie, error, type: -1, done: true, data };
    }
    assert.equal(magic, 0x668e33ef);
    const view = new DataView((await this.receive(16)).buffer);
    const type = view.getUint16(2);
    const data = await this.receive(view.getUint32(12));
    return {
      structured: true,
      cookie: view.getBigUint64(4),
      error: type & 0x8000 ? new DataView(data.buffer).getUint32(0) : 0,
      type,
      done: (view.getUint16(0) & 1) === 1,
      data,
    };
  }

  /** Waits for the server to hang up, with nothing more to say. */
  async closed(): Promise<void> {
    const rest = new Uint8Array(64);
    let got: number | null;
    try {
      got = await soon(this.conn.read(rest), "hanging up");
    } catch (error) {
      // Data of ours that it did not read makes the end a reset.
      if (error instanceof Deno.errors.ConnectionReset) return;
      throw error;
    }
    assert.equal(got, null, `got ${rest.subarray(0, got ?? 0).toHex()}`);
  }

  [Symbol.dispose](): void {
    try {
      this.conn.close();
    } catch {
      // Closed by the test.
    }
  }
}
