import { deepEqual, equal, throws } from "node:assert/strict";
import {
  checkDigest,
  type Descriptor,
  DigestVerifier,
  EMPTY_DIGEST,
  formatPlatform,
  hostPlatform,
  type ImageIndex,
  type ImageManifest,
  indexImages,
  layerCompression,
  MANIFEST_SIZE_MAX,
  matchPlatform,
  MediaType,
  parseImageConfig,
  parseManifest,
  parsePlatform,
  selectPlatform,
} from "../../lib/registry/mod.ts";

const D = `sha256:${"ab".repeat(32)}`;
const encode = (x: unknown) => new TextEncoder().encode(JSON.stringify(x));
const layer = {
  mediaType: MediaType.ociLayerGzip,
  digest: D,
  size: 5,
  annotations: { a: "b" },
};
const image = {
  schemaVersion: 2,
  mediaType: MediaType.ociManifest,
  config: { mediaType: MediaType.ociConfig, digest: D, size: 2 },
  layers: [layer],
  subject: { mediaType: MediaType.ociManifest, digest: D, size: 9 },
  artifactType: "application/x",
  annotations: { k: "v" },
  unknownField: [1],
};

Deno.test("parseManifest() gives a typed view and keeps the raw JSON", () => {
  const manifest = parseManifest(
    encode(image),
    "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
  ) as ImageManifest;
  equal(manifest.kind, "image");
  deepEqual(manifest.layers, [layer]);
  equal(manifest.subject?.size, 9);
  equal(manifest.artifactType, "application/x");
  deepEqual(manifest.annotations, { k: "v" });
  deepEqual(manifest.raw.unknownField, [1]);
});

Deno.test("parseManifest() takes nulls of Go programs and a missing mediaType", () => {
  const { mediaType: _, ...rest } = image;
  const manifest = parseManifest(encode({
    ...rest,
    annotations: null,
    subject: null,
    layers: null,
  })) as ImageManifest;
  equal(manifest.mediaType, MediaType.ociManifest);
  deepEqual(manifest.layers, []);
});

Deno.test("parseManifest() refuses what breaks the schema, naming the field", () => {
  const cases: [change: Record<string, unknown>, field: string][] = [
    [{ schemaVersion: 3 }, "schemaVersion"],
    [{ config: undefined }, "config"],
    [{ config: { ...image.config, size: -1 } }, "config.size"],
    [{ config: { ...image.config, size: 1.5 } }, "config.size"],
    [{ config: { ...image.config, size: "2" } }, "config.size"],
    [{ config: { ...image.config, size: 2 ** 60 } }, "config.size"],
    [{ layers: [{ ...layer, digest: "sha256:xyz" }] }, "layers.0.digest"],
    [{ layers: [{ ...layer, digest: "../../etc" }] }, "layers.0.digest"],
    [
      { layers: [{ ...layer, annotations: { a: 1 } }] },
      "layers.0.annotations.a",
    ],
    [{ layers: Array(1001).fill(layer) }, "layers"],
    [{ layers: {} }, "layers"],
    [{ manifests: [] }, "manifests"],
    [{ mediaType: MediaType.dockerManifest }, "mediaType"],
  ];
  for (const [change, field] of cases) {
    throws(
      () =>
        parseManifest(encode({ ...image, ...change }), MediaType.ociManifest),
      { name: "FormatError", field },
      field,
    );
  }
});

Deno.test("parseManifest() refuses what is no JSON object or too large", () => {
  for (const text of ["", "[]", "null", "1", "{", '"x"', "\xff"]) {
    const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
    throws(() => parseManifest(bytes), { name: "FormatError" }, text);
  }
  throws(() => parseManifest(new Uint8Array(MANIFEST_SIZE_MAX + 1)), {
    name: "FormatError",
    field: "size",
  });
});

Deno.test("parseManifest() refuses schema 1, unknown types and sha512 by name", () => {
  throws(() => parseManifest(encode({ schemaVersion: 1, fsLayers: [] })), {
    name: "UnsupportedError",
    message: /schema 1/,
  });
  throws(
    () =>
      parseManifest(
        encode({ schemaVersion: 2 }),
        MediaType.dockerSchema1Signed,
      ),
    {
      name: "UnsupportedError",
      message: /schema 1/,
    },
  );
  throws(
    () => parseManifest(encode({ schemaVersion: 2, mediaType: "text/odd" })),
    { name: "UnsupportedError", message: /"text\/odd"/ },
  );
  const config = { ...image.config, digest: `sha512:${"a".repeat(128)}` };
  throws(() => parseManifest(encode({ ...image, config })), {
    name: "UnsupportedError",
    message: /sha512/,
  });
});

Deno.test("parseImageConfig() reads diffIDs, platform and history", () => {
  const config = parseImageConfig(encode({
    os: "linux",
    architecture: "arm",
    variant: "v6",
    rootfs: { type: "layers", diff_ids: [D] },
    history: [{ created_by: "x", empty_layer: true, comment: null }],
    config: { Env: ["A=b"] },
  }));
  deepEqual(config.diffIds, [D]);
  equal(formatPlatform(config.platform), "linux/arm/v6");
  deepEqual(config.history, [{ created_by: "x", empty_layer: true }]);
  deepEqual(config.raw.config, { Env: ["A=b"] });
  for (const rootfs of [undefined, {}, { diff_ids: ["x"] }, { diff_ids: {} }]) {
    throws(() => parseImageConfig(encode({ rootfs })), { name: "FormatError" });
  }
});

