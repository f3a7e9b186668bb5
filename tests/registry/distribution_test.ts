/** Against Debian's docker-registry (distribution 2.8), with skopeo as the judge. */

import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { loadLibc, readBytes } from "../../lib/io/mod.ts";
import {
  blobFromBytes,
  blobFromRepository,
  type Descriptor,
  type ImageManifest,
  MediaType,
  openRepository,
  parseManifest,
  RegistryClient,
  RegistryError,
  type RegistryOptions,
  type Repository,
  sha256Digest,
} from "../../lib/registry/mod.ts";
import { startOnFreePort } from "../testutil/free_port.ts";
import { requires } from "../testutil/requires.ts";
import {
  collect,
  manifestOf,
  onlyCredentials,
  patternBytes,
  run,
  withTempDir,
} from "./helpers.ts";

loadLibc(); // not a leak of the first test

const ignore = !requires("docker-registry", "skopeo", "openssl", "htpasswd");

/** Starts `docker-registry serve`, with YAML below the common part and below `http`. */
async function withRegistry(
  dir: string,
  { http = "", rest = "" }: { http?: string; rest?: string },
  work: (host: string) => Promise<void>,
): Promise<void> {
  const { child, port } = await startOnFreePort(async (port) => {
    await Deno.writeTextFile(
      `${dir}/config.yml`,
      `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: ${dir}/store}
  delete: {enabled: true}
http:
  addr: 127.0.0.1:${port}
${http}
${rest}
`,
    );
    return new Deno.Command("docker-registry", {
      args: ["serve", `${dir}/config.yml`],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
  });
  try {
    await work(`127.0.0.1:${port}`);
  } finally {
    try {
      child.kill("SIGKILL");
    } catch {
      // It ended by itself: the work has failed already.
    }
    await child.status;
  }
}

const BIG = patternBytes(6_000_000, 5);

/** Pushes an image of one small and one large layer. */
async function pushImage(
  repository: Repository,
  tag: string,
): Promise<{ manifest: Descriptor; layers: Descriptor[] }> {
  const push = async (bytes: Uint8Array<ArrayBuffer>, mediaType: string) => {
    const descriptor = {
      mediaType,
      digest: sha256Digest(bytes),
      size: bytes.length,
    };
    await repository.pushBlob(descriptor, blobFromBytes(bytes));
    return descriptor;
  };
  const layers = [
    await push(patternBytes(1000), MediaType.ociLayer),
    await push(BIG, MediaType.ociLayer),
  ];
  const json = new TextEncoder().encode(JSON.stringify({
    architecture: "amd64",
    os: "linux",
    rootfs: { type: "layers", diff_ids: layers.map((l) => l.digest) },
  }));
  const config = await push(json, MediaType.ociConfig);
  const manifest = await repository.pushManifest(
    new TextEncoder().encode(JSON.stringify(manifestOf(config, layers))),
    MediaType.ociManifest,
    tag,
  );
  return { manifest, layers };
}

/** Push, pull in all ways, mount, referrers by tag; skopeo reads what we wrote and we what it wrote. */
async function roundtrip(
  dir: string,
  host: string,
  options: RegistryOptions,
  skopeoFlags: string[],
): Promise<void> {
  await using client = new RegistryClient({
    certsDirectories: [],
    credentials: onlyCredentials(),
    ...options,
  });
  const repository = client.open(host, "team/app");
  const { manifest, layers } = await pushImage(repository, "v1");
  deepEqual((await repository.resolve("v1")).descriptor, manifest);
  const blob = layers[1]!;
  equal(sha256Digest(await collect(repository.fetchBlob(blob))), blob.digest);
  const source = await repository.openBlob(blob);
  await Promise.all([0, 1, 4095, 3_000_000, 5_999_000].map(async (offset) => {
    const got = await readBytes(source, offset, 1000);
    deepEqual(got, BIG.subarray(offset, offset + 1000));
  }));
  const second = client.open(host, "team/other");
  equal(
    await second.pushBlob(blob, blobFromRepository(repository, blob), {
      mountFrom: ["team/app"],
    }),
    "mounted",
  );
  const referrer = {
    ...JSON.parse(new TextDecoder().decode(
      (await repository.resolve("v1")).bytes,
    )),
    subject: manifest,
    artifactType: "x/y",
  };
  const pushed = await repository.pushManifest(
    new TextEncoder().encode(JSON.stringify(referrer)),
    MediaType.ociManifest,
  );
  const found = await repository.referrers(manifest.digest, "x/y");
  deepEqual(found.map((d) => d.digest), [pushed.digest]);
  deepEqual(await repository.referrers(pushed.digest), []);
  await rejects(repository.resolve("v9"), { name: "NotFoundError" });
  equal(await repository.hasBlob(`sha256:${"0".repeat(64)}`), false);

  const out = `${dir}/from-skopeo`;
  await run(
    "skopeo",
    "copy",
    "-q",
    "--preserve-digests",
    ...skopeoFlags.map((f) => `--src-${f}`),
    `docker://${host}/team/app:v1`,
    `oci:${out}:v1`,
  );
  await using layout = await openRepository(`oci:${out}`);
  equal((await layout.resolve("v1")).descriptor.digest, manifest.digest);
  await run(
    "skopeo",
    "copy",
    "-q",
    "--preserve-digests",
    ...skopeoFlags.map((f) => `--dest-${f}`),
    `oci:${out}:v1`,
    `docker://${host}/team/skopeo:v2`,
  );
  const theirs = client.open(host, "team/skopeo");
  const { bytes } = await theirs.resolve("v2");
  for (const layer of (parseManifest(bytes) as ImageManifest).layers) {
    equal(sha256Digest(await collect(theirs.fetchBlob(layer))), layer.digest);
  }
}

Deno.test({
  name: "distribution: plain HTTP",
  ignore,
  fn: () =>
    withTempDir((dir) =>
      withRegistry(
        dir,
        {},
        (host) => roundtrip(dir, host, {}, ["tls-verify=false"]),
      )
    ),
});

async function authFileFor(dir: string, host: string, auth: string) {
  const authFile = `${dir}/auth-${
    sha256Digest(new TextEncoder().encode(auth)).slice(7, 15)
  }.json`;
  await Deno.writeTextFile(
    authFile,
    JSON.stringify({ auths: { [host]: { auth: btoa(auth) } } }),
  );
  return onlyCredentials({ authFile });
}

Deno.test({
  name: "distribution: htpasswd over TLS with an own CA",
  ignore,
  fn: () =>
    withTempDir(async (dir) => {
      await run("htpasswd", "-Bbc", `${dir}/htpasswd`, "joe", "pass word");
      const key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
      ];
      await run(
        "openssl",
        "req",
        "-x509",
        ...key,
        "-keyout",
        `${dir}/ca.key`,
        "-out",
        `${dir}/ca.crt`,
        "-days",
        "2",
        "-subj",
        "/CN=CA",
      );
      await Deno.writeTextFile(`${dir}/ext`, "subjectAltName=IP:127.0.0.1\n");
      await run(
        "openssl",
        "req",
        ...key,
        "-keyout",
        `${dir}/tls.key`,
        "-out",
        `${dir}/tls.csr`,
        "-subj",
        "/CN=registry",
      );
      await run(
        "openssl",
        "x509",
        "-req",
        "-in",
        `${dir}/tls.csr`,
        "-CA",
        `${dir}/ca.crt`,
        "-CAkey",
        `${dir}/ca.key`,
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        `${dir}/ext`,
        "-out",
        `${dir}/tls.crt`,
      );
      await Deno.mkdir(`${dir}/ca`); // skopeo wants pairs for all keys beside it
      await Deno.copyFile(`${dir}/ca.crt`, `${dir}/ca/ca.crt`);
      const config = {
        http: `  tls: {certificate: ${dir}/tls.crt, key: ${dir}/tls.key}`,
        rest: `auth: {htpasswd: {realm: test, path: ${dir}/htpasswd}}`,
      };
      await withRegistry(dir, config, async (host) => {
        const credentials = await authFileFor(dir, host, "joe:pass word");
        const options = { caFile: `${dir}/ca.crt`, credentials };
        await roundtrip(dir, host, options, [
          `cert-dir=${dir}/ca`,
          "creds=joe:pass word",
        ]);
        await using stranger = new RegistryClient({
          caFile: `${dir}/ca.crt`,
          credentials: await authFileFor(dir, host, "joe:wrong"),
        });
        await rejects(stranger.open(host, "team/app").resolve("v1"), (e) => {
          ok(e instanceof RegistryError && e.status === 401);
          deepEqual(e.codes, ["UNAUTHORIZED"]);
          ok(/auth-[0-9a-f]{8}\.json/.test(e.message), e.message);
          return true;
        });
        await using careless = new RegistryClient({
          tlsSkipVerify: true,
          credentials,
        });
        const repository = careless.open(host, "team/app");
        ok(await repository.resolve("v1"));
        await pushImage(careless.open(host, "team/careless"), "v1");
      });
    }),
});

Deno.test({
  name: "distribution: blob reads are redirected to another origin",
  ignore,
  fn: () =>
    withTempDir(async (dir) => {
      let served = 0;
      // Distribution's middleware redirects to BASEURL/docker/registry/v2/blobs/….
      const storage = Deno.serve({
        hostname: "127.0.0.1",
        port: 0,
        onListen() {},
      }, async (request) => {
        served++;
        if (request.headers.has("authorization")) {
          return new Response(null, { status: 400 });
        }
        const path = decodeURIComponent(new URL(request.url).pathname);
        const bytes = await Deno.readFile(`${dir}/store${path}`);
        const range = /^bytes=([0-9]+)-([0-9]+)$/
          .exec(request.headers.get("range") ?? "");
        if (!range) return new Response(bytes);
        const [first, last] = [Number(range[1]), Number(range[2])];
        return new Response(bytes.subarray(first, last + 1), {
          status: 206,
          headers: {
            "content-range": `bytes ${first}-${last}/${bytes.length}`,
          },
        });
      });
      const base = `http://127.0.0.1:${(storage.addr as Deno.NetAddr).port}`;
      try {
        const config = {
          rest:
            `middleware: {storage: [{name: redirect, options: {baseurl: "${base}"}}]}`,
        };
        await withRegistry(dir, config, (host) =>
          roundtrip(dir, host, {}, ["tls-verify=false"]));
        ok(served > 8, String(served));
      } finally {
        await storage.shutdown();
      }
    }),
});

Deno.test({
  name: "distribution: bearer tokens (ES256 with x5c)",
  ignore,
  fn: () =>
    withTempDir(async (dir) => {
      const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
      const pem = privateKey.export({ type: "pkcs8", format: "pem" }) as string;
      await Deno.writeTextFile(`${dir}/token.key`, pem);
      await run(
        "openssl",
        "req",
        "-x509",
        "-key",
        `${dir}/token.key`,
        "-out",
        `${dir}/token.crt`,
        "-days",
        "2",
        "-subj",
        "/CN=token",
      );
      const certificate = (await Deno.readTextFile(`${dir}/token.crt`))
        .replace(/-----[A-Z ]+-----|\s/g, "");
      let issued = 0;
      const issue = (request: Request): Response => {
        const url = new URL(request.url);
        const expected = `Basic ${btoa("joe:secret")}`;
        if (request.headers.get("authorization") !== expected) {
          return new Response("no", { status: 401 });
        }
        issued++;
        const access = url.searchParams.getAll("scope").map((scope) => {
          const [type, name, actions] = scope.split(":");
          return { type, name, actions: actions!.split(",") };
        });
        const seconds = Math.floor(Date.now() / 1000);
        const part = (x: unknown) =>
          new TextEncoder().encode(JSON.stringify(x)).toBase64({
            alphabet: "base64url",
            omitPadding: true,
          });
        const head = part({ typ: "JWT", alg: "ES256", x5c: [certificate] });
        const body = part({
          iss: "tester",
          sub: "joe",
          aud: url.searchParams.get("service"),
          exp: seconds + 300,
          nbf: seconds - 60,
          iat: seconds,
          jti: String(issued),
          access,
        });
        const signature = sign(
          "sha256",
          new TextEncoder().encode(`${head}.${body}`),
          {
            key: privateKey,
            dsaEncoding: "ieee-p1363",
          },
        ).toString("base64url");
        return Response.json({
          token: `${head}.${body}.${signature}`,
          expires_in: 300,
        });
      };
      const tokens = Deno.serve({
        hostname: "127.0.0.1",
        port: 0,
        onListen() {},
      }, issue);
      const realm = `http://127.0.0.1:${
        (tokens.addr as Deno.NetAddr).port
      }/token`;
      try {
        const config = {
          rest:
            `auth: {token: {realm: "${realm}", service: registry, issuer: tester, rootcertbundle: ${dir}/token.crt}}`,
        };
        await withRegistry(dir, config, async (host) => {
          const credentials = await authFileFor(dir, host, "joe:secret");
          await roundtrip(dir, host, { credentials }, [
            "tls-verify=false",
            "creds=joe:secret",
          ]);
        });
        ok(issued > 3);
      } finally {
        await tokens.shutdown();
      }
    }),
});
