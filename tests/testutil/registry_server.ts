/**
 * A small registry in this process (OCI distribution-spec 1.1): pull with
 * ranges, push in all ways, mounts, tags, referrers, token and Basic
 * authentication, redirects to a second origin with signed URLs that expire,
 * a request log, and faults on purpose. It listens on loopback.
 *
 * Used by the tests and as the registry of `deno task demo`; nothing in here
 * knows a test framework. Blobs are kept in memory or as files, everything
 * else in memory.
 */

import {
  type BlobStore,
  digestOf,
  DirectoryStore,
  MemoryStore,
  type StoredUpload,
} from "./registry_store.ts";
import { type AuthMode, problem, TokenServer } from "./registry_auth.ts";
import {
  type Fault,
  FaultPlan,
  type LoggedRequest,
  spoilBody,
} from "./registry_faults.ts";

export type { AuthMode, Users } from "./registry_auth.ts";
export type { Fault, FaultRule, LoggedRequest } from "./registry_faults.ts";

/** Options of {@linkcode RegistryServer.start}. */
export interface RegistryServerOptions {
  port?: number;
  /** Keep blobs as files there. */
  directory?: string;
  auth?: AuthMode;
  /** Answer blob reads with 307 to a second origin. */
  redirect?: boolean;
  /** Without it, referrers are found by their tag only, and `OCI-Subject` is not sent. */
  referrersApi?: boolean;
  /** Entries of a page of referrers; for paging. */
  referrersPageSize?: number;
  /** Upload locations as full URLs. */
  absoluteLocations?: boolean;
  /** Refuse uploads that do not say their length (411). */
  requireLength?: boolean;
  tls?: { cert: string; key: string };
}

interface StoredManifest {
  bytes: Uint8Array<ArrayBuffer>;
  mediaType: string;
}

interface Repo {
  blobs: Set<string>;
  manifests: Map<string, StoredManifest>;
  tags: Map<string, string>;
}

interface Upload {
  stored: StoredUpload;
  /** Changes with each answer, so that a client must use the newest location. */
  state: number;
}

/** Context of one request on its way through the routes. */
interface Call {
  request: Request;
  url: URL;
  log: LoggedRequest;
  fault: Fault | undefined;
}

const INDEX_TYPE = "application/vnd.oci.image.index.v1+json";
const DIGEST = /^sha256:[0-9a-f]{64}$/;

/** A registry that listens until it is disposed of. */
export class RegistryServer implements AsyncDisposable {
  /** All requests so far, oldest first. */
  readonly requests: LoggedRequest[] = [];
  /** What will go wrong. */
  readonly faults = new FaultPlan();
  /** May be changed between requests. */
  options: RegistryServerOptions;
  readonly #store: BlobStore;
  readonly #repos = new Map<string, Repo>();
  readonly #uploads = new Map<string, Upload>();
  readonly #auth = new TokenServer();
  readonly #closing = Promise.withResolvers<void>();
  #signature = 1;
  #counter = 0;
  #api!: Deno.HttpServer<Deno.NetAddr>;
  #storage!: Deno.HttpServer<Deno.NetAddr>;

  private constructor(options: RegistryServerOptions) {
    this.options = options;
    this.#store = options.directory === undefined
      ? new MemoryStore()
      : new DirectoryStore(options.directory);
  }

  /** Starts listening on 127.0.0.1. */
  // deno-lint-ignore require-await -- callers should not rely on it being immediate
  static async start(
    options: RegistryServerOptions = {},
  ): Promise<RegistryServer> {
    const server = new RegistryServer(options);
    server.#api = server.#listen("registry", options.port ?? 0);
    server.#storage = server.#listen("storage", 0);
    return server;
  }

