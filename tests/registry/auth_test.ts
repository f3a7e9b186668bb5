import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { withDeadline } from "../../lib/io/mod.ts";
import { RegistryError } from "../../lib/registry/mod.ts";
import { parseChallenges } from "../../lib/registry/challenge.ts";
import { hostKind, mayRedirect } from "../../lib/registry/addresses.ts";
import { until } from "../testutil/until.ts";
import {
  collect,
  onlyCredentials,
  patternBytes,
  setup,
  withTempDir,
} from "./helpers.ts";

const CONTENT = patternBytes(5000);

Deno.test("parseChallenges() reads every form of the header", () => {
  const cases: [header: string | null, want: unknown][] = [
    [null, []],
    ["", []],
    ["Basic", [{ scheme: "basic", params: {} }]],
    ['bAsIc REALM="a b"', [{ scheme: "basic", params: { realm: "a b" } }]],
    ['Bearer realm="https://x/y?a=b,c",service=s,scope="a:b:pull,push c"', [{
      scheme: "bearer",
      params: {
        realm: "https://x/y?a=b,c",
        service: "s",
        scope: "a:b:pull,push c",
      },
    }]],
    ['Negotiate YWJj==, Basic realm="a", Bearer realm = "q\\"u" , x=y', [
      { scheme: "negotiate", params: {} },
      { scheme: "basic", params: { realm: "a" } },
      { scheme: "bearer", params: { realm: 'q"u', x: "y" } },
    ]],
    [',, Basic realm="a",,', [{ scheme: "basic", params: { realm: "a" } }]],
    ['Basic realm="a", realm="b"', [{
      scheme: "basic",
      params: { realm: "a" },
    }]],
    ['Basic realm="open', [{ scheme: "basic", params: {} }]],
    ["=x", []],
  ];
  for (const [header, want] of cases) {
    deepEqual(
      JSON.parse(JSON.stringify(parseChallenges(header))),
      want,
      header ?? "null",
    );
  }
  ok(parseChallenges("Basic,".repeat(10_000)).length < 100);
});

Deno.test("hostKind() and mayRedirect() keep redirects outside", async () => {
  const kinds: Record<string, string> = {
    "127.0.0.1": "loopback",
    "0.0.0.0": "loopback",
    "[::1]": "loopback",
    "[::]": "loopback",
    "localhost": "loopback",
    "a.localhost": "loopback",
    "10.1.2.3": "private",
    "172.16.0.1": "private",
    "172.32.0.1": "public",
    "192.168.1.1": "private",
    "100.64.0.1": "private",
    "169.254.169.254": "link-local",
    "[fe80::1]": "link-local",
    "[fd00::1]": "private",
    "[::ffff:169.254.169.254]": "link-local",
    "[::ffff:7f00:1]": "loopback",
    "[64:ff9b::a00:1]": "private",
    "[2001:db8::1]": "public",
    "8.8.8.8": "public",
    "example.com": "public",
  };
  for (const [host, kind] of Object.entries(kinds)) {
    equal(hostKind(host), kind, host);
  }
  const may: [string, string, boolean][] = [
    ["8.8.8.8", "9.9.9.9", true],
    ["8.8.8.8", "10.0.0.1", false],
    ["8.8.8.8", "169.254.169.254", false],
    ["10.0.0.1", "10.0.0.2", true],
    ["10.0.0.1", "127.0.0.1", false],
    ["10.0.0.1", "169.254.169.254", false],
    ["127.0.0.1", "169.254.1.1", true],
    ["localhost", "127.0.0.1", true],
  ];
  for (const [from, to, want] of may) {
    equal(await mayRedirect(from, to), want, `${from} → ${to}`);
  }
});

