/**
 * The whole way in one go, with no root, no tools and no network: makes an
 * image out of this machine's files and every kind of entry there is, puts it
 * into a registry of its own, builds its meta image, serves it, reads every
 * file back over NBD and compares. Ends with a table; exit 1 on a difference.
 *
 * `deno task demo`
 */

import { Ext4Reader } from "../../lib/ext4/mod.ts";
import { openEnvironment } from "../../lib/image/mod.ts";
import { type ByteString, formatSize } from "../../lib/io/mod.ts";
import { NbdClient } from "../../lib/nbd/mod.ts";
import {
  type Descriptor,
  parseManifest,
  parseReference,
} from "../../lib/registry/mod.ts";
import { RegistryServer } from "../../tests/testutil/registry_server.ts";
import { compareTree, type Comparison } from "./compare.ts";
import { ExpectedTree, shownPath } from "./expected.ts";
import { pushImage, writeLayer, type WrittenLayer } from "./image.ts";
import { machineFiles, runtimeFiles, type Taken } from "./machine_files.ts";
import { ObdServe, runObd } from "./obd_process.ts";
import { BlobTraffic } from "./traffic.ts";
import { changes, everyKind } from "./tricky.ts";

const MEGABYTE = 1e6;
/** Of the machine's files; the runtime's bytes fill up to the sum of both. */
const MACHINE_BYTES = 96 * MEGABYTE;
const RUNTIME_BYTES = 64 * MEGABYTE;
/** Unix socket paths hold 108 bytes. */
const TEMP_PATH_MAX = 70;
const REPOSITORY = "demo/app";

/** What `obd build --json` prints, as far as it is used. */
interface BuildReport {
  meta: { reference: string; digest: string; size: number };
  layers: { digest: string; size: number; metaSize: number; spans: number }[];
  breakdown: Record<string, number>;
  seconds: number;
}

/** What reading the first file cost. */
interface FirstRead {
  path: ByteString;
  size: number;
  /** From starting `obd serve` to having its content. */
  seconds: number;
  /** Of that, after the ready line. */
  readMilliseconds: number;
  metaBytes: number;
  layerBytes: number;
}

const started = performance.now();

function step(text: string): void {
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(`${seconds.padStart(5)} s  ${text}`);
}

async function makeLayers(
  dir: string,
  expected: ExpectedTree,
): Promise<WrittenLayer[]> {
  const taken: Taken = { bytes: 0, files: 0 };
  const rest = () => MACHINE_BYTES + RUNTIME_BYTES - taken.bytes;
  const plan = [
    ["this machine's files", () => machineFiles(MACHINE_BYTES, taken)],
    ["large files", () => runtimeFiles(rest(), taken)],
    ["every kind of entry", everyKind],
    ["changes to the layers below", changes],
  ] as const;
  const layers: WrittenLayer[] = [];
  for (const [i, [title, entries]] of plan.entries()) {
    const path = `${dir}/layer-${i}`;
    const layer = await writeLayer(path, title, entries(), expected);
    layers.push(layer);
    step(
      `made layer ${i + 1}: ${layer.entries} entries, ${
        formatSize(layer.tarSize)
      } of tar, ${formatSize(layer.descriptor.size)} as gzip (${title})`,
    );
  }
  return layers;
}

/** Pushes the image with the code that `obd build` pushes with. */
async function push(
  reference: string,
  layers: readonly WrittenLayer[],
): Promise<void> {
  await using environment = await openEnvironment({ workers: 1 });
  await using repository = await environment.openRepository(
    parseReference(reference),
  );
  await pushImage(repository, "v1", layers);
}

async function metaDescriptors(
  reference: string,
  digest: string,
): Promise<Descriptor[]> {
  await using environment = await openEnvironment({ workers: 1 });
  await using repository = await environment.openRepository(
    parseReference(reference),
  );
  const { bytes, descriptor } = await repository.resolve(digest);
  const manifest = parseManifest(bytes, descriptor.mediaType);
  return manifest.kind === "image" ? manifest.layers : [];
}

async function writeConfig(dir: string, reference: string): Promise<string> {
  const path = `${dir}/obd.json`;
  await Deno.writeTextFile(
    path,
    JSON.stringify({
      nbd: { listen: `unix:${dir}/nbd.sock` },
      api: { listen: `unix:${dir}/api.sock` },
      cacheConfig: { cacheDir: `${dir}/blobs`, cacheSizeGB: 1 },
      gzipCacheConfig: { enable: true, cacheDir: `${dir}/gzip` },
      images: [{ export: "app", image: reference }],
    }),
  );
  return path;
}

/** A file of the first layer of a usual size, from the middle of its tree. */
function chooseFirst(expected: ExpectedTree): ByteString {
  const candidates = [...expected.nodes]
    .filter(([path, node]) =>
      !path.startsWith("demo/") && node.type === "file" &&
      node.size >= 16_384 && node.size <= 1 << 20
    )
    .map(([path]) => path);
  return candidates[candidates.length >> 1] ?? "demo/content/100000";
}

async function readFirst(
  uri: string,
  path: ByteString,
  begun: number,
  traffic: BlobTraffic,
): Promise<FirstRead> {
  const connected = performance.now();
  await using client = await NbdClient.connect(uri);
  const reader = await Ext4Reader.open(client);
  await using body = await reader.openFile(await reader.lookup(path));
  await body.pread(new Uint8Array(body.size), 0);
  const now = performance.now();
  return {
    path,
    size: body.size,
    seconds: (now - begun) / 1000,
    readMilliseconds: now - connected,
    ...traffic.count(),
  };
}

