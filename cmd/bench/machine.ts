/** What a result must say of where it was measured, and what must be installed for that. */

import { ObdError } from "../../lib/io/mod.ts";
import { hasProgram, runProgram } from "../mount_process.ts";
import { VERSION } from "../version.ts";

/** Debian's package for each program that a bench runs. */
const PROGRAMS: readonly (readonly [program: string, debian: string])[] = [
  ["containerd", "containerd"],
  ["ctr", "containerd"],
  ["docker-registry", "docker-registry"],
  ["ip", "iproute2"],
  ["tc", "iproute2"],
  ["losetup", "mount"],
  ["nbdfuse", "libnbd-bin"],
  // containerd unpacks with it where it is there.
  ["unpigz", "pigz"],
  ["runc", "runc"],
  ["skopeo", "skopeo"],
  ["umoci", "umoci"],
];
/** Needed only to make the images of the tree. */
const IMAGE_PROGRAMS: readonly (readonly [string, string])[] = [
  ["bash", "bash"],
  ["debootstrap", "debootstrap"],
];

/** @throws {ObdError} Naming every package that is missing, in one line. */
export function requirePackages(makesImages: boolean): void {
  const programs = [...PROGRAMS, ...(makesImages ? IMAGE_PROGRAMS : [])];
  const missing = new Set(
    programs.filter(([program]) => !hasProgram(program)).map(([, debian]) =>
      debian
    ),
  );
  if (missing.size === 0) return;
  throw new ObdError(
    "not-found",
    `Missing programs: apt-get install ${[...missing].join(" ")}`,
  );
}

/** The machine, as a line of JSON has it. */
export interface Machine {
  cpu: string;
  cores: number;
  memoryBytes: number;
  kernel: string;
  /** Versions by program. */
  versions: Record<string, string>;
  /** Of the source tree, where there is one. */
  commit: string | null;
}

/** Describes this machine. */
export async function describeMachine(): Promise<Machine> {
  const cpuinfo = await readText("/proc/cpuinfo");
  const firstLine = async (name: string, ...args: string[]) => {
    try {
      const { stdout, stderr } = await runProgram(name, args);
      return (stdout.trim() || stderr).split("\n")[0]!.slice(0, 200);
    } catch {
      return "unknown";
    }
  };
  return {
    cpu: /^model name\s*:\s*(.+)$/m.exec(cpuinfo)?.[1] ?? "unknown",
    cores: navigator.hardwareConcurrency,
    memoryBytes: Deno.systemMemoryInfo().total,
    kernel: Deno.osRelease(),
    versions: {
      obd: VERSION,
      deno: Deno.version.deno,
      containerd: await firstLine("containerd", "--version"),
      runc: await firstLine("runc", "--version"),
      "docker-registry": await firstLine("docker-registry", "--version"),
      pigz: await firstLine("pigz", "--version"),
      nbdfuse: await firstLine("nbdfuse", "--version"),
      umoci: await firstLine("umoci", "--version"),
    },
    commit: await commitOfTree(),
  };
}

async function commitOfTree(): Promise<string | null> {
  const here = new URL(".", import.meta.url);
  if (here.protocol !== "file:" || !hasProgram("git")) return null;
  try {
    const { code, stdout } = await runProgram("git", [
      "-C",
      here.pathname,
      "rev-parse",
      "HEAD",
    ]);
    return code === 0 ? stdout.trim() : null;
  } catch {
    return null;
  }
}

async function readText(path: string): Promise<string> {
  return await Deno.readTextFile(path).catch(() => "");
}