Deno.test("layerCompression() knows the layer types and refuses others by name", () => {
  equal(layerCompression(MediaType.ociLayer), "none");
  equal(layerCompression(MediaType.dockerLayerGzip), "gzip");
  equal(layerCompression(MediaType.ociLayerZstd), "zstd");
  for (
    const [type, why] of [
      ["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", /not kept/],
      ["application/vnd.oci.image.layer.nondistributable.v1.tar", /not kept/],
      ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", /encrypted/],
      ["application/x-odd", /"application\/x-odd"/],
      ["constructor", /"constructor"/],
    ] as const
  ) {
    throws(() => layerCompression(type), {
      name: "UnsupportedError",
      message: why,
    });
  }
});

function indexOf(...platforms: string[]): ImageIndex {
  return parseManifest(encode({
    schemaVersion: 2,
    mediaType: MediaType.ociIndex,
    manifests: platforms.map((text, i) => {
      const [os, architecture, variant] = text.split("/");
      return {
        mediaType: MediaType.ociManifest,
        digest: `sha256:${String(i).padStart(64, "0")}`,
        size: 1,
        ...(text === "-" ? {} : { platform: { os, architecture, variant } }),
      };
    }),
  })) as ImageIndex;
}

const chosen = (d: Descriptor) => Number(d.digest.slice(7));

Deno.test("selectPlatform() picks the best variant", () => {
  const cases: [wanted: string, offered: string[], want: number | undefined][] =
    [
      ["linux/amd64", ["linux/arm64", "linux/amd64"], 1],
      ["linux/x86_64", ["linux/amd64/v2", "linux/amd64"], 1],
      ["linux/amd64/v3", ["linux/amd64", "linux/amd64/v2"], 1],
      ["linux/amd64", ["linux/amd64/v2"], undefined],
      ["linux/amd64", ["linux/386"], undefined],
      ["linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1],
      ["linux/aarch64", ["linux/arm64"], 0],
      ["linux/arm64/v9", ["linux/arm64"], 0],
      ["linux/arm", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], 1],
      ["linux/arm/v8", ["linux/arm/v5", "linux/arm"], 1],
      ["linux/arm/v6", ["linux/arm/v7"], undefined],
      ["linux/arm64", ["linux/arm/v7"], undefined],
      ["linux/riscv64", ["linux/riscv64", "linux/riscv64"], 0],
      ["windows/amd64", ["linux/amd64"], undefined],
      ["linux/amd64", ["-"], 0],
    ];
  for (const [wanted, offered, want] of cases) {
    const label = `${wanted} of ${offered}`;
    const index = indexOf(...offered);
    if (want === undefined) {
      throws(
        () => selectPlatform(index, parsePlatform(wanted)),
        { name: "NotFoundError", message: new RegExp(offered[0]!) },
        label,
      );
    } else {equal(
        chosen(selectPlatform(index, parsePlatform(wanted))),
        want,
        label,
      );}
  }
});

Deno.test("selectPlatform() passes over attestations", () => {
  const index = indexOf("unknown/unknown", "linux/amd64", "linux/amd64");
  index.manifests[1]!.annotations = {
    "vnd.docker.reference.type": "attestation-manifest",
  };
  equal(chosen(selectPlatform(index, parsePlatform("linux/amd64"))), 2);
  equal(indexImages(index).length, 1);
});

Deno.test("parsePlatform() and hostPlatform()", () => {
  equal(formatPlatform(parsePlatform("Linux/AArch64/v8")), "linux/arm64");
  equal(hostPlatform().os, "linux");
  equal(matchPlatform(hostPlatform(), hostPlatform()) !== undefined, true);
  for (const bad of ["linux", "a/b/c/d", "/x", "linux/", "li nux/amd64"]) {
    throws(() => parsePlatform(bad), { name: "UsageError" }, bad);
  }
});

Deno.test("DigestVerifier stops at the first byte too many; checkDigest()", () => {
  const verifier = new DigestVerifier("x", EMPTY_DIGEST, 3);
  verifier.update(new Uint8Array(3));
  throws(() => verifier.update(new Uint8Array(1)), { name: "IntegrityError" });
  throws(() => new DigestVerifier("x", EMPTY_DIGEST, 1).finish(), {
    name: "IntegrityError",
    message: "Size of x is 0 bytes, expected 1 bytes",
  });
  new DigestVerifier("x", EMPTY_DIGEST, 0).finish();
  equal(checkDigest(EMPTY_DIGEST), EMPTY_DIGEST);
  for (const bad of ["", "sha256:", EMPTY_DIGEST + "0", ` ${EMPTY_DIGEST}`]) {
    throws(() => checkDigest(bad), { name: "UsageError" });
  }
});
