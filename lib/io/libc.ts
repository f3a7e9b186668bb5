/**
 * The few C library calls that the runtime does not offer. Everything here has
 * a fallback: without FFI permission (or off Linux) {@linkcode loadLibc}
 * returns undefined and callers take their portable path.
 */

const SONAMES: Record<string, string[]> = {
  // Absolute first: a bare name would be resolved by the loader, which is what we want on
  // other distributions, but permission prompts compare the literal string.
  x86_64: ["/lib/x86_64-linux-gnu/libc.so.6", "libc.so.6"],
  aarch64: ["/lib/aarch64-linux-gnu/libc.so.6", "libc.so.6"],
};

const SYMBOLS = {
  preadv2: {
    // The C library's: the system call alone has its offset in two halves.
    parameters: ["i32", "buffer", "i32", "i64", "i32"],
    result: "isize",
  },
  fallocate: {
    parameters: ["i32", "i32", "i64", "i64"],
    result: "i32",
    nonblocking: true,
  },
  malloc_trim: { parameters: ["usize"], result: "i32" },
  getpriority: { parameters: ["i32", "u32"], result: "i32" },
  setpriority: { parameters: ["i32", "u32", "i32"], result: "i32" },
  usleep: { parameters: ["u32"], result: "i32", nonblocking: true },
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
} as const;

/** An opened libc. */
export type Libc = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

let loaded: { libc: Libc | undefined } | undefined;

/** The C library, opened once, or undefined where FFI is not available. */
export function loadLibc(): Libc | undefined {
  loaded ??= { libc: openLibc(SYMBOLS) };
  return loaded.libc;
}

/** Calls of the C library that only one module needs; undefined as for {@linkcode loadLibc}. */
export function openLibc<const S extends Deno.ForeignLibraryInterface>(
  symbols: S,
): Deno.DynamicLibrary<S>["symbols"] | undefined {
  if (Deno.build.os !== "linux") return undefined;
  for (const name of SONAMES[Deno.build.arch] ?? []) {
    try {
      return Deno.dlopen(name, symbols).symbols;
    } catch {
      // Not there or not permitted: try the next, then do without.
    }
  }
  return undefined;
}

const RWF_NOWAIT = 8; // preadv2(2)
/** tmpfs and ramfs, as statfs(2) says. */
const MEMORY_TYPES = [0x01021994, 0x858458f6];

/**
 * Whether a file system is memory: reading it never waits for a disk, and
 * {@linkcode preadCached} need not ask it not to, which it refuses.
 *
 * @param type Of statfs(2).
 */
export function isMemoryType(type: number): boolean {
  return MEMORY_TYPES.includes(type >>> 0);
}

const iovec = new BigUint64Array(2);
const iovecBytes = new Uint8Array(iovec.buffer);

/**
 * Reads from a file descriptor only what the page cache holds.
 *
 * @param isMemory Whether the file lies on such a file system.
 * @returns True when all of `dst` was filled without touching the disk.
 */
export function preadCached(
  libc: Libc,
  fd: number,
  dst: Uint8Array<ArrayBuffer>,
  offset: number,
  isMemory: boolean,
): boolean {
  iovec[0] = BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(dst)));
  iovec[1] = BigInt(dst.length);
  const flags = isMemory ? 0 : RWF_NOWAIT;
  const got = libc.preadv2(fd, iovecBytes, 1, BigInt(offset), flags);
  return Number(got) === dst.length;
}

/**
 * Gives memory that was freed back to the system. Threads that ended leave
 * theirs in glibc's arenas (measured: 30 MB after the pass over one layer), and
 * the next thread may get another arena. A few milliseconds.
 */
export function trimMemory(): void {
  loadLibc()?.malloc_trim(0n);
}

const PRIO_PROCESS = 0; // setpriority(2); on Linux 0 is the calling thread
const NICE_STEP = 10;
/** The thread's own nice value; false where it could not be taken back. */
let ownNice: number | false | undefined;
let isBackground = false;

/**
 * Lets other threads and processes go before the calling thread, or no longer.
 * Does nothing for a user who may not take it back (capabilities(7):
 * CAP_SYS_NICE).
 */
export function setThreadBackground(background: boolean): void {
  // First: a thread that never works ahead need not open the library.
  if (background === isBackground) return;
  const libc = loadLibc();
  if (!libc || ownNice === false) return;
  const nice = ownNice ?? libc.getpriority(PRIO_PROCESS, 0);
  ownNice = nice;
  const change = (to: number) => libc.setpriority(PRIO_PROCESS, 0, to) === 0;
  // Found out with one step, which is no harm.
  if (background && !(change(nice + 1) && change(nice))) {
    ownNice = false;
    return;
  }
  change(background ? nice + NICE_STEP : nice);
  isBackground = background;
}
