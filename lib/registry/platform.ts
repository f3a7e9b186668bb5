/**
 * Platforms: parsing, normal forms, and the choice of a manifest from an index.
 *
 * Names and orders follow containerd/platforms (`database.go`, `compare.go`):
 * `x86_64` is amd64, `arm` means v7, `arm64` means v8; a machine also runs
 * images of lower variants, best first. Other than there, no image of another
 * architecture is ever chosen (386 on amd64, arm on arm64).
 */

import { NotFoundError, UsageError } from "../io/mod.ts";
import type { Descriptor, ImageIndex, Platform } from "./manifest.ts";

const ARCHITECTURES: Record<string, readonly [string, string?]> = {
  x86_64: ["amd64"],
  "x86-64": ["amd64"],
  aarch64: ["arm64"],
  i386: ["386"],
  i486: ["386"],
  i586: ["386"],
  i686: ["386"],
  armhf: ["arm", "v7"],
  armel: ["arm", "v6"],
};

/** Lower case, usual names, and no variant where it is the default one. */
export function normalizePlatform(platform: Platform): Platform {
  const os = platform.os.toLowerCase();
  const given = platform.architecture.toLowerCase();
  const [architecture, implied] = Object.hasOwn(ARCHITECTURES, given)
    ? ARCHITECTURES[given]!
    : [given, undefined];
  const variant = normalizeVariant(
    architecture,
    (platform.variant || implied || "").toLowerCase(),
  );
  const { variant: _variant, ...rest } = platform;
  return {
    ...rest,
    os: os === "macos" ? "darwin" : os,
    architecture,
    ...(variant ? { variant } : {}),
  };
}

function normalizeVariant(architecture: string, variant: string): string {
  const v = /^[0-9]/.test(variant) ? `v${variant}` : variant;
  if (architecture === "arm64" && (v === "v8" || v === "v8.0")) return "";
  if (architecture === "arm" && v === "") return "v7";
  if (architecture === "amd64" && v === "v1") return "";
  return v;
}

/**
 * Parses `OS/ARCH[/VARIANT]`.
 *
 * @throws {UsageError} If it has another form.
 */
export function parsePlatform(text: string): Platform {
  const parts = text.split("/");
  if (
    parts.length < 2 || parts.length > 3 ||
    !parts.every((part) => /^[A-Za-z0-9_.-]{1,64}$/.test(part))
  ) {
    throw new UsageError(
      `Bad platform "${
        text.slice(0, 200)
      }": expected OS/ARCH or OS/ARCH/VARIANT`,
    );
  }
  const [os, architecture, variant] = parts as [string, string, string?];
  return normalizePlatform({ os, architecture, ...(variant && { variant }) });
}

/** `OS/ARCH[/VARIANT]`. */
export function formatPlatform(platform: Platform): string {
  const { os, architecture, variant } = platform;
  return `${os || "unknown"}/${architecture || "unknown"}${
    variant ? `/${variant}` : ""
  }`;
}

/** Linux on this machine's architecture. */
export function hostPlatform(): Platform {
  return normalizePlatform({ os: "linux", architecture: Deno.build.arch });
}

/** Variants that a machine with `variant` runs, best first. */
function runnableVariants(architecture: string, variant: string): string[] {
  if (architecture === "amd64") {
    const level = variant === "" ? 1 : Number(/^v([0-9])$/.exec(variant)?.[1]);
    if (!(level >= 1)) return [variant];
    const list = [];
    for (let i = level; i > 1; i--) list.push(`v${i}`);
    return [...list, ""];
  }
  if (architecture === "arm") {
    const level = Number(/^v([5-8])$/.exec(variant)?.[1]);
    if (!(level >= 5)) return [variant];
    const list = [];
    for (let i = level; i >= 5; i--) list.push(`v${i}`);
    return list;
  }
  if (architecture === "arm64") {
    const match = /^v([89])(?:\.([0-9]))?$/.exec(variant || "v8");
    if (!match) return [variant];
    const list: string[] = [];
    const major = Number(match[1]);
    const minor = Number(match[2] ?? 0);
    for (let i = minor; i > 0; i--) list.push(`v${major}.${i}`);
    if (major === 9) {
      list.push("v9");
      // Armv9.n includes Armv8.(n + 5).
      for (let i = Math.min(9, minor + 5); i > 0; i--) list.push(`v8.${i}`);
    }
    return [...list, ""];
  }
  return variant === "" ? [""] : [variant, ""];
}

/** Whether an index entry is no image but a statement about one (BuildKit's provenance and SBOM). */
export function isAttestation(descriptor: Descriptor): boolean {
  const p = descriptor.platform;
  return descriptor.annotations?.["vnd.docker.reference.type"] ===
      "attestation-manifest" ||
    (p !== undefined && p.os === "unknown" && p.architecture === "unknown");
}

/** The images of an index, without attestations and other artifacts. */
export function indexImages(index: ImageIndex): Descriptor[] {
  return index.manifests.filter((d) => !isAttestation(d) && !d.artifactType);
}

/** How well `offered` suits `wanted`: 0 is best, undefined is not at all. */
export function matchPlatform(
  wanted: Platform,
  offered: Platform,
): number | undefined {
  const want = normalizePlatform(wanted);
  const have = normalizePlatform(offered);
  if (want.os !== have.os || want.architecture !== have.architecture) {
    return undefined;
  }
  const rank = runnableVariants(want.architecture, want.variant ?? "")
    .indexOf(have.variant ?? "");
  return rank < 0 ? undefined : rank;
}

/**
 * Picks the entry of an index that suits a platform best; of equal ones the first.
 *
 * An index whose only image names no platform gives that image: its config
 * says what it is.
 *
 * @throws {NotFoundError} Naming the platforms that are there.
 */
export function selectPlatform(
  index: ImageIndex,
  wanted: Platform = hostPlatform(),
): Descriptor {
  const images = indexImages(index);
  let best: Descriptor | undefined;
  let bestRank = Infinity;
  for (const image of images) {
    if (!image.platform) continue;
    const rank = matchPlatform(wanted, image.platform);
    if (rank !== undefined && rank < bestRank) {
      best = image;
      bestRank = rank;
    }
  }
  if (best) return best;
  if (images.length === 1 && !images[0]!.platform) return images[0]!;
  const offered = [
    ...new Set(
      images.map((d) => d.platform ? formatPlatform(d.platform) : "?"),
    ),
  ];
  throw new NotFoundError(
    `No image for ${formatPlatform(wanted)}: the index has ${
      offered.slice(0, 20).join(", ") || "no images"
    }`,
  );
}
