/** Before the runs: images, their meta images and native images in the bench's registry. */

import { NATIVE_ARTIFACT_TYPE } from "../../lib/image/mod.ts";
import { errorText } from "../../lib/io/mod.ts";
import type { ImageSource, Workload } from "./workloads.ts";
import type { RegistrySettings } from "../context.ts";
import { selfCommand } from "../mount_serve.ts";
import type { BenchRegistry } from "./link.ts";
import { runTool } from "./process.ts";
import { keepReferrers } from "./referrers.ts";
import type { BuildFacts, ImageFacts } from "./result.ts";

/** One image in the bench's registry, with its meta image. */
export interface Prepared {
  workload: Workload;
  /** Repository and tag, without the host. */
  image: string;
  /** Digest of its meta image. */
  metaDigest: string;
  /** The native image as a repository and tag, with its digest. */
  native: { image: string; metaDigest: string } | undefined;
  facts: ImageFacts;
  /** Why a native image that was asked for is not there. */
  nativeFailure: string | undefined;
}

/** What `obd build --json` prints, as far as it is used here. */
interface BuildReport {
  source: { digest: string };
  meta: { digest: string; size: number };
  layers: { digest: string; size: number; reused?: boolean }[];
  seconds: number;
}

/** Puts image and meta image into the registry, past the link. */
export async function prepareImage(options: {
  registry: BenchRegistry;
  workload: Workload;
  source: ImageSource;
  /** Also a native image. */
  native: boolean;
  /** How to reach the registry of the source. */
  settings: RegistrySettings;
  /** A directory of this bench. */
  work: string;
  note: (text: string) => void;
  signal: AbortSignal;
}): Promise<Prepared> {
  const { registry, workload, native, note, signal } = options;
  const { skopeo, repository } = options.source;
  const image = `${repository}:v1`;
  const direct = `${registry.direct}/${image}`;
  note(`pushing ${image}`);
  await runTool(`copy "${skopeo}" to the registry`, [
    "skopeo",
    "copy",
    "--quiet",
    "--insecure-policy",
    "--dest-tls-verify=false",
    ...await sourceFlags(skopeo, options.settings, options.work),
    skopeo,
    `docker://${direct}`,
  ], signal);
  const build = async (what: string, ...more: string[]) => {
    note(`building the ${what} image of ${image}`);
    const report = JSON.parse(
      await runTool(`build the ${what} image of "${image}"`, [
        ...selfCommand(),
        "build",
        "--json",
        "--plain-http",
        // Rows of a registry that nobody else sees are of no use to anybody.
        "--dedup-db",
        "none",
        ...more,
        direct,
      ], signal),
    ) as BuildReport;
    return report;
  };
  const built = await build("meta");
  const facts: ImageFacts = {
    workload: workload.name,
    reference: image,
    digest: built.source.digest,
    compressedBytes: sizeOf(built.layers),
    layers: built.layers.map(({ digest, size }) => ({ digest, size })),
    build: factsOf(built),
  };
  const prepared: Prepared = {
    workload,
    image,
    metaDigest: built.meta.digest,
    native: undefined,
    facts,
    nativeFailure: undefined,
  };
  if (!native) {
    await tidy(prepared, registry, repository, note, signal);
    return prepared;
  }
  const tag = "v1-native";
  try {
    const report = await build(
      "native",
      "--format",
      "overlaybd",
      "--tag",
      tag,
    );
    prepared.native = {
      image: `${repository}:${tag}`,
      metaDigest: report.meta.digest,
    };
    facts.native = {
      ...factsOf(report),
      layers: await nativeLayers(registry, repository, tag, signal),
    };
  } catch (error) {
    signal.throwIfAborted();
    prepared.nativeFailure = errorText(error);
    note(prepared.nativeFailure);
  }
  await tidy(prepared, registry, repository, note, signal);
  return prepared;
}

/** What is measured is what was built now, and nothing that was recorded elsewhere helps. */
async function tidy(
  { facts, metaDigest, native }: Prepared,
  { direct }: BenchRegistry,
  repository: string,
  note: (text: string) => void,
  signal: AbortSignal,
): Promise<void> {
  const deleted = await keepReferrers(
    { host: direct, repository, subject: facts.digest },
    ({ digest, artifactType }) =>
      digest === metaDigest || digest === native?.metaDigest ||
      // Those of another bench: nobody looks at them while there is a meta image.
      native === undefined && artifactType === NATIVE_ARTIFACT_TYPE,
    signal,
  );
  if (deleted.length === 0) return;
  note(`deleted from the registry, of other benches: ${deleted.join(", ")}`);
}

/**
 * The options of this command line that skopeo needs for an image of a registry.
 *
 * @param work For certificates, which skopeo takes from a directory of theirs.
 */
export async function sourceFlags(
  skopeo: string,
  { plainHttp, tlsSkipVerify, authFile, caFile }: RegistrySettings,
  work: string,
): Promise<string[]> {
  const host = /^docker:\/\/([^/]+)\//.exec(skopeo)?.[1];
  if (host === undefined) return [];
  // Plain HTTP is implied for loopback, as everywhere in obd.
  const isLoopback = caFile === undefined &&
    /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?$/.test(host);
  const isOpen = plainHttp || tlsSkipVerify || isLoopback;
  const certificates = `${work}/certificates`;
  if (caFile !== undefined) {
    await Deno.mkdir(certificates, { recursive: true });
    await Deno.copyFile(caFile, `${certificates}/ca.crt`);
  }
  return [
    ...(isOpen ? ["--src-tls-verify=false"] : []),
    ...(authFile === undefined ? [] : ["--src-authfile", authFile]),
    ...(caFile === undefined ? [] : ["--src-cert-dir", certificates]),
  ];
}

function sizeOf(layers: { size: number }[]): number {
  return layers.reduce((sum, layer) => sum + layer.size, 0);
}

function factsOf({ seconds, meta, layers }: BuildReport): BuildFacts {
  const layersReused = layers.filter((layer) => layer.reused).length;
  return { seconds, bytes: meta.size, layersReused, digest: meta.digest };
}

/** What is fetched of a native image are layers of its own. */
async function nativeLayers(
  { direct }: BenchRegistry,
  repository: string,
  tag: string,
  signal: AbortSignal,
): Promise<{ digest: string; size: number }[]> {
  const answer = await fetch(
    `http://${direct}/v2/${repository}/manifests/${tag}`,
    {
      headers: { accept: "application/vnd.oci.image.manifest.v1+json" },
      signal,
    },
  );
  const { layers } = await answer.json();
  return (layers as { digest: string; size: number }[]).map((
    { digest, size },
  ) => ({ digest, size }));
}
