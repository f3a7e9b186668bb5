/**
 * What the processes of a contender cost, each by name. Their sum of CPU time
 * is the kernel's own (cgroup), so that processes count too that ended between
 * two looks; memory, and who spent what, is looked up twenty times a second (five
 * times without a cgroup).
 */

import { delay } from "../../lib/io/mod.ts";
import { waitUntil } from "../mount_process.ts";

const SAMPLE_INTERVAL_MS = 50;
/** Without a cgroup, every process of the machine has to be looked at. */
const SCAN_INTERVAL_MS = 200;
const END_DEADLINE_MS = 10_000;
const CGROUPS = "/sys/fs/cgroup";
/** USER_HZ, which is 100 on every architecture that obd runs on (Linux uapi: asm-generic/param.h). */
const TICKS_PER_SECOND = 100;

/** One program's part. */
export interface ProcessCost {
  name: string;
  cpuSeconds: number;
  /** Most resident memory of one such process; undefined where nobody looked in time. */
  peakRssBytes: number | undefined;
}

/** What a group of processes cost. */
export interface Cost {
  /** Of all its processes, also those that have ended; undefined if nothing could be counted. */
  cpuSeconds: number | undefined;
  /** Most resident memory of all its processes together. */
  peakRssBytes: number | undefined;
  /** By program, the most expensive first. The service itself is in no sum. */
  processes: ProcessCost[];
  /** CPU time of the whole machine meanwhile, with the kernel's own work and whatever else ran. */
  machineCpuSeconds: number | undefined;
}

/** Name of the service's entry in {@linkcode Cost.processes}. */
export const SERVICE = "service";
/** Name of what ended between two looks. */
export const SHORT_LIVED = "short-lived helpers";

interface Seen {
  name: string;
  /** CPU time at the start of the clock, and now. */
  startSeconds: number;
  cpuSeconds: number;
  peakRssBytes: number;
}

/**
 * Counts what processes cost: by a cgroup of version 1 (cpuacct) or 2 where one
 * can be made, else by looking at the processes that were added and what they
 * started.
 */
export class CostGroup implements AsyncDisposable {
  readonly #cgroup: Cgroup | undefined;
  readonly #roots = new Map<string, string>();
  readonly #seen = new Map<string, Seen>();
  readonly #stop = new AbortController();
  readonly #sampling: Promise<void>;
  #service: string | undefined;
  #servicePeak = 0;
  #serviceSeenAt: number | undefined;
  #peak = 0;
  #totalStart = 0;
  #machineStart: number | undefined;

  private constructor(cgroup: Cgroup | undefined) {
    this.#cgroup = cgroup;
    this.#sampling = this.#sampleUntilStopped();
  }

  /** @param name Of a cgroup that nobody else makes; without root none is made. */
  static async create(name: string): Promise<CostGroup> {
    const cgroup = Deno.uid() === 0 ? await makeCgroup(name) : undefined;
    return new CostGroup(cgroup);
  }

  /** A process joins by writing its id there. */
  get procsFiles(): string[] {
    return this.#cgroup ? [`${this.#cgroup.path}/cgroup.procs`] : [];
  }

  /** Counts a process, and what it starts, under a name. */
  add(pid: number, name: string): void {
    this.#roots.set(String(pid), name);
  }

  /**
   * Counts a container's processes as the service.
   *
   * @param path Its cgroup's path in the hierarchy, e.g. "/default/ID".
   */
  watchService(path: string): void {
    this.#service = path;
  }

  /** When a process of the service was first seen, as `performance.now()`. */
  get serviceSeenAt(): number | undefined {
    return this.#serviceSeenAt;
  }

  /** Daemons that run already cost nothing so far. */
  begin(): void {
    this.#sample();
    for (const seen of this.#seen.values()) {
      seen.startSeconds = seen.cpuSeconds;
    }
    this.#peak = 0;
    this.#totalStart = this.#cgroup?.cpuSeconds() ?? 0;
    this.#machineStart = machineCpuSeconds();
  }

