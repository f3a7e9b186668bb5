/** JSON of registries, layouts and configurations, and the small texts beside it. */

import { fromUtf8, utf8 } from "../../../lib/io/mod.ts";
import {
  parseDescriptor,
  parseImageConfig,
  parseManifest,
  parsePlatform,
  parseReference,
} from "../../../lib/registry/mod.ts";
import { parseChallenges } from "../../../lib/registry/challenge.ts";
import { parseLayoutIndex } from "../../../lib/registry/layout_reader.ts";
import { parseConfig } from "../../../cmd/config.ts";
import type { Mutant } from "../mutant.ts";
import type { Random } from "../random.ts";
import { must, type Seed, type Target } from "../target.ts";

/** What has surprised parsers before. */
const STRANGE: readonly unknown[] = [
  ...[null, true, false, 0, -1, 1.5, 1e308, -0, 2 ** 53, 2 ** 53 + 2, 2 ** 31],
  ...["", " ", "sha256:", `sha256:${"g".repeat(64)}`, "a".repeat(100_000)],
  ...["\0", "\ud800", "../../etc/passwd", "__proto__", "constructor", "1"],
  ...[[], {}, [[]], [null], { __proto__: null }, { length: -1 }],
  ...["application/vnd.oci.image.index.v1+json", "%n", "\u202e"],
];

type Json = unknown;

/** Every place in a document that can be replaced. */
function placesOf(
  json: Json,
  found: [container: Record<string, Json>, key: string][] = [],
): [Record<string, Json>, string][] {
  if (typeof json !== "object" || json === null) return found;
  for (const key of Object.keys(json)) {
    const container = json as Record<string, Json>;
    found.push([container, key]);
    placesOf(container[key], found);
  }
  return found;
}

