/** A guest kernel under QEMU, for what this machine's kernel lacks (the nbd driver). */

import { cacheRoot } from "./cache_root.ts";

const CACHE = `${cacheRoot()}/guest`;

/** What a guest gets. */
export interface GuestOptions {
  /** Shell script that the guest runs as root (busybox); at most 2 KiB. */
  script: string;
  /** An NBD URI that becomes `/dev/vda`. */
  drive?: string;
  /** A Unix socket that the guest reaches at 10.0.2.100:10810. */
  socket?: string;
  timeoutMs?: number;
}

let made: Promise<void> | undefined;

/** Downloads the kernel and packs the initramfs, once per machine. */
function makeGuest(): Promise<void> {
  return made ??= (async () => {
    // Test files run side by side, each with its own copy of this module.
    await Deno.mkdir(CACHE, { recursive: true });
    using lock = await Deno.open(`${CACHE}/lock`, {
      write: true,
      create: true,
    });
    await lock.lock(true);
    const script = new URL("../interop/make_guest.sh", import.meta.url);
    const { success, stderr } = await new Deno.Command(script.pathname, {
      args: [CACHE],
      stdin: "null",
    }).output();
    if (!success) throw new Error(new TextDecoder().decode(stderr));
  })();
}

/**
 * Boots a guest, runs the script and powers off.
 *
 * @returns What the script printed.
 * @throws {Error} With the console's text, if it did not end with exit code 0 in time.
 */
export async function runGuest(options: GuestOptions): Promise<string> {
  await makeGuest();
  const script = new TextEncoder().encode(options.script).toBase64();
  if (script.length > 1900) throw new Error("guest script is too long");
  const network = options.socket === undefined ? [] : [
    "-netdev",
    `user,id=n0,restrict=on,guestfwd=tcp:10.0.2.100:10810-cmd:socat STDIO UNIX-CONNECT:${options.socket}`,
    "-device",
    "virtio-net-pci,netdev=n0,romfile=",
  ];
  const drive = options.drive === undefined ? [] : [
    "-drive",
    `file=${options.drive},format=raw,if=virtio,readonly=on`,
  ];
  const child = new Deno.Command("qemu-system-x86_64", {
    args: [
      "-accel",
      "tcg,thread=multi",
      "-cpu",
      "max",
      "-m",
      "1024",
      "-smp",
      "2",
      "-nographic",
      "-no-reboot",
      "-nodefaults",
      "-serial",
      "stdio",
      "-kernel",
      `${CACHE}/vmlinuz`,
      "-initrd",
      `${CACHE}/initrd.gz`,
      "-append",
      // The kernel counts ticks while it spins for a moment, and panics when
      // there were none: as when QEMU got no time from a busy machine.
      `console=ttyS0 quiet panic=-1 no_timer_check obd_script=${script}`,
      ...network,
      ...drive,
    ],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const timer = setTimeout(
    () => child.kill("SIGKILL"),
    options.timeoutMs ?? 120_000,
  );
  try {
    const { stdout, stderr } = await child.output();
    const console_ = new TextDecoder().decode(stdout).replaceAll("\r", "");
    const match = /GUEST-START\n([\s\S]*?)GUEST-EXIT (\d+)/.exec(console_);
    if (match?.[2] !== "0") {
      throw new Error(
        `guest failed:\n${console_}\n${new TextDecoder().decode(stderr)}`,
      );
    }
    return match[1]!;
  } finally {
    clearTimeout(timer);
  }
}