Deno.test("Basic: credentials of the file, one challenge for many requests", async () => {
  await withTempDir(async (dir) => {
    const authFile = `${dir}/auth.json`;
    await using s = await setup(
      { auth: { kind: "basic", users: { joe: "pa:ss" } } },
      { credentials: onlyCredentials({ authFile }) },
    );
    await Deno.writeTextFile(
      authFile,
      JSON.stringify({
        auths: { [s.server.host]: { auth: btoa("joe:pa:ss") } },
      }),
    );
    const blob = await s.server.putBlob("app", CONTENT);
    deepEqual(await collect(s.repository.fetchBlob(blob)), CONTENT);
    deepEqual(await collect(s.repository.fetchBlob(blob)), CONTENT);
    deepEqual(s.server.requests.map((r) => r.status), [401, 200, 200]);
  });
});

Deno.test("a 401 names the source that was tried, never the secret", async () => {
  await withTempDir(async (dir) => {
    const authFile = `${dir}/auth.json`;
    const auth = { auth: btoa("joe:hunter2") };
    for (const kind of ["basic", "token"] as const) {
      await using s = await setup(
        { auth: { kind, users: { joe: "other" } } },
        { credentials: onlyCredentials({ authFile }) },
      );
      await Deno.writeTextFile(
        authFile,
        JSON.stringify({ auths: { [s.server.host]: auth } }),
      );
      await rejects(s.repository.hasBlob(`sha256:${"0".repeat(64)}`), (e) => {
        ok(e instanceof RegistryError);
        equal(e.status, 401);
        equal(e.temporary, false);
        ok(e.message.includes(`credentials from "${authFile}"`), e.message);
        ok(!/hunter2|am9l/.test(JSON.stringify([e.message, e.stack, e.url])));
        return true;
      });
      ok(s.server.requests.length <= 3, s.server.summary().join());
    }
  });
});

Deno.test("a 401 without credentials says where they were looked for", async () => {
  await using s = await setup(
    { auth: { kind: "basic", users: {} } },
    { credentials: onlyCredentials({}, { HOME: "/nonexistent" }) },
  );
  await rejects(s.repository.resolve("x"), {
    name: "RegistryError",
    message: /no credentials found in .*"\/nonexistent\/.docker\/config.json"/,
  });
});

Deno.test("token: anonymous pull, one token for concurrent requests", async () => {
  await using s = await setup({ auth: { kind: "token", anonymousPull: true } });
  const blob = await s.server.putBlob("app", CONTENT);
  await s.repository.hasBlob(blob.digest);
  s.server.revokeTokens();
  s.server.requests.length = 0;
  await Promise.all(
    Array.from({ length: 8 }, () => s.repository.hasBlob(blob.digest)),
  );
  const tokens = s.server.requests.filter((r) => r.origin === "token");
  equal(tokens.length, 1, s.server.summary().join("\n"));
  ok(tokens[0]!.query.includes("scope=repository%3Aapp%3Apull"));
  ok(tokens[0]!.query.includes("service=test+registry"));
});

Deno.test("token: refusals of all connections do not keep the token from coming", async () => {
  // The token server is on the registry's host, as it often is.
  await using s = await setup(
    { auth: { kind: "token", anonymousPull: true } },
    { concurrency: 4 },
  );
  const blob = await s.server.putBlob("app", CONTENT);
  const four = () =>
    withDeadline(
      "Four requests",
      10_000,
      () =>
        Promise.all(
          Array.from({ length: 4 }, () => s.repository.hasBlob(blob.digest)),
        ),
    );
  deepEqual(await four(), [true, true, true, true]);
  const refused = s.server.requests.filter((r) => r.status === 401);
  equal(refused.length, 4);
  s.server.revokeTokens();
  deepEqual(await four(), [true, true, true, true]);
});

