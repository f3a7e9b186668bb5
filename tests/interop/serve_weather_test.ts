/** `obd serve` on Debian's docker-registry with short-lived bearer tokens and redirects that expire. */

import assert from "node:assert/strict";
import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { openEnvironment, publishImage } from "../../lib/image/mod.ts";
import { FileSource, readBytes } from "../../lib/io/mod.ts";
import {
  checkFiles,
  content,
  type Files,
  imageOf,
  ServeProcess,
  sh,
  withTempDir,
  writeConfig,
} from "../serve/harness.ts";
import { startDockerRegistry } from "../testutil/docker_registry.ts";
import { writeLayout } from "../testutil/oci_image.ts";
import { requires } from "../testutil/requires.ts";

/** More than is kept in memory, so that each round fetches again. */
const FILES: Files = Object.fromEntries(
  Array.from({ length: 20 }, (_, i) => [`f${i}`, content(i, 2_000_000)]),
);
const TOKEN_LIFE_S = 2;
/** Distribution takes a token for so long after its end (registry/auth/token: Leeway). */
const LEEWAY_S = 60;
/** Each so-manyth request finds that its URL has expired. */
const EXPIRE_EVERY = 7;

/** A small HTTP server on loopback. */
function listen(
  handler: (request: Request) => Response | Promise<Response>,
): { url: string; server: Deno.HttpServer<Deno.NetAddr> } {
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    handler,
  );
  return { url: `http://127.0.0.1:${server.addr.port}`, server };
}

/** A token as distribution wants it: ES256 with the certificate in its header. */
function makeToken(
  key: KeyObject,
  certificate: string,
  url: URL,
  lifeSeconds: number,
): string {
  const part = (value: unknown) =>
    new TextEncoder().encode(JSON.stringify(value)).toBase64({
      alphabet: "base64url",
      omitPadding: true,
    });
  const now = Math.floor(Date.now() / 1000);
  const head = part({ typ: "JWT", alg: "ES256", x5c: [certificate] });
  const body = part({
    iss: "tester",
    sub: "joe",
    aud: url.searchParams.get("service"),
    exp: now + lifeSeconds - LEEWAY_S,
    nbf: now - 2 * LEEWAY_S,
    iat: now,
    jti: String(now),
    access: url.searchParams.getAll("scope").map((scope) => {
      const [type, name, actions] = scope.split(":");
      return { type, name, actions: actions!.split(",") };
    }),
  });
  const signature = sign(
    "sha256",
    new TextEncoder().encode(`${head}.${body}`),
    {
      key,
      dsaEncoding: "ieee-p1363",
    },
  );
  return `${head}.${body}.${signature.toString("base64url")}`;
}

/** The storage that the registry redirects to; counts what it answers. */
function storageOf(dir: string, counts: { served: number; expired: number }) {
  return listen(async (request) => {
    assert.equal(request.headers.get("authorization"), null, "a token leaked");
    if (
      counts.served > 0 && (counts.served + counts.expired) % EXPIRE_EVERY === 0
    ) {
      counts.expired++;
      return new Response("<Error>Request has expired</Error>", {
        status: 403,
      });
    }
    counts.served++;
    const path = decodeURIComponent(new URL(request.url).pathname);
    await using blob = await FileSource.open(`${dir}/registry${path}`);
    const range = /^bytes=([0-9]+)-([0-9]+)$/
      .exec(request.headers.get("range") ?? "");
    if (!range) return new Response(await readBytes(blob, 0, blob.size));
    const first = Number(range[1]);
    const end = Math.min(Number(range[2]) + 1, blob.size);
    return new Response(await readBytes(blob, first, end - first), {
      status: 206,
      headers: { "content-range": `bytes ${first}-${end - 1}/${blob.size}` },
    });
  });
}

Deno.test({
  name:
    "serve on docker-registry: 2 s tokens and expiring redirects give no EIO",
  ignore: !requires("docker-registry", "skopeo", "openssl"),
  fn: () =>
    withTempDir(async (dir) => {
      const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
      await Deno.writeTextFile(
        `${dir}/token.key`,
        privateKey.export({ type: "pkcs8", format: "pem" }) as string,
      );
      await sh(
        "openssl",
        ...["req", "-x509", "-key", `${dir}/token.key`],
        ...["-out", `${dir}/token.crt`, "-days", "2", "-subj", "/CN=token"],
      );
      const certificate = (await Deno.readTextFile(`${dir}/token.crt`))
        .replace(/-----[A-Z ]+-----|\s/g, "");
      let issued = 0;
      let life = 300;
      const tokens = listen((request) => {
        const wanted = `Basic ${btoa("joe:secret")}`;
        if (request.headers.get("authorization") !== wanted) {
          return new Response("no", { status: 401 });
        }
        issued++;
        const url = new URL(request.url);
        return Response.json({
          token: makeToken(privateKey, certificate, url, life),
          expires_in: life,
        });
      });
      const counts = { served: 0, expired: 0 };
      const storage = storageOf(dir, counts);
      try {
        await using registry = await startDockerRegistry(
          dir,
          `auth: {token: {realm: "${tokens.url}/token", service: registry, issuer: tester, rootcertbundle: ${dir}/token.crt}}
middleware: {storage: [{name: redirect, options: {baseurl: "${storage.url}"}}]}`,
        );
        const { host } = registry;
        await writeLayout(`${dir}/layout`, [
          { tag: "v1", image: imageOf(FILES) },
        ]);
        await sh(
          "skopeo",
          ...["copy", "-q", "--dest-tls-verify=false"],
          ...["--dest-creds=joe:secret"],
          ...[`oci:${dir}/layout:v1`, `docker://${host}/team/app:v1`],
        );
        const authFile = `${dir}/auth.json`;
        await Deno.writeTextFile(
          authFile,
          JSON.stringify({ auths: { [host]: { auth: btoa("joe:secret") } } }),
        );
        {
          await using environment = await openEnvironment({
            workers: 1,
            registry: { authFile },
          });
          await publishImage(environment, {
            source: `${host}/team/app:v1`,
            jobs: 1,
          });
        }
        const config = await writeConfig(
          dir,
          [{ export: "app", image: `${host}/team/app:v1` }],
          {
            cacheConfig: { cacheDir: `${dir}/blobs`, cacheSizeGB: 0.001 },
            gzipCacheConfig: { enable: false },
          },
        );
        life = TOKEN_LIFE_S;
        issued = 0;
        counts.expired = 0;
        await using serve = await ServeProcess.start(config, {
          args: ["--authfile", authFile],
        });
        await using client = await serve.connect("app");
        const end = performance.now() + 3.5 * TOKEN_LIFE_S * 1000;
        while (performance.now() < end) await checkFiles(client, FILES);
        assert.ok(issued >= 3, `${issued} tokens were asked for`);
        assert.ok(counts.expired >= 5, `${counts.expired} URLs expired`);
        assert.doesNotMatch(serve.log, / (ERROR|WARN) |secret|eyJ/);
        assert.equal((await serve.end()).code, 0);
      } finally {
        await tokens.server.shutdown();
        await storage.server.shutdown();
      }
    }),
});
