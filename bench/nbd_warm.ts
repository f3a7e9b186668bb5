/**
 * Warm reads over NBD: our server against `nbdkit file`, on the same raw file,
 * with the same clients, taking turns.
 *
 * Budget: sequential ≥ 0.8 × nbdkit, 4 KiB random at
 * depth 16 ≥ 1.0 ×.
 *
 *     deno run -A bench/nbd_warm.ts [--mib 512] [--rounds 5] [--seconds 1] [--only random]
 *
 * Prints one JSON line per figure, then the ratios. Both servers run in
 * processes of their own; the file is in the page cache. Our client runs in
 * this process; fio (`--ioengine=nbd`) is used too where it is installed.
 */

import { parseArgs } from "node:util";
import { FileSource } from "../lib/io/mod.ts";
import { NbdClient, NbdServer } from "../lib/nbd/mod.ts";

const { values } = parseArgs({
  args: Deno.args,
  options: {
    mib: { type: "string", default: "512" },
    only: { type: "string", default: "" },
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "1" },
    serve: { type: "string" },
    socket: { type: "string" },
  },
});

if (values.serve !== undefined) {
  // The child: serves one file until it is killed.
  const server = new NbdServer();
  const source = await FileSource.open(values.serve);
  server.addExport({ name: "", source });
  await server.listen(`unix:${values.socket}`);
} else await main();

/** How much was read per second, in units of the measure. */
type Measure = (socket: string, size: number) => Promise<number>;

/**
 * Processor time of a process so far, in seconds: what a figure cost is steady
 * also on a machine that has other work.
 */
function cpuSeconds(pid: number): number {
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  // utime and stime (proc(5) 14 and 15) in ticks of 10 ms.
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

async function main(): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "obd-bench-" });
  const children: Deno.ChildProcess[] = [];
  try {
    const file = `${dir}/disk.raw`;
    const size = Number(values.mib) * 1024 * 1024;
    await makeFile(file, size);
    const sockets = { obd: `${dir}/obd.sock`, nbdkit: `${dir}/nbdkit.sock` };
    const servers = {
      obd: spawn(Deno.execPath(), [
        ...["run", "-A", new URL(import.meta.url).pathname],
        ...["--serve", file, "--socket", sockets.obd],
      ]),
      nbdkit: spawn("nbdkit", [
        ...["-f", "-r", "-U", sockets.nbdkit, "file", file],
      ]),
    };
    children.push(...Object.values(servers));
    for (const socket of Object.values(sockets)) await untilServed(socket);
    const machine = {
      cpus: navigator.hardwareConcurrency,
      deno: Deno.version.deno,
      nbdkit: await output("nbdkit", ["--version"]),
    };
    console.log(JSON.stringify({ bench: "nbd_warm", size, ...machine }));
    for (const [name, { unit, measure }] of Object.entries(await measures())) {
      if (!name.includes(values.only)) continue;
      const results: Record<keyof typeof sockets, number[]> = {
        obd: [],
        nbdkit: [],
      };
      const cpu = { obd: 0, nbdkit: 0 };
      const amount = { obd: 0, nbdkit: 0 };
      // The first round warms up both.
      for (let round = 0; round <= Number(values.rounds); round++) {
        for (const server of ["nbdkit", "obd"] as const) {
          const { pid } = servers[server];
          const before = cpuSeconds(pid);
          const start = performance.now();
          const result = await measure(sockets[server], size);
          if (round === 0) continue;
          results[server].push(result);
          cpu[server] += cpuSeconds(pid) - before;
          amount[server] += result * (performance.now() - start) / 1000;
        }
      }
      const [ours, theirs] = [median(results.obd), median(results.nbdkit)];
      console.log(JSON.stringify({
        name,
        unit,
        obd: Math.round(ours),
        nbdkit: Math.round(theirs),
        ratio: Number((ours / theirs).toFixed(2)),
        /** Processor time of the server per thousand reads or megabytes, in ms. */
        cpuMsPer1000: {
          obd: Number((cpu.obd * 1e6 / amount.obd).toFixed(1)),
          nbdkit: Number((cpu.nbdkit * 1e6 / amount.nbdkit).toFixed(1)),
        },
        spread: {
          obd: range(results.obd),
          nbdkit: range(results.nbdkit),
        },
      }));
    }
  } finally {
    for (const child of children) {
      child.kill("SIGKILL");
      await child.status;
    }
    await Deno.remove(dir, { recursive: true });
  }
}