Deno.test("token: who gives up does not wait for a silent token server; others do", async () => {
  await using s = await setup({ auth: { kind: "token", anonymousPull: true } });
  const blob = await s.server.putBlob("app", CONTENT);
  const isAsked = () =>
    s.server.requests.some((r) => r.origin === "token" && r.status === 0);
  // First with a challenge, then with one that is known.
  for (let i = 0; i < 2; i++) {
    s.server.faults.add({
      origin: "token",
      fault: { kind: "delay", milliseconds: 1500 },
    });
    const waits = s.repository.hasBlob(blob.digest);
    const control = new AbortController();
    const { signal } = control;
    const givesUp = s.repository.hasBlob(blob.digest, { signal });
    await until(isAsked);
    control.abort();
    await rejects(givesUp, { name: "CancelledError" });
    ok(isAsked(), "the token is still waited for");
    equal(await waits, true);
    s.clock.advance(3_600_000);
  }
});

Deno.test("token: expires_in is honoured, a bit early; the default is 60 s", async () => {
  for (const lifetimeSeconds of [undefined, 300]) {
    await using s = await setup({
      auth: {
        kind: "token",
        anonymousPull: true,
        field: "access_token",
        ...(lifetimeSeconds && { lifetimeSeconds }),
      },
    });
    const blob = await s.server.putBlob("app", CONTENT);
    const asked = () =>
      s.server.requests.filter((r) => r.origin === "token").length;
    const lifetimeMs = (lifetimeSeconds ?? 60) * 1000;
    await s.repository.hasBlob(blob.digest);
    s.clock.advance(lifetimeMs - 11_000);
    await s.repository.hasBlob(blob.digest);
    equal(asked(), 1);
    s.clock.advance(2000);
    await s.repository.hasBlob(blob.digest);
    equal(asked(), 2);
  }
});

Deno.test("token: an identitytoken goes by OAuth2 POST; 403 also renews", async () => {
  await withTempDir(async (dir) => {
    const authFile = `${dir}/auth.json`;
    await using s = await setup(
      { auth: { kind: "token", refreshTokens: ["refresh-1"] } },
      { credentials: onlyCredentials({ authFile }) },
    );
    await Deno.writeTextFile(
      authFile,
      JSON.stringify({
        auths: { [s.server.host]: { identitytoken: "refresh-1" } },
      }),
    );
    const blob = await s.server.putBlob("app", CONTENT);
    equal(await s.repository.hasBlob(blob.digest), true);
    equal(s.server.summary()[1], "POST /auth/token 200");
    s.server.faults.add({
      method: "HEAD",
      fault: { kind: "status", status: 403 },
    });
    s.server.requests.length = 0;
    equal(await s.repository.hasBlob(blob.digest), true);
    deepEqual(s.server.requests.map((r) => r.status), [403, 200, 200]);
  });
});

Deno.test("token: push and pull scopes; a mount asks for its source too", async () => {
  await withTempDir(async (dir) => {
    const authFile = `${dir}/auth.json`;
    await using s = await setup(
      { auth: { kind: "token", users: { joe: "x" } } },
      { credentials: onlyCredentials({ authFile }) },
    );
    await Deno.writeTextFile(
      authFile,
      JSON.stringify({ auths: { [s.server.host]: { auth: btoa("joe:x") } } }),
    );
    const blob = await s.server.putBlob("base", CONTENT);
    const result = await s.repository.pushBlob(blob, {
      open: () => {
        throw new Error("must not be read");
      },
    }, { mountFrom: ["app", "nowhere", "base"] });
    equal(result, "mounted");
    const scopes = s.server.requests.filter((r) => r.origin === "token")
      .map((r) => new URLSearchParams(r.query).getAll("scope").join(" "));
    deepEqual(scopes, [
      "repository:app:pull",
      "repository:app:pull,push repository:nowhere:pull",
      "repository:app:pull,push repository:base:pull",
    ]);
  });
});

Deno.test("token server: 5xx is repeated, its realm may not leave the network", async () => {
  await using s = await setup({ auth: { kind: "token", anonymousPull: true } });
  const blob = await s.server.putBlob("app", CONTENT);
  s.server.faults.add({
    origin: "token",
    times: 2,
    fault: { kind: "status", status: 503 },
  });
  equal(await s.repository.hasBlob(blob.digest), true);
  equal(s.clock.pauses.length, 2);
  s.server.revokeTokens();
  s.server.faults.add({
    method: "HEAD",
    fault: {
      kind: "status",
      status: 401,
      headers: { "www-authenticate": 'Bearer realm="ftp://x/",service="s"' },
    },
  });
  await rejects(s.repository.hasBlob(blob.digest), {
    name: "RegistryError",
    message: /token server that is no HTTP URL/,
  });
});