  /** What it was since {@linkcode begin}. */
  cost(): Cost {
    this.#sample();
    const machine = machineCpuSeconds();
    const byName = new Map<string, ProcessCost>();
    let known = 0;
    for (const seen of this.#seen.values()) {
      const cpuSeconds = seen.cpuSeconds - seen.startSeconds;
      known += cpuSeconds;
      const other = byName.get(seen.name);
      byName.set(seen.name, {
        name: seen.name,
        cpuSeconds: (other?.cpuSeconds ?? 0) + cpuSeconds,
        peakRssBytes: Math.max(other?.peakRssBytes ?? 0, seen.peakRssBytes),
      });
    }
    const counted = this.#cgroup?.cpuSeconds();
    const total = counted === undefined
      ? known
      : Math.max(known, counted - this.#totalStart);
    const processes = [...byName.values()];
    if (total - known > 0.005) {
      processes.push({
        name: SHORT_LIVED,
        cpuSeconds: total - known,
        peakRssBytes: undefined,
      });
    }
    const service = this.#serviceCost();
    if (service) processes.push(service);
    return {
      cpuSeconds: round(total),
      peakRssBytes: this.#peak,
      processes: processes
        .map((p) => ({ ...p, cpuSeconds: round(p.cpuSeconds) }))
        .sort((a, b) => b.cpuSeconds - a.cpuSeconds),
      machineCpuSeconds: machine === undefined ||
          this.#machineStart === undefined
        ? undefined
        : round(machine - this.#machineStart),
    };
  }

  /** CPU time of everything so far, the service included; undefined without cgroups. */
  allCpuSeconds(): number | undefined {
    const tools = this.#cgroup?.cpuSeconds();
    const service = this.#serviceCost();
    return tools === undefined || !service
      ? undefined
      : tools + service.cpuSeconds;
  }

  #serviceCost(): ProcessCost | undefined {
    if (this.#service === undefined || !this.#cgroup) return undefined;
    const cpuSeconds = this.#cgroup.at(this.#service).cpuSeconds();
    return cpuSeconds === undefined ? undefined : {
      name: SERVICE,
      cpuSeconds,
      peakRssBytes: this.#servicePeak,
    };
  }

  async #sampleUntilStopped(): Promise<void> {
    try {
      for (;;) {
        this.#sample();
        await delay(
          this.#cgroup ? SAMPLE_INTERVAL_MS : SCAN_INTERVAL_MS,
          this.#stop.signal,
        );
      }
    } catch {
      // Told to end.
    }
  }

  #sample(): void {
    let sum = 0;
    for (const pid of this.#pids()) {
      const now = lookAt(pid);
      if (!now) continue;
      sum += now.rssBytes;
      const name = this.#roots.get(pid) ?? now.name;
      const seen = this.#seen.get(pid);
      this.#seen.set(pid, {
        name,
        startSeconds: seen?.startSeconds ?? 0,
        cpuSeconds: now.cpuSeconds,
        peakRssBytes: Math.max(seen?.peakRssBytes ?? 0, now.rssBytes),
      });
    }
    this.#peak = Math.max(this.#peak, sum);
    if (this.#service === undefined || !this.#cgroup) return;
    let service = 0;
    for (const pid of this.#cgroup.at(this.#service).pids()) {
      const now = lookAt(pid);
      service += now?.rssBytes ?? 0;
      // Until it becomes the program, it is runc's own ("runc:[2:INIT]").
      if (now && !now.name.startsWith("runc:")) {
        this.#serviceSeenAt ??= performance.now();
      }
    }
    this.#servicePeak = Math.max(this.#servicePeak, service);
  }

  #pids(): string[] {
    return this.#cgroup ? this.#cgroup.pids() : descendantsOf(this.#roots);
  }

  /** Ends what is left in the cgroup, then removes it. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#sampling;
    if (!this.#cgroup) return;
    const cgroup = this.#cgroup;
    await waitUntil(async () => {
      try {
        for (const pid of cgroup.pids()) {
          Deno.kill(Number(pid), "SIGKILL");
        }
      } catch {
        // Ended in between.
      }
      return await Deno.remove(cgroup.path).then(() => true, () => false);
    }, END_DEADLINE_MS);
  }
}

/** One cgroup of either version. */
class Cgroup {
  constructor(
    readonly base: string,
    readonly name: string,
    readonly kind: "v1" | "v2",
  ) {}

