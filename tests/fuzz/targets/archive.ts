/** OCI archives and layouts: a file that changes under its name. */

import { MediaType } from "../../../lib/registry/mod.ts";
import {
  ArchiveRepository,
  LayoutRepository,
} from "../../../lib/registry/mod.ts";
import { digestOf } from "../layers_made.ts";
import { putTarChecksum } from "../seeds.ts";
import { header, padded } from "../../tar/tar_bytes.ts";
import { concatBytes } from "../../../lib/io/mod.ts";
import type { Mutant } from "../mutant.ts";
import { must, type Seed, type Target } from "../target.ts";

const encode = (json: unknown) =>
  new TextEncoder().encode(JSON.stringify(json));

/** The files of a layout with one image. */
function layoutFiles(): [path: string, bytes: Uint8Array<ArrayBuffer>][] {
  const config = encode({
    os: "linux",
    architecture: "amd64",
    rootfs: { type: "layers", diff_ids: [] },
  });
  const describe = (mediaType: string, bytes: Uint8Array) => ({
    mediaType,
    digest: digestOf(bytes),
    size: bytes.length,
  });
  const manifest = encode({
    schemaVersion: 2,
    mediaType: MediaType.ociManifest,
    config: describe(MediaType.ociConfig, config),
    layers: [],
  });
  const index = encode({
    schemaVersion: 2,
    manifests: [{
      ...describe(MediaType.ociManifest, manifest),
      annotations: { "org.opencontainers.image.ref.name": "v1" },
    }],
  });
  const blob = (bytes: Uint8Array<ArrayBuffer>) =>
    [`blobs/sha256/${digestOf(bytes).slice(7)}`, bytes] as [
      string,
      Uint8Array<ArrayBuffer>,
    ];
  return [
    ["oci-layout", encode({ imageLayoutVersion: "1.0.0" })],
    ["index.json", index],
    blob(manifest),
    blob(config),
  ];
}

async function scratch(): Promise<string> {
  const directory = await Deno.makeTempDir({ prefix: "obd-fuzz-" });
  globalThis.addEventListener("unload", () => {
    try {
      Deno.removeSync(directory, { recursive: true });
    } catch {
      // Gone already.
    }
  });
  return directory;
}

/** Resolves the image and reads what it names; a blob must be what its name says. */
async function useRepository(
  repository: ArchiveRepository | LayoutRepository,
): Promise<void> {
  const { bytes, descriptor } = await repository.resolve("v1");
  must(digestOf(bytes) === descriptor.digest, "The manifest is another");
  await repository.referrers(`sha256:${"ab".repeat(32)}`);
}

async function seeds(): Promise<Seed[]> {
  const directory = await scratch();
  const files = layoutFiles();
  const archive = concatBytes([
    ...files.flatMap(([name, bytes]) => [
      header({ name, size: bytes.length }),
      padded(bytes),
    ]),
    new Uint8Array(1024),
  ]);
  const layout = `${directory}/layout`;
  for (const [name, bytes] of files) {
    const path = `${layout}/${name}`;
    await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    await Deno.writeFile(path, bytes);
  }
  const heads: number[] = [];
  for (let at = 0; at < archive.length - 1024;) {
    heads.push(at);
    const size = parseInt(
      new TextDecoder().decode(archive.subarray(at + 124, at + 135)),
      8,
    );
    at += 512 + Math.ceil(size / 512) * 512;
  }
  return [
    {
      name: "archive",
      bytes: archive,
      hot: heads.map((at) => [at, at + 512] as const),
      repair(mutant: Mutant) {
        for (const at of heads) putTarChecksum(mutant, at);
      },
      async read({ bytes }) {
        const path = `${directory}/a.tar`;
        await Deno.writeFile(path, bytes);
        await using repository = await ArchiveRepository.open(path);
        await useRepository(repository);
      },
    },
    ...files.map(([name, bytes]): Seed => ({
      name: `layout: ${name.slice(0, 20)}`,
      bytes,
      async read({ bytes: input }) {
        const path = `${layout}/${name}`;
        try {
          await Deno.writeFile(path, input);
          await using repository = await LayoutRepository.open(layout);
          await useRepository(repository);
        } finally {
          await Deno.writeFile(path, bytes);
        }
      },
    })),
  ];
}

/** Targets of this file. */
export const ARCHIVE_TARGETS: Target[] = [{
  name: "archive",
  summary: "OCI archives and layouts",
  weight: 15,
  load: seeds,
}];
