/**
 * What a real program reads while it starts, and when: recorded once from a
 * mount of the image, then read again from any source with the same order, the
 * same reads at once and the same pauses for thought. Needs root, nbdfuse and a
 * loop device; nothing of the registry or its distance is in a pattern.
 */

import {
  type ByteSource,
  checkRange,
  type ReadOptions,
  withDeadline,
} from "../lib/io/mod.ts";
import { NbdServer } from "../lib/nbd/mod.ts";

/** One read of a start. */
export interface PatternRead {
  offset: number;
  length: number;
  /** How many of the reads before had ended when it began. */
  after: number;
  /** Pause between the end of the last of those and its begin, in ms. */
  thinkMs: number;
}

/** Reads in the order in which they began; `end` says which of them end in which order. */
export interface Pattern {
  reads: PatternRead[];
  /** Positions in `reads`, in the order in which they ended. */
  ended: number[];
}

/** Kernel readahead of an `obd mount`, in KiB. */
const READAHEAD_KIB = 1024;
const START_DEADLINE_MS = 120_000;

/** A source that notes what is read of it, and when. */
class RecordedSource implements ByteSource {
  readonly size: number;
  readonly #inner: ByteSource;
  readonly pattern: Pattern = { reads: [], ended: [] };
  #lastEnd = 0;

  constructor(inner: ByteSource) {
    this.#inner = inner;
    this.size = inner.size;
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    const { reads, ended } = this.pattern;
    const now = performance.now();
    if (reads.length === 0) this.#lastEnd = now;
    const index = reads.length;
    reads.push({
      offset,
      length: dst.length,
      after: ended.length,
      thinkMs: now - this.#lastEnd,
    });
    await this.#inner.pread(dst, offset, options);
    ended.push(index);
    this.#lastEnd = performance.now();
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

/**
 * Starts a command on a mount of the device and notes its reads. The device
 * should be fast: what it takes to answer is not in the pattern.
 *
 * @param dir For a socket and a mount point.
 */
export async function recordStart(
  device: ByteSource,
  dir: string,
  command: readonly string[],
): Promise<Pattern> {
  const recorded = new RecordedSource(device);
  const server = new NbdServer({});
  const socket = `${dir}/pattern.sock`;
  await server.listen(`unix:${socket}`);
  server.addExport({ name: "", source: recorded, readOnly: true });
  try {
    const script = `
      set -eu
      dir=$1 socket=$2; shift 2
      mkdir -p "$dir/fuse" "$dir/mnt"
      # In the foreground, so that its process id is known.
      nbdfuse "$dir/fuse" "nbd+unix:///?socket=$socket" >/dev/null 2>&1 &
      nbdfuse=$!
      loop=
      finish() {
        umount -R -l "$dir/mnt" || true
        [ -z "$loop" ] || losetup -d "$loop" || true
        umount -l "$dir/fuse" || true
        kill $nbdfuse || true
      } 2>/dev/null
      trap finish EXIT
      i=0
      while [ ! -e "$dir/fuse/nbd" ]; do
        i=$((i + 1)); [ $i -lt 200 ]; sleep 0.05
      done
      loop=$(losetup --find --show --read-only "$dir/fuse/nbd")
      echo ${READAHEAD_KIB} > "/sys/block/\${loop#/dev/}/queue/read_ahead_kb"
      mount -t ext4 -o ro,noload "$loop" "$dir/mnt"
      mount -t proc proc "$dir/mnt/proc"
      mount --rbind /dev "$dir/mnt/dev"
      chroot "$dir/mnt" "$@"`;
    const child = new Deno.Command("unshare", {
      args: ["-m", "bash", "-c", script, "start", dir, socket, ...command],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const { success, stderr } = await withDeadline(
      "The recorded start",
      START_DEADLINE_MS,
      () => child.output(),
    );
    if (!success) throw new Error(new TextDecoder().decode(stderr));
  } finally {
    await server.stop(1000);
  }
  return recorded.pattern;
}

/**
 * Reads a pattern from a source.
 *
 * @returns Milliseconds that it took.
 */
export async function playPattern(
  source: ByteSource,
  { reads, ended }: Pattern,
): Promise<number> {
  const started = performance.now();
  const done = reads.map(() => Promise.withResolvers<void>());
  const endOrder = ended.map((index) => done[index]!.promise);
  const running: Promise<void>[] = [];
  // Reads that had ended before a read began must have ended now too.
  let awaited = 0;
  for (const [i, read] of reads.entries()) {
    while (awaited < read.after) await endOrder[awaited++];
    // A pause is measured from the end of the last of them.
    const isFirstAfter = i === 0 || reads[i - 1]!.after !== read.after;
    if (isFirstAfter && read.thinkMs > 0.5) {
      await new Promise((resolve) => setTimeout(resolve, read.thinkMs));
    }
    running.push(
      playRead(source, read).then(done[i]!.resolve, (error) => {
        done[i]!.promise.catch(() => {});
        done[i]!.reject(error);
        throw error;
      }),
    );
  }
  await Promise.all(running);
  return performance.now() - started;
}

async function playRead(source: ByteSource, read: PatternRead): Promise<void> {
  const dst = new Uint8Array(read.length);
  if (source.preadNow?.(dst, read.offset)) return;
  await source.pread(dst, read.offset);
}