  get path(): string {
    return `${this.base}/${this.name}`;
  }

  /** Another one of the same hierarchy. */
  at(path: string): Cgroup {
    return new Cgroup(this.base, path.replace(/^\//, ""), this.kind);
  }

  pids(): string[] {
    const text = readText(`${this.path}/cgroup.procs`) ?? "";
    return text.split("\n").filter((line) => line !== "");
  }

  cpuSeconds(): number | undefined {
    if (this.kind === "v1") {
      const text = readText(`${this.path}/cpuacct.usage`);
      return text === undefined ? undefined : Number(text) / 1e9;
    }
    const text = readText(`${this.path}/cpu.stat`) ?? "";
    const usage = /^usage_usec (\d+)/m.exec(text)?.[1];
    return usage === undefined ? undefined : Number(usage) / 1e6;
  }
}

async function makeCgroup(name: string): Promise<Cgroup | undefined> {
  for (
    const [base, kind, file] of [
      [`${CGROUPS}/cpuacct`, "v1", "cpuacct.usage"],
      [CGROUPS, "v2", "cpu.stat"],
    ] as const
  ) {
    try {
      await Deno.stat(`${base}/${file}`);
      await Deno.mkdir(`${base}/${name}`);
      return new Cgroup(base, name, kind);
    } catch {
      // Not of this version, or not ours to make.
    }
  }
  return undefined;
}

/** One process as `/proc` shows it now; undefined when it has ended. */
function lookAt(
  pid: string,
): { name: string; cpuSeconds: number; rssBytes: number } | undefined {
  const stat = readText(`/proc/${pid}/stat`);
  if (stat === undefined) return undefined;
  // The name in parentheses may hold anything; fields are counted behind it.
  const close = stat.lastIndexOf(")");
  const fields = stat.slice(close + 2).split(" ");
  const status = readText(`/proc/${pid}/status`) ?? "";
  return {
    name: stat.slice(stat.indexOf("(") + 1, close),
    // utime and stime, proc(5).
    cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND,
    rssBytes: Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1] ?? 0) * 1024,
  };
}

/** Processes that descend from these, and these. */
function descendantsOf(roots: ReadonlyMap<string, string>): string[] {
  const parents = new Map<string, string>();
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const stat = readText(`/proc/${name}/stat`);
    const parent = stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[1];
    if (parent !== undefined) parents.set(name, parent);
  }
  return [...parents.keys()].filter((pid) => {
    for (let at: string | undefined = pid; at; at = parents.get(at)) {
      if (roots.has(at)) return true;
    }
    return false;
  });
}

/** All processors' time that was not idle, since the machine started. */
function machineCpuSeconds(): number | undefined {
  const line = readText("/proc/stat")?.split("\n")[0];
  const ticks = line?.trim().split(/\s+/).slice(1).map(Number);
  if (!ticks || ticks.length < 8) return undefined;
  // user nice system idle iowait irq softirq steal, proc(5); guest time is in user.
  const [user, nice, system, , , irq, softirq] = ticks as number[];
  return (user! + nice! + system! + irq! + softirq!) / TICKS_PER_SECOND;
}

/** Files of the kernel's, which nobody waits for. */
function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined;
  }
}

function round(seconds: number): number {
  return Math.round(seconds * 1000) / 1000;
}
