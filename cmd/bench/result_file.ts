/** Results in files: lines of JSON as `--output` appends them, or the one object of `--json`. */

import * as v from "valibot";
import { errorText, ObdError, utf8 } from "../../lib/io/mod.ts";
import type { Session } from "./result.ts";
import { STAGES } from "./stages.ts";

/** A curve of a long run and the ranges of its reads are some 100 KB a run. */
const FILE_SIZE_MAX = 256 * 1024 * 1024;

const count = v.pipe(v.number(), v.minValue(0));
const text = v.pipe(v.string(), v.maxLength(64 * 1024));
const texts = v.record(text, text);

const layerSize = v.looseObject({ digest: text, size: count });
const build = v.looseObject({
  seconds: count,
  bytes: count,
  layersReused: v.optional(count),
  digest: v.optional(text),
});

const machine = v.looseObject({
  cpu: text,
  cores: count,
  memoryBytes: count,
  kernel: text,
  versions: texts,
  commit: v.nullable(text),
  program: v.optional(text),
  started: text,
  command: v.array(text),
  mode: v.picklist(["full", "reduced"]),
  leavesOut: v.array(text),
  probeMethod: v.optional(text),
  link: v.looseObject({
    rate: v.nullable(text),
    bytesPerSecond: v.nullable(count),
    rttMs: count,
    method: text,
  }),
});

const image = v.looseObject({
  workload: text,
  reference: text,
  digest: text,
  compressedBytes: count,
  layers: v.array(layerSize),
  build,
  native: v.optional(
    v.looseObject({ ...build.entries, layers: v.array(layerSize) }),
  ),
});

const touched = v.looseObject({
  workload: text,
  failure: v.optional(text),
  bytes: count,
  storedBytes: count,
  layers: v.array(v.looseObject({
    digest: text,
    size: count,
    contentBytes: count,
    metadataBytes: count,
    storedBytes: count,
    cells: v.pipe(v.array(count), v.maxLength(10_000)),
  })),
  limit: v.optional(v.looseObject({
    warmSeconds: count,
    transferSeconds: count,
    rttSeconds: count,
    totalSeconds: count,
  })),
});

const measurement = v.looseObject({
  openedSeconds: v.optional(count),
  rootSeconds: count,
  containerSeconds: v.optional(count),
  firstByteSeconds: v.optional(count),
  readySeconds: count,
  traffic: v.looseObject({
    requests: count,
    connections: count,
    bytes: count,
    curve: v.array(v.tuple([count, count])),
    firstRequestSeconds: v.optional(count),
    blobs: v.array(v.looseObject({
      digest: text,
      ranges: v.array(v.tuple([count, v.nullable(count)])),
    })),
  }),
  edge: v.optional(v.looseObject({ reads: count, bytes: count })),
  stages: v.optional(
    v.object(v.entriesFromList(STAGES, v.optional(count))),
  ),
  reading: v.optional(v.looseObject({
    waits: count,
    demand: v.looseObject({ loads: count }),
    ahead: v.looseObject({ loads: count }),
  })),
  metaDigest: v.optional(text),
  cost: v.looseObject({
    cpuSeconds: v.optional(count),
    peakRssBytes: v.optional(count),
    machineCpuSeconds: v.optional(count),
    processes: v.array(v.looseObject({
      name: text,
      cpuSeconds: count,
      peakRssBytes: v.optional(count),
    })),
  }),
  diskBytes: count,
  steadyRate: v.optional(count),
  steadyCpuSeconds: v.optional(count),
});

const run = v.looseObject({
  workload: text,
  contender: text,
  round: count,
  probe: v.optional(v.looseObject({ seconds: count, cpuSeconds: count })),
  measurement: v.optional(measurement),
  failure: v.optional(text),
});

const whole = v.looseObject({
  machine,
  images: v.array(image),
  touched: v.array(touched),
  runs: v.array(run),
});

/**
 * Reads the benches of files, in their order.
 *
 * @throws {ObdError} Naming the file and the line that is none of a bench.
 */
export async function readResultFiles(
  paths: readonly string[],
): Promise<Session[]> {
  const sessions: Session[] = [];
  for (const path of paths) sessions.push(...await readResults(path));
  return sessions;
}