async function readAll(
  uri: string,
  expected: ExpectedTree,
): Promise<Comparison> {
  await using client = await NbdClient.connect(uri);
  return await compareTree(await Ext4Reader.open(client), expected);
}

function table(
  layers: readonly WrittenLayer[],
  build: BuildReport,
  first: FirstRead,
  comparison: Comparison,
  allBytes: number,
  readSeconds: number,
): string {
  const percent = (part: number, whole: number) =>
    `${(part / whole * 100).toFixed(2)} %`;
  const image = layers.reduce((sum, l) => sum + l.descriptor.size, 0);
  const rows: [string, string][] = [];
  for (const [i, layer] of layers.entries()) {
    const { metaSize, spans } = build.layers[i]!;
    rows.push([
      `layer ${i + 1}`,
      `${formatSize(layer.descriptor.size)} gzip, ${
        formatSize(layer.tarSize)
      } tar -> meta ${formatSize(metaSize)}, ${spans} spans`,
    ]);
  }
  rows.push(
    ["image", `${formatSize(image)} in ${layers.length} gzip layers`],
    [
      "meta image",
      `${formatSize(build.meta.size)}, ${
        percent(build.meta.size, image)
      } of the image, built in ${build.seconds.toFixed(2)} s`,
    ],
    [
      "  of it",
      Object.entries(build.breakdown)
        .map(([name, bytes]) => `${name} ${formatSize(bytes)}`).join(", "),
    ],
    ["first file", `${shownPath(first.path)}, ${formatSize(first.size)}`],
    [
      "  fetched",
      `${formatSize(first.layerBytes)} of layers (${
        percent(first.layerBytes, image)
      }) and ${formatSize(first.metaBytes)} of meta image`,
    ],
    [
      "  time",
      `${first.seconds.toFixed(2)} s from starting serve, of it ${
        first.readMilliseconds.toFixed(0)
      } ms after it was ready`,
    ],
    [
      "compared",
      `${comparison.paths} paths; content of ${comparison.files} files, ${
        formatSize(comparison.contentBytes)
      } in ${readSeconds.toFixed(1)} s over NBD`,
    ],
    ["fetched in all", `${formatSize(allBytes)} of layers`],
    ["differences", String(comparison.differences.length)],
  );
  return rows.map(([name, text]) => `  ${name.padEnd(15)} ${text}`).join("\n");
}

async function demo(dir: string): Promise<boolean> {
  // No proxy and no credentials of the user's for a registry in this process.
  const env = {
    NO_PROXY: "127.0.0.1",
    no_proxy: "127.0.0.1",
    REGISTRY_AUTH_FILE: `${dir}/auth.json`,
  };
  await Deno.writeTextFile(env.REGISTRY_AUTH_FILE, "{}");
  for (const [name, value] of Object.entries(env)) Deno.env.set(name, value);

  const expected = new ExpectedTree();
  const layers = await makeLayers(dir, expected);
  await using registry = await RegistryServer.start({
    directory: `${dir}/registry`,
  });
  const reference = `${registry.host}/${REPOSITORY}:v1`;
  await push(reference, layers);
  for (const { path } of layers) await Deno.remove(path);
  step(`pushed ${reference} to a registry in this process`);

  const build = await runObd<BuildReport>(["build", reference], env);
  step(`obd build ${reference}: pushed ${build.meta.reference}`);

  const traffic = new BlobTraffic(
    registry.requests,
    layers.map((l) => l.descriptor),
    await metaDescriptors(reference, build.meta.digest),
  );
  const begun = performance.now();
  await using serve = await ObdServe.start(
    await writeConfig(dir, reference),
    env,
  );
  const { uri } = serve.ready.exports[0]!;
  step(`obd serve: ready at ${uri}`);
  const first = await readFirst(uri, chooseFirst(expected), begun, traffic);
  step(`read a first file: ${shownPath(first.path)}`);

  const readBegun = performance.now();
  const comparison = await readAll(uri, expected);
  const readSeconds = (performance.now() - readBegun) / 1000;
  step(`read ${comparison.files} files and compared ${comparison.paths} paths`);
  const { layerBytes } = traffic.count();
  console.log(
    `\n${table(layers, build, first, comparison, layerBytes, readSeconds)}\n`,
  );
  for (const difference of comparison.differences.slice(0, 20)) {
    console.log(`DIFFERENT: ${difference}`);
  }
  return comparison.differences.length === 0 && comparison.files > 0;
}

if (import.meta.main) {
  let dir = await Deno.makeTempDir({ prefix: "obd-demo-" });
  if (dir.length > TEMP_PATH_MAX) {
    await Deno.remove(dir);
    dir = await Deno.makeTempDir({ dir: "/tmp", prefix: "obd-demo-" });
  }
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    // obd's processes get a terminal's signal themselves, and end when their output does.
    Deno.addSignalListener(signal, () => {
      Deno.removeSync(dir, { recursive: true });
      Deno.exit(130);
    });
  }
  let equal = false;
  try {
    equal = await demo(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
  step(equal ? "every file is as it was put in" : "FAILED");
  Deno.exit(equal ? 0 : 1);
}