/** Changes the document, not its text: what comes out is JSON mostly. */
function mutateJson(good: Json): (mutant: Mutant, random: Random) => void {
  return (mutant, random) => {
    const json = structuredClone(good);
    for (let n = random.length(4); n > 0; n--) {
      const places = placesOf(json);
      if (places.length === 0) break;
      const [container, key] = random.pick(places);
      const [other, otherKey] = random.pick(places);
      switch (random.below(7)) {
        case 0:
          delete container[key];
          break;
        case 1:
          container[key] = structuredClone(other[otherKey]);
          break;
        case 2:
          // Of an array that would be its length, or nothing.
          if (Array.isArray(container)) break;
          container[`${otherKey}${random.oneIn(2) ? "" : "x"}`] =
            structuredClone(container[key]);
          break;
        case 3:
          container[key] = [container[key], structuredClone(container[key])];
          break;
        case 4:
          if (typeof container[key] === "string") {
            const text = container[key];
            const at = random.below(text.length + 1);
            container[key] = text.slice(0, at) +
              String.fromCharCode(random.below(0x300)) +
              text.slice(at + random.below(3));
          } else if (typeof container[key] === "number") {
            container[key] = -container[key];
          }
          break;
        default:
          container[key] = structuredClone(random.pick(STRANGE));
      }
    }
    let text = JSON.stringify(json) ?? "null";
    if (random.oneIn(16)) {
      // A key that is there twice; a document as deep as it is long.
      text = random.oneIn(2)
        ? text.replace(/\{("[^"]*":[^,{}[\]]*)/, "{$1,$1")
        : text.replace(/[[{]/, "$&".repeat(20_000));
    }
    mutant.replace(new TextEncoder().encode(text));
  };
}

const digest = `sha256:${"ab".repeat(32)}`;
const layer = {
  mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
  digest,
  size: 1234,
  annotations: { "containerd.io/snapshot/overlaybd/version": "0.1.0" },
};
const manifest = {
  schemaVersion: 2,
  mediaType: "application/vnd.oci.image.manifest.v1+json",
  artifactType: "application/vnd.obd",
  config: {
    mediaType: "application/vnd.oci.image.config.v1+json",
    digest,
    size: 77,
    data: "e30=",
  },
  layers: [layer, { ...layer, urls: ["https://a.example/x"] }],
  subject: {
    ...layer,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
  },
  annotations: { a: "b" },
};
const index = {
  schemaVersion: 2,
  mediaType: "application/vnd.oci.image.index.v1+json",
  manifests: [
    {
      ...manifest.subject,
      platform: {
        os: "linux",
        architecture: "arm64",
        variant: "v8",
        "os.version": "1",
        "os.features": ["x"],
      },
      annotations: { "org.opencontainers.image.ref.name": "v1" },
    },
    { ...manifest.subject, artifactType: "x/y" },
  ],
};
const docker = {
  ...manifest,
  mediaType: "application/vnd.docker.distribution.manifest.v2+json",
};
const imageConfig = {
  created: "2024-01-02T03:04:05Z",
  architecture: "amd64",
  os: "linux",
  config: {
    Env: ["PATH=/bin"],
    Entrypoint: ["/bin/sh"],
    Labels: { a: "b" },
    ExposedPorts: { "80/tcp": {} },
  },
  rootfs: { type: "layers", diff_ids: [digest, digest] },
  history: [
    { created_by: "x", empty_layer: true },
    { created: "2024-01-02T03:04:05Z", comment: "y" },
  ],
};
/** overlaybd's global configuration with ours beside it. */
const serveConfig = {
  logConfig: { logLevel: 1, logPath: "/x" },
  cacheConfig: { cacheType: "file", cacheDir: "/x", cacheSizeGB: 4 },
  gzipCacheConfig: { enable: true, cacheDir: "/y", cacheSizeGB: 4 },
  credentialConfig: { mode: "file", path: "/z" },
  ioEngine: 0,
  download: { enable: true, delay: 600 },
  p2pConfig: { enable: false, address: "http://localhost:19145/d" },
  exporterConfig: { enable: true, port: 9863, uriPrefix: "/m" },
  enableAudit: true,
  images: [{ export: "a", image: "docker.io/library/b:c" }],
  nbd: { listen: "unix:/x" },
  api: { listen: "unix:/y" },
};

function jsonSeed(
  name: string,
  good: Json,
  read: (bytes: Uint8Array) => void,
): Seed {
  return {
    name,
    bytes: new TextEncoder().encode(JSON.stringify(good, undefined, 1)),
    mutate: mutateJson(good),
    read: ({ bytes }) => read(bytes),
  };
}

function textSeed(text: string, read: (text: string) => unknown): Seed {
  return {
    name: text,
    bytes: utf8(text),
    read: ({ bytes }) => void read(fromUtf8(bytes)),
  };
}

function checkManifest(bytes: Uint8Array): void {
  const parsed = parseManifest(bytes);
  const list = "layers" in parsed ? parsed.layers : parsed.manifests;
  for (const { digest, size } of list) {
    must(/^[a-z0-9]+([+._-][a-z0-9]+)*:[\w=-]+$/i.test(digest), "No digest");
    must(Number.isSafeInteger(size) && size >= 0, `Size is ${size}`);
  }
}

function seeds(): Seed[] {
  return [
    jsonSeed("manifest", manifest, checkManifest),
    jsonSeed("docker manifest", docker, checkManifest),
    jsonSeed("index", index, checkManifest),
    jsonSeed("image config", imageConfig, (b) => void parseImageConfig(b)),
    jsonSeed("index.json of a layout", index, (b) => void parseLayoutIndex(b)),
    jsonSeed("descriptor", layer, (bytes) => {
      const json = JSON.parse(new TextDecoder().decode(bytes));
      parseDescriptor("fuzz", json);
    }),
    jsonSeed("overlaybd.json", serveConfig, (bytes) => {
      const warnings: string[] = [];
      parseConfig(new TextDecoder().decode(bytes), "fuzz", warnings);
      must(warnings.every((w) => typeof w === "string"), "A warning is none");
    }),
    ...[
      `ghcr.io:443/a/b-c:tag@${digest}`,
      "[::1]:80/x",
      "oci:/a/b:c",
      "oci-archive:/a/b.tar:c",
      "docker://a/b",
      "localhost/x@sha256:abc",
    ].map((text) => textSeed(text, parseReference)),
    textSeed("linux/arm64/v8", parsePlatform),
    textSeed(
      'Bearer realm="https://x/y",service=a , Basic realm="q\\"x"',
      parseChallenges,
    ),
  ];
}

/** A descriptor comes parsed: text that is no JSON is no input of its. */
function withoutSyntaxErrors(seed: Seed): Seed {
  if (seed.name !== "descriptor") return seed;
  return {
    ...seed,
    read(input, random) {
      try {
        return seed.read(input, random);
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error;
      }
    },
  };
}

/** Targets of this file. */
export const JSON_TARGETS: Target[] = [{
  name: "json",
  summary:
    "manifests, indexes, image configs, layouts, overlaybd.json; references",
  weight: 100,
  load: () => Promise.resolve(seeds().map(withoutSyntaxErrors)),
}];