  #listen(
    origin: LoggedRequest["origin"],
    port: number,
  ): Deno.HttpServer<Deno.NetAddr> {
    return Deno.serve({
      hostname: "127.0.0.1",
      port,
      onListen() {},
      // Faults break connections; that is no news.
      onError: () => new Response("broken", { status: 500 }),
      ...this.options.tls,
    }, (request) => this.#handle(request, origin)) as Deno.HttpServer<
      Deno.NetAddr
    >;
  }

  /** `127.0.0.1:PORT`, as in references. */
  get host(): string {
    return `127.0.0.1:${this.#api.addr.port}`;
  }

  /** Host of the second origin. */
  get storageHost(): string {
    return `127.0.0.1:${this.#storage.addr.port}`;
  }

  get #scheme(): string {
    return this.options.tls ? "https" : "http";
  }

  // ---- what a test or demo puts in and looks at -----------------------------

  /** Puts a blob into a repository. */
  async putBlob(
    repository: string,
    bytes: Uint8Array,
    mediaType = "application/octet-stream",
  ): Promise<{ mediaType: string; digest: string; size: number }> {
    const digest = await this.#store.put(bytes);
    this.#repo(repository).blobs.add(digest);
    return { mediaType, digest, size: bytes.length };
  }

  /** Puts a manifest, unchecked, under its digest and a tag. */
  putManifest(
    repository: string,
    tag: string | undefined,
    document: unknown,
    mediaType: string,
  ): { mediaType: string; digest: string; size: number } {
    const bytes = document instanceof Uint8Array
      ? new Uint8Array(document)
      : new TextEncoder().encode(JSON.stringify(document));
    const digest = digestOf(bytes);
    const repo = this.#repo(repository);
    repo.manifests.set(digest, { bytes, mediaType });
    if (tag !== undefined) repo.tags.set(tag, digest);
    return { mediaType, digest, size: bytes.length };
  }

  /** Takes a blob out of a repository. */
  removeBlob(repository: string, digest: string): void {
    this.#repo(repository).blobs.delete(digest);
  }

  /** Tags of a repository with their digests. */
  tags(repository: string): Map<string, string> {
    return this.#repo(repository).tags;
  }

  /** Whether a repository has a blob. */
  hasBlob(repository: string, digest: string): boolean {
    return this.#repo(repository).blobs.has(digest);
  }

  /** All signed URLs given out so far stop working. */
  expireUrls(): void {
    this.#signature++;
  }

  /** All tokens given out so far stop working. */
  revokeTokens(): void {
    this.#auth.revoke();
  }

  /** The log's lines as `METHOD path status`, for comparing. */
  summary(): string[] {
    return this.requests.map((r) => `${r.method} ${r.path} ${r.status}`);
  }

  /** Stops; what hangs is let go. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.resolve();
    for (const { stored } of this.#uploads.values()) await stored.discard();
    await Promise.all([this.#api.shutdown(), this.#storage.shutdown()]);
  }

  #repo(name: string): Repo {
    let repo = this.#repos.get(name);
    if (!repo) {
      repo = { blobs: new Set(), manifests: new Map(), tags: new Map() };
      this.#repos.set(name, repo);
    }
    return repo;
  }

  // ---- requests ---------------------------------------------------------------

  async #handle(
    request: Request,
    listener: LoggedRequest["origin"],
  ): Promise<Response> {
    const url = new URL(request.url);
    const log: LoggedRequest = {
      method: request.method,
      path: url.pathname,
      query: url.search,
      origin: url.pathname === "/auth/token" ? "token" : listener,
      range: request.headers.get("range"),
      authorization: request.headers.get("authorization"),
      status: 0,
    };
    this.requests.push(log);
    const fault = this.faults.take(log);
    if (fault) log.fault = fault.kind;
    const response = await this.#withFault({ request, url, log, fault });
    log.status = response.status;
    return response;
  }

  async #withFault(call: Call): Promise<Response> {
    const { fault } = call;
    if (fault?.kind === "status") {
      await call.request.body?.cancel();
      return new Response(fault.body ?? null, {
        status: fault.status,
        headers: fault.headers ?? {},
      });
    }
    if (fault?.kind === "silence") await this.#closing.promise;
    if (fault?.kind === "hold") {
      await Promise.race([fault.until, this.#closing.promise]);
    }
    if (fault?.kind === "delay") {
      await new Promise((resolve) => setTimeout(resolve, fault.milliseconds));
    }
    return await this.#route(call);
  }

  get #mode(): AuthMode {
    return this.options.auth ?? { kind: "none" };
  }

  #refuse(
    request: Request,
    repository: string | undefined,
    action: "pull" | "push",
  ): Response | undefined {
    const realm = `${this.#scheme}://${this.host}/auth/token`;
    return this.#auth.refuse(request, this.#mode, realm, repository, action);
  }

  #route(call: Call): Promise<Response> | Response {
    const { url, request, log } = call;
    if (log.origin === "token") return this.#auth.answer(request, this.#mode);
    if (log.origin === "storage") return this.#storageBlob(call);
    if (url.pathname === "/v2/" || url.pathname === "/v2") {
      const refusal = this.#refuse(request, undefined, "pull");
      return refusal ?? Response.json({});
    }
    const match =
      /^\/v2\/(.+?)\/(manifests|blobs\/uploads|blobs|tags|referrers)\/(.*)$/
        .exec(url.pathname);
    if (!match) return problem(404, "UNSUPPORTED");
    const [, name, kind, rest] = match as unknown as [
      string,
      string,
      string,
      string,
    ];
    const isRead = request.method === "GET" || request.method === "HEAD";
    const isUpload = kind === "blobs/uploads";
    const refusal = this.#refuse(
      request,
      name,
      isRead && !isUpload ? "pull" : "push",
    );
    if (refusal) return refusal;
    switch (kind) {
      case "manifests":
        return isRead
          ? this.#getManifest(call, name, rest)
          : this.#putManifestRequest(call, name, rest);
      case "blobs/uploads":
        return this.#uploadRoute(call, name, rest);
      case "blobs":
        return this.#getBlob(call, name, rest);
      case "tags":
        return Response.json({ name, tags: [...this.#repo(name).tags.keys()] });
      default:
        return this.#referrers(call, name, rest);
    }
  }

  // ---- manifests --------------------------------------------------------------

  #getManifest(call: Call, name: string, reference: string): Response {
    const repo = this.#repo(name);
    const digest = DIGEST.test(reference)
      ? reference
      : repo.tags.get(reference) ?? "";
    const manifest = repo.manifests.get(digest);
    if (!manifest) return problem(404, "MANIFEST_UNKNOWN");
    const { fault } = call;
    let bytes = manifest.bytes;
    if (fault?.kind === "corrupt") {
      bytes = bytes.slice();
      bytes[fault.at]! ^= 0x01;
    }
    return new Response(call.request.method === "HEAD" ? null : bytes, {
      headers: {
        "content-type": manifest.mediaType,
        "content-length": String(bytes.length),
        "docker-content-digest": digest,
      },
    });
  }

  async #putManifestRequest(
    call: Call,
    name: string,
    reference: string,
  ): Promise<Response> {
    const { request } = call;
    if (request.method !== "PUT") return problem(405, "UNSUPPORTED");
    const repo = this.#repo(name);
    const bytes = new Uint8Array(await request.arrayBuffer());
    const digest = digestOf(bytes);
    if (DIGEST.test(reference) && reference !== digest) {
      return problem(400, "DIGEST_INVALID");
    }
    const document = JSON.parse(new TextDecoder().decode(bytes));
    const blobs = [document.config, ...document.layers ?? []].filter(Boolean);
    const lacking = blobs.find((b) => !repo.blobs.has(b.digest));
    if (lacking) return problem(400, "MANIFEST_BLOB_UNKNOWN");
    const children = (document.manifests ?? []) as { digest: string }[];
    const isFallback = /^sha256-[0-9a-f]{64}$/.test(reference);
    if (!isFallback && children.some((c) => !repo.manifests.has(c.digest))) {
      return problem(400, "MANIFEST_UNKNOWN");
    }
    repo.manifests.set(digest, {
      bytes,
      mediaType: request.headers.get("content-type") ?? "",
    });
    if (!DIGEST.test(reference)) repo.tags.set(reference, digest);
    const knowsSubject = document.subject &&
      (this.options.referrersApi ?? true);
    return new Response(null, {
      status: 201,
      headers: {
        location: `/v2/${name}/manifests/${digest}`,
        "docker-content-digest": digest,
        ...(knowsSubject ? { "oci-subject": document.subject.digest } : {}),
      },
    });
  }

  #referrers(call: Call, name: string, digest: string): Response {
    if (!(this.options.referrersApi ?? true)) {
      return problem(404, "UNSUPPORTED");
    }
    const wanted = call.url.searchParams.get("artifactType");
    const all: Record<string, unknown>[] = [];
    for (const [own, { bytes, mediaType }] of this.#repo(name).manifests) {
      const document = JSON.parse(new TextDecoder().decode(bytes));
      if (document.subject?.digest !== digest) continue;
      const artifactType = document.artifactType ?? document.config?.mediaType;
      if (wanted !== null && artifactType !== wanted) continue;
      all.push({
        mediaType,
        digest: own,
        size: bytes.length,
        artifactType,
        ...(document.annotations && { annotations: document.annotations }),
      });
    }
    const first = Number(call.url.searchParams.get("from") ?? 0);
    const end = first + (this.options.referrersPageSize ?? Infinity);
    const next = new URL(call.url);
    next.searchParams.set("from", String(end));
    return new Response(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: INDEX_TYPE,
        manifests: all.slice(first, end),
      }),
      {
        headers: {
          "content-type": INDEX_TYPE,
          ...(wanted === null ? {} : { "oci-filters-applied": "artifactType" }),
          ...(end < all.length
            ? { link: `<${next.pathname}${next.search}>; rel="next"` }
            : {}),
        },
      },
    );
  }

  // ---- blobs ------------------------------------------------------------------

  async #getBlob(
    call: Call,
    name: string,
    digest: string,
  ): Promise<Response> {
    if (call.request.method !== "GET" && call.request.method !== "HEAD") {
      return problem(405, "UNSUPPORTED");
    }
    const isKnown = this.#repo(name).blobs.has(digest);
    if (!isKnown) return problem(404, "BLOB_UNKNOWN");
    if (!this.options.redirect) return await this.#serveBlob(call, digest);
    const location =
      `${this.#scheme}://${this.storageHost}/${digest}?signature=${this.#signature}`;
    return new Response(null, { status: 307, headers: { location } });
  }

  async #storageBlob(call: Call): Promise<Response> {
    const signature = call.url.searchParams.get("signature");
    if (signature !== String(this.#signature)) {
      return new Response("<Error>Request has expired</Error>", {
        status: 403,
      });
    }
    return await this.#serveBlob(call, call.url.pathname.slice(1));
  }

  async #serveBlob(call: Call, digest: string): Promise<Response> {
    const size = await this.#store.size(digest);
    if (size === undefined) return problem(404, "BLOB_UNKNOWN");
    const { fault, request } = call;
    const headers = new Headers({
      "content-type": "application/octet-stream",
      "docker-content-digest": digest,
      "accept-ranges": "bytes",
    });
    const range = fault?.kind === "ignore-range"
      ? null
      : parseRange(request.headers.get("range"), size);
    if (range === "unsatisfiable") {
      headers.set("content-range", `bytes */${size}`);
      return new Response(null, { status: 416, headers });
    }
    let [start, end] = range ?? [0, size];
    if (fault?.kind === "shift-range" && range) {
      start = Math.max(0, start + fault.by);
      end = Math.min(size, end + fault.by);
    }
    if (fault?.kind === "cut-range" && range) {
      end = Math.min(end, start + fault.bytes);
    }
    if (range) {
      headers.set("content-range", `bytes ${start}-${end - 1}/${size}`);
    }
    const shown = fault?.kind === "shorten"
      ? Math.min(fault.bytes, end - start)
      : end - start;
    headers.set("content-length", String(shown));
    const status = range ? 206 : 200;
    if (request.method === "HEAD") {
      return new Response(null, { status, headers });
    }
    const body = spoilBody(
      this.#store.read(digest, start, end),
      fault,
      this.#closing.promise,
    );
    return new Response(ReadableStream.from(body), { status, headers });
  }

  // ---- uploads ----------------------------------------------------------------

  async #uploadRoute(
    call: Call,
    name: string,
    id: string,
  ): Promise<Response> {
    const { request, url } = call;
    if (id === "") {
      return request.method === "POST"
        ? await this.#startUpload(call, name)
        : problem(405, "UNSUPPORTED");
    }
    const upload = this.#uploads.get(id);
    const isStale = url.searchParams.get("state") !== String(upload?.state);
    if (!upload || (isStale && request.method !== "GET")) {
      await request.body?.cancel();
      return problem(404, "BLOB_UPLOAD_UNKNOWN");
    }
    switch (request.method) {
      case "GET":
        return this.#uploadAnswer(name, id, upload, 204);
      case "PATCH":
        return await this.#patchUpload(call, name, id, upload);
      case "PUT": {
        const refusal = await this.#append(call, upload);
        if (refusal) return refusal;
        this.#uploads.delete(id);
        return await this.#finishUpload(
          name,
          upload.stored,
          url.searchParams.get("digest") ?? "",
        );
      }
      case "DELETE":
        this.#uploads.delete(id);
        await upload.stored.discard();
        return new Response(null, { status: 204 });
    }
    return problem(405, "UNSUPPORTED");
  }

  async #startUpload(call: Call, name: string): Promise<Response> {
    const { url, request } = call;
    await request.body?.cancel();
    const mount = url.searchParams.get("mount");
    const from = url.searchParams.get("from");
    if (mount && from && this.#repos.get(from)?.blobs.has(mount)) {
      if (!this.#refuse(request, from, "pull")) {
        this.#repo(name).blobs.add(mount);
        return new Response(null, {
          status: 201,
          headers: {
            location: `/v2/${name}/blobs/${mount}`,
            "docker-content-digest": mount,
          },
        });
      }
    }
    const id = `upload-${++this.#counter}`;
    const upload = { stored: await this.#store.createUpload(), state: 0 };
    this.#uploads.set(id, upload);
    return this.#uploadAnswer(name, id, upload, 202);
  }

  #uploadAnswer(
    name: string,
    id: string,
    upload: Upload,
    status: number,
  ): Response {
    const path = `/v2/${name}/blobs/uploads/${id}?state=${++upload.state}`;
    const { size } = upload.stored;
    return new Response(null, {
      status,
      headers: {
        location: this.options.absoluteLocations
          ? `${this.#scheme}://${this.host}${path}`
          : path,
        // Distribution writes "0-0" for an empty upload.
        range: `0-${Math.max(0, size - 1)}`,
        "docker-upload-uuid": id,
      },
    });
  }

  async #patchUpload(
    call: Call,
    name: string,
    id: string,
    upload: Upload,
  ): Promise<Response> {
    const range = /^([0-9]+)-([0-9]+)$/
      .exec(call.request.headers.get("content-range") ?? "");
    if (range && Number(range[1]) !== upload.stored.size) {
      await call.request.body?.cancel();
      return problem(416, "BLOB_UPLOAD_INVALID");
    }
    const refusal = await this.#append(call, upload);
    if (refusal) return refusal;
    return this.#uploadAnswer(name, id, upload, 202);
  }

  /** Takes the body; what came before a break stays, as in real registries. */
  async #append(call: Call, upload: Upload): Promise<Response | undefined> {
    const { request, fault } = call;
    const hasLength = request.headers.has("content-length");
    if (this.options.requireLength && !hasLength) {
      await request.body?.cancel();
      return problem(411, "SIZE_INVALID");
    }
    const limit = fault?.kind === "break-upload" ? fault.afterBytes : Infinity;
    let taken = 0;
    for await (const piece of request.body ?? []) {
      const part = piece.subarray(0, Math.max(0, limit - taken));
      taken += part.length;
      await upload.stored.append(part);
      if (taken >= limit) return problem(503, "UNKNOWN");
    }
    return undefined;
  }

  async #finishUpload(
    name: string,
    stored: StoredUpload,
    digest: string,
  ): Promise<Response> {
    if (!DIGEST.test(digest) || !await stored.finish(digest)) {
      return problem(400, "DIGEST_INVALID");
    }
    this.#repo(name).blobs.add(digest);
    return new Response(null, {
      status: 201,
      headers: {
        location: `/v2/${name}/blobs/${digest}`,
        "docker-content-digest": digest,
      },
    });
  }
}

/** One range of `bytes=A-B`, `bytes=A-`, `bytes=-N`; null is "all of it". */
function parseRange(
  header: string | null,
  size: number,
): [start: number, end: number] | null | "unsatisfiable" {
  const match = /^bytes=([0-9]*)-([0-9]*)$/.exec(header ?? "");
  if (!match || (match[1] === "" && match[2] === "")) return null;
  if (match[1] === "") return [Math.max(0, size - Number(match[2])), size];
  const start = Number(match[1]);
  const end = match[2] === "" ? size : Math.min(size, Number(match[2]) + 1);
  return start >= size || start >= end ? "unsatisfiable" : [start, end];
}