Deno.test("token server: redirects are followed, the password goes to the named host only", async () => {
  await withTempDir(async (dir) => {
    const authFile = `${dir}/auth.json`;
    for (const hostname of ["127.0.0.1", "localhost"]) {
      await using s = await setup(
        { auth: { kind: "token", users: { joe: "secret" } } },
        { credentials: onlyCredentials({ authFile }) },
      );
      const auth = { auth: btoa("joe:secret") };
      await Deno.writeTextFile(
        authFile,
        JSON.stringify({ auths: { [s.server.host]: auth } }),
      );
      const blob = await s.server.putBlob("app", CONTENT);
      const { port } = new URL(`http://${s.server.host}`);
      const location =
        `http://${hostname}:${port}/auth/token?scope=repository:app:pull&moved`;
      s.server.faults.add({
        origin: "token",
        fault: { kind: "status", status: 307, headers: { location } },
      });
      const isOwn = hostname === "127.0.0.1";
      const asked = s.repository.hasBlob(blob.digest);
      if (isOwn) equal(await asked, true);
      else await rejects(asked, /refused access to .*\(401\)/);
      deepEqual(
        s.server.requests.filter((r) => r.origin === "token")
          .map((r) => [r.query.includes("moved"), r.authorization !== null]),
        [[false, true], [true, isOwn]],
      );
    }
  });
});

Deno.test("a registry that redirects to one that wants credentials is said", async () => {
  await using real = await setup({
    auth: { kind: "basic", users: { joe: "secret" } },
  });
  await using s = await setup();
  const location = `http://${real.server.host}/v2/app/manifests/x`;
  s.server.faults.add({
    times: 10,
    fault: { kind: "status", status: 301, headers: { location } },
  });
  await rejects(s.repository.resolve("x"), {
    name: "RegistryError",
    message: new RegExp(
      `was answered with 401: .*registry "${s.server.host}" redirects there, .*"${real.server.host}"`,
    ),
  });
});

Deno.test("token server: redirects without end, to nowhere, inside", async () => {
  const cases: [string | undefined, RegExp][] = [
    ["/auth/token", /more than 10 redirects/],
    [undefined, /a redirect without a usable Location/],
    ["file:///etc/passwd", /a redirect without a usable Location/],
  ];
  for (const [location, message] of cases) {
    await using s = await setup({
      auth: { kind: "token", anonymousPull: true },
    });
    s.server.faults.add({
      origin: "token",
      times: 100,
      fault: {
        kind: "status",
        status: 302,
        headers: location === undefined ? {} : { location },
      },
    });
    await rejects(s.repository.resolve("x"), {
      name: "RegistryError",
      message,
    });
    ok(s.server.requests.filter((r) => r.origin === "token").length <= 11);
  }
});

Deno.test("a token with odd characters is refused without being shown", async () => {
  await using s = await setup({ auth: { kind: "token", anonymousPull: true } });
  s.server.faults.add({
    origin: "token",
    fault: { kind: "status", status: 200, body: '{"token":"sec\\r\\nret: 1"}' },
  });
  await rejects(s.repository.resolve("x"), (e) => {
    ok(e instanceof Error);
    equal(e.name, "FormatError");
    ok(!e.message.includes("ret"), e.message);
    return true;
  });
  s.server.faults.add({
    origin: "token",
    fault: { kind: "status", status: 200, body: '{"token":"topsecret' },
  });
  await rejects(s.repository.resolve("x"), (e) => {
    ok(e instanceof Error && !String(e.stack).includes("topsecret"));
    return true;
  });
});