async function measures(): Promise<
  Record<string, { unit: string; measure: Measure }>
> {
  const found: Record<string, { unit: string; measure: Measure }> = {
    "client: sequential, 256 KiB, depth 4": {
      unit: "MB/s",
      measure: (socket, size) => sequential(socket, size, 4),
    },
    "client: random 4 KiB, depth 1": {
      unit: "reads/s",
      measure: (socket, size) => random(socket, size, 1),
    },
    "client: random 4 KiB, depth 16": {
      unit: "reads/s",
      measure: (socket, size) => random(socket, size, 16),
    },
  };
  try {
    await output("fio", ["--version"]);
  } catch {
    return found;
  }
  found["fio: sequential, 256 KiB, depth 4"] = {
    unit: "MB/s",
    measure: (socket) => fio(socket, "read", "256k", 4, "bw_bytes"),
  };
  found["fio: random 4 KiB, depth 16"] = {
    unit: "reads/s",
    measure: (socket) => fio(socket, "randread", "4k", 16, "iops"),
  };
  return found;
}

function connect(socket: string): Promise<NbdClient> {
  return NbdClient.connect({
    address: { transport: "unix", path: socket },
    exportName: "",
  });
}

/** MB/s of one pass over the disk, repeated until the time is over. */
async function sequential(
  socket: string,
  size: number,
  depth: number,
): Promise<number> {
  await using client = await connect(socket);
  const length = 256 * 1024;
  let next = 0;
  const end = performance.now() + Number(values.seconds) * 1000;
  const start = performance.now();
  const lane = async () => {
    const dst = new Uint8Array(length);
    while (performance.now() < end) {
      const offset = (next * length) % size;
      next++;
      await client.readRequest(dst, offset);
    }
  };
  await Promise.all(Array.from({ length: depth }, lane));
  return next * length / 1e3 / (performance.now() - start);
}

async function random(
  socket: string,
  size: number,
  depth: number,
): Promise<number> {
  await using client = await connect(socket);
  const blocks = size / 4096;
  let state = 12345;
  let count = 0;
  const end = performance.now() + Number(values.seconds) * 1000;
  const start = performance.now();
  const lane = async () => {
    const dst = new Uint8Array(4096);
    while (performance.now() < end) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      await client.readRequest(dst, (state % blocks) * 4096);
      count++;
    }
  };
  await Promise.all(Array.from({ length: depth }, lane));
  return count / (performance.now() - start) * 1000;
}

async function fio(
  socket: string,
  rw: string,
  bs: string,
  depth: number,
  field: "bw_bytes" | "iops",
): Promise<number> {
  const json = await output("fio", [
    ...["--name=x", "--ioengine=nbd", `--uri=nbd+unix:///?socket=${socket}`],
    ...[`--rw=${rw}`, `--bs=${bs}`, `--iodepth=${depth}`, "--time_based=1"],
    ...[`--runtime=${values.seconds}`, "--output-format=json"],
  ]);
  const { read } = JSON.parse(json.slice(json.indexOf("{"))).jobs[0];
  return field === "bw_bytes" ? read.bw_bytes / 1e6 : read.iops;
}

async function makeFile(path: string, size: number): Promise<void> {
  using file = await Deno.open(path, { write: true, create: true });
  const words = new Uint32Array(1024 * 1024 / 4);
  for (let done = 0; done < size; done += 1024 * 1024) {
    for (let i = 0; i < words.length; i++) {
      words[i] = Math.imul(done + i, 2654435761);
    }
    await file.write(new Uint8Array(words.buffer));
  }
}

function spawn(command: string, args: string[]): Deno.ChildProcess {
  return new Deno.Command(command, { args, stdin: "null" }).spawn();
}

async function output(command: string, args: string[]): Promise<string> {
  const run = await new Deno.Command(command, { args }).output();
  if (!run.success) throw new Error(new TextDecoder().decode(run.stderr));
  return new TextDecoder().decode(run.stdout).trim();
}

async function untilServed(socket: string): Promise<void> {
  for (let tries = 0;; tries++) {
    try {
      await (await connect(socket))[Symbol.asyncDispose]();
      return;
    } catch (error) {
      if (tries > 200) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

function median(numbers: number[]): number {
  return numbers.toSorted((a, b) => a - b)[numbers.length >> 1]!;
}

function range(numbers: number[]): [number, number] {
  return [Math.round(Math.min(...numbers)), Math.round(Math.max(...numbers))];
}