/** Writes a file whole or not at all. */
export async function writeAtomically(
  path: string,
  content: string,
): Promise<void> {
  const part = `${path}.${Deno.pid}.tmp`;
  try {
    await Deno.writeTextFile(part, content);
    await Deno.rename(part, path);
  } catch (error) {
    await Deno.remove(part).catch(() => {});
    throw new ObdError("state", `Cannot write "${path}"`, { cause: error });
  }
}

/**
 * Fails now rather than after an hour of runs.
 *
 * @throws {ObdError} If the file, or one beside it, cannot be written.
 */
export async function requireWritable(
  { output, html }: { output?: string; html?: string },
): Promise<void> {
  const probe = async (path: string, name: string) => {
    try {
      (await Deno.open(path, { append: true, create: true })).close();
    } catch (error) {
      throw new ObdError("state", `Cannot write "${name}"`, { cause: error });
    }
  };
  if (output !== undefined) {
    await probe(output, output);
    await endLine(output);
  }
  if (html === undefined) return;
  const part = `${html}.${Deno.pid}.tmp`;
  await probe(part, html);
  await Deno.remove(part);
}

/** A bench that was killed, or found the disk full, may have left half a line: what comes is none of it. */
async function endLine(path: string): Promise<void> {
  const { isFile, size } = await Deno.stat(path);
  if (!isFile || size === 0) return;
  using file = await Deno.open(path, { read: true, append: true });
  const last = new Uint8Array(1);
  await file.seek(size - 1, Deno.SeekMode.Start);
  await file.read(last);
  if (last[0] !== 0x0a) await file.write(utf8("\n"));
}

async function readResults(path: string): Promise<Session[]> {
  let content: string;
  try {
    const { size, isFile } = await Deno.stat(path);
    if (!isFile) throw new ObdError("format", "it is no file");
    if (size > FILE_SIZE_MAX) {
      throw new ObdError("limit", `it has ${size} bytes`);
    }
    content = await Deno.readTextFile(path);
  } catch (error) {
    throw failure(
      error instanceof Deno.errors.NotFound ? "not-found" : "state",
      path,
      errorText(error),
    );
  }
  const sessions: Session[] = [];
  for (const [i, line] of content.split("\n").entries()) {
    if (line.trim() === "") continue;
    try {
      addLine(sessions, line);
    } catch (error) {
      throw failure("format", path, `line ${i + 1}: ${errorText(error)}`);
    }
  }
  if (sessions.length === 0) {
    throw failure("format", path, "it has no results of obd bench");
  }
  return sessions;
}

function failure(
  code: "not-found" | "state" | "format",
  path: string,
  problem: string,
): ObdError {
  return new ObdError(code, `Cannot read results "${path}": ${problem}`);
}

function addLine(sessions: Session[], line: string): void {
  const all = JSON.parse(line);
  const { event, ...value } = all ?? {};
  if (event === undefined) {
    // --json: the same in one object; with --from several in one.
    const objects = Array.isArray(all?.sessions) ? all.sessions : [all];
    for (const one of objects) {
      sessions.push(checked(whole, one) as unknown as Session);
    }
    return;
  }
  if (event === "machine") {
    const facts = checked(machine, value) as unknown as Session["machine"];
    sessions.push({ machine: facts, images: [], touched: [], runs: [] });
    return;
  }
  const session = sessions.at(-1);
  if (!session) {
    throw new ObdError("format", `"${event}" comes before "machine"`);
  }
  switch (event) {
    case "image":
      session.images.push(checked(image, value) as never);
      break;
    case "touched":
      session.touched.push(checked(touched, value) as never);
      break;
    case "run":
      session.runs.push(checked(run, value) as never);
      break;
      // Summaries, and what later versions add, can be made of the rest.
  }
}

function checked<S extends v.GenericSchema>(
  schema: S,
  value: unknown,
): v.InferOutput<S> {
  const result = v.safeParse(schema, value);
  if (result.success) return result.output;
  const issue = result.issues[0];
  throw new ObdError(
    "format",
    `key "${v.getDotPath(issue) ?? "(top level)"}": ${issue.message}`,
  );
}
