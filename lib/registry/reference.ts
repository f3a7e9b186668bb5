/**
 * Image references.
 *
 * | form | meaning |
 * | --- | --- |
 * | `[docker://][HOST[:PORT]/]PATH[:TAG][@DIGEST]` | a registry, with Docker's short forms |
 * | `oci:DIR[:TAG]`, `oci:DIR@DIGEST` | an OCI layout directory |
 * | `oci-archive:FILE[:TAG]`, `oci-archive:FILE@DIGEST` | the same as one tar file |
 *
 * Grammar: distribution/reference (`reference/regexp.go`, `normalize.go`) and
 * OCI distribution-spec §Pulling manifests. As skopeo does, the first colon
 * after `oci:` ends the path. Its other transports are refused by name.
 */

import { isIP } from "node:net";
import { UsageError } from "../io/mod.ts";
import { checkDigest } from "./digest.ts";

/** An image in a registry. */
export interface RegistryReference {
  readonly kind: "registry";
  /** Name of the registry as people write it, lower case: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`. */
  readonly registry: string;
  /** Path in the registry, e.g. `library/alpine`. */
  readonly repository: string;
  /** Absent when only a digest was given; the digest wins where both are there. */
  readonly tag?: string;
  readonly digest?: string;
}

/** An image in an OCI layout directory or archive. */
export interface LayoutReference {
  readonly kind: "layout" | "archive";
  /** Path of the directory or file, as given. */
  readonly path: string;
  /** Value of `org.opencontainers.image.ref.name`; absent means "the only image". */
  readonly tag?: string;
  readonly digest?: string;
}

/** Where an image is. */
export type Reference = RegistryReference | LayoutReference;

const DOMAIN =
  /^(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:.]+\])(?::[0-9]{1,5})?$/;
const COMPONENT = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const TAG = /^\w[\w.-]{0,127}$/;
// OCI image-spec, annotations.md, org.opencontainers.image.ref.name.
const REF_NAME =
  /^[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*(?:\/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*$/;

/** Where skopeo, Podman and buildah find images that are in no registry and no OCI layout; `dir:5000/app` is a registry's. */
const OTHER_TRANSPORT =
  /^(containers-storage|dir|docker-archive|docker-daemon|ostree|sif|tarball):(?![0-9]+\/)/;

const REFERENCE_LENGTH_MAX = 4096;
const NAME_LENGTH_MAX = 255; // distribution/reference NameTotalLengthMax

/** Whether `text` may be a tag in a registry. */
export function isTag(text: string): boolean {
  return TAG.test(text);
}

/** Whether `text` may name an image in an OCI layout; every tag may. */
export function isRefName(text: string): boolean {
  return text.length <= 512 && (TAG.test(text) || REF_NAME.test(text));
}

/**
 * Parses a reference.
 *
 * @throws {UsageError} With what is wrong in it.
 * @throws {UnsupportedError} If its digest is of another algorithm than sha256.
 */
export function parseReference(text: string): Reference {
  if (text.length > REFERENCE_LENGTH_MAX) {
    throw new UsageError(
      `Reference is ${text.length} characters long, at most ${REFERENCE_LENGTH_MAX} are allowed`,
    );
  }
  // deno-lint-ignore no-control-regex -- control characters are what is refused
  if (/[\x00-\x1f\x7f]/.test(text)) {
    throw new UsageError("Reference has control characters");
  }
  if (text.startsWith("oci:")) return parseLayout("layout", text, 4);
  if (text.startsWith("oci-archive:")) {
    return parseLayout("archive", text, "oci-archive:".length);
  }
  // Else it would be a name on Docker Hub: docker.io/library/dir.
  const other = OTHER_TRANSPORT.exec(text)?.[0];
  if (other) {
    throw new UsageError(
      `Bad reference "${text}": "${other}" is not read; make a layout of it: skopeo copy ${text} oci:DIR:TAG`,
    );
  }
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(text);
  if (scheme && scheme[1] !== "docker") {
    throw new UsageError(
      `Bad reference "${text}": leave out "${
        scheme[0]
      }" (plain HTTP is chosen with --plain-http)`,
    );
  }
  return parseRegistry(text, scheme ? text.slice(scheme[0].length) : text);
}

function parseLayout(
  kind: "layout" | "archive",
  text: string,
  prefix: number,
): LayoutReference {
  let rest = text.slice(prefix);
  const fail = (problem: string): never => {
    throw new UsageError(`Bad reference "${text}": ${problem}`);
  };
  let digest: string | undefined;
  const at = /@([a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Za-z0-9=_-]+)$/.exec(rest);
  if (at) {
    digest = checkDigest(at[1]!);
    rest = rest.slice(0, at.index);
  }
  const colon = rest.indexOf(":");
  const path = colon < 0 ? rest : rest.slice(0, colon);
  if (path === "") fail("the path is missing");
  if (colon < 0) return { kind, path, ...(digest && { digest }) };
  const tag = rest.slice(colon + 1);
  if (!isRefName(tag)) fail(`"${tag}" cannot be a tag`);
  return { kind, path, tag, ...(digest && { digest }) };
}

function parseRegistry(text: string, name: string): RegistryReference {
  const fail = (problem: string): never => {
    throw new UsageError(`Bad reference "${text}": ${problem}`);
  };
  if (name === "") fail("it is empty");
  let rest = name;
  let digest: string | undefined;
  const at = rest.indexOf("@");
  if (at >= 0) {
    digest = checkDigest(rest.slice(at + 1));
    rest = rest.slice(0, at);
  }
  let tag: string | undefined;
  const colon = rest.lastIndexOf(":");
  // A colon before the last slash belongs to a port, one before "]" to an address.
  if (colon > rest.lastIndexOf("/") && colon > rest.lastIndexOf("]")) {
    tag = rest.slice(colon + 1);
    rest = rest.slice(0, colon);
    if (!TAG.test(tag)) fail(`"${tag}" cannot be a tag`);
  }
  const { registry, repository } = splitDomain(rest);
  if (registry === undefined) {
    if (/^[0-9a-f]{64}$/.test(rest)) {
      fail(
        "a bare 64-digit hex name is ambiguous; write a digest as NAME@sha256:…",
      );
    }
  } else {
    const problem = domainProblem(registry);
    if (problem) fail(problem);
  }
  const host = canonicalRegistry(registry ?? "docker.io");
  const path = host === "docker.io" && !repository.includes("/")
    ? `library/${repository}`
    : repository;
  if (repository === "") fail("the repository name is missing");
  if (path !== path.toLowerCase()) {
    fail(`repository name "${repository}" must be lower case`);
  }
  if (!path.split("/").every((part) => COMPONENT.test(part))) {
    fail(`"${repository}" cannot be a repository name`);
  }
  if (path.length > NAME_LENGTH_MAX) {
    fail(`the repository name is longer than ${NAME_LENGTH_MAX} characters`);
  }
  if (tag === undefined && digest === undefined) tag = "latest";
  return {
    kind: "registry",
    registry: host,
    repository: path,
    ...(tag !== undefined && { tag }),
    ...(digest !== undefined && { digest }),
  };
}

/** Docker's rule for which first components are a host (`reference/normalize.go` splitDockerDomain). */
function splitDomain(
  name: string,
): { registry: string | undefined; repository: string } {
  const slash = name.indexOf("/");
  const first = slash < 0 ? "" : name.slice(0, slash);
  return slash >= 0 && isHostText(first)
    ? { registry: first, repository: name.slice(slash + 1) }
    : { registry: undefined, repository: name };
}

function isHostText(text: string): boolean {
  return /[.:]/.test(text) || text === "localhost" ||
    text !== text.toLowerCase();
}

function domainProblem(domain: string): string | undefined {
  if (!DOMAIN.test(domain)) return `"${domain}" cannot be a registry host`;
  const { host, port } = splitHostPort(domain);
  if (host.startsWith("[") && isIP(host.slice(1, -1)) !== 6) {
    return `"${host}" is not an IPv6 address`;
  }
  if (port !== undefined && (port < 1 || port > 65535)) {
    return `port ${port} is out of range`;
  }
  return undefined;
}

function canonicalRegistry(domain: string): string {
  const lower = domain.toLowerCase();
  if (lower === "index.docker.io" || lower === "registry-1.docker.io") {
    return "docker.io";
  }
  // "HOST/app" is known for a host by its case alone.
  return isHostText(lower) ? lower : domain;
}

/** Splits `HOST[:PORT]`; an IPv6 host keeps its brackets. */
export function splitHostPort(
  registry: string,
): { host: string; port: number | undefined } {
  const match = /^(\[[^\]]*\]|[^:]*)(?::([0-9]+))?$/.exec(registry);
  if (!match) return { host: registry, port: undefined };
  return {
    host: match[1]!,
    port: match[2] === undefined ? undefined : Number(match[2]),
  };
}

/** The `HOST[:PORT]` that answers API requests; Docker Hub's is not its name. */
export function apiHost(registry: string): string {
  return registry === "docker.io" ? "registry-1.docker.io" : registry;
}

/** What {@linkcode Repository.resolve} is asked for: the digest, else the tag, else "" (a layout's only image). */
export function referenceTarget(reference: Reference): string {
  return reference.digest ?? reference.tag ?? "";
}

/** The reference without tag and digest, for people: `docker.io/library/alpine`, `oci:/dir`. */
export function formatRepository(reference: Reference): string {
  switch (reference.kind) {
    case "registry":
      return `${reference.registry}/${reference.repository}`;
    case "layout":
      return `oci:${reference.path}`;
    case "archive":
      return `oci-archive:${reference.path}`;
  }
}

/** The full text of a reference; `parseReference` of it gives the same reference. */
export function formatReference(reference: Reference): string {
  const tag = reference.tag === undefined ? "" : `:${reference.tag}`;
  const digest = reference.digest === undefined ? "" : `@${reference.digest}`;
  return `${formatRepository(reference)}${tag}${digest}`;
}

/** The same repository with another tag, or another digest; the old ones are dropped. */
export function withTarget<R extends Reference>(
  reference: R,
  target: { tag?: string; digest?: string },
): R {
  const { tag: _tag, digest: _digest, ...rest } = reference;
  return { ...rest, ...target } as R;
}
