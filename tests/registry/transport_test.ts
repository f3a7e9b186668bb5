import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { withDeadline } from "../../lib/io/mod.ts";
import { Authenticator } from "../../lib/registry/auth.ts";
import {
  noCredentials,
  RegistryClient,
  RegistryError,
} from "../../lib/registry/mod.ts";
import { Session } from "../../lib/registry/session.ts";
import { type Exchange, Transport } from "../../lib/registry/transport.ts";
import { isTemporaryStatus, redactText } from "../../lib/registry/errors.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { startOnFreePort, UNUSED_PORT } from "../testutil/free_port.ts";
import { requires } from "../testutil/requires.ts";
import {
  collect,
  FakeClock,
  onlyCredentials,
  patternBytes,
  run,
  setup,
  withTempDir,
} from "./helpers.ts";

const DIGEST = `sha256:${"0".repeat(64)}`;

Deno.test("retries: pauses double up to their bound and end after the attempts", async () => {
  await using s = await setup({}, {
    limits: { attempts: 6, pauseMs: 100, pauseMaxMs: 1000 },
  });
  for (const status of [408, 500, 502, 503, 504]) {
    s.server.requests.length = s.clock.pauses.length = 0;
    s.server.faults.add({ times: 6, fault: { kind: "status", status } });
    await rejects(s.repository.hasBlob(DIGEST), (e) => {
      ok(e instanceof RegistryError && e.temporary && e.status === status);
      return true;
    });
    equal(s.server.requests.length, 6);
    // Half of each bound: chance is 0.5 here.
    deepEqual(s.clock.pauses, [50, 100, 200, 400, 500]);
  }
  for (const status of [400, 405, 501, 505]) {
    equal(isTemporaryStatus(status), false);
    s.server.requests.length = 0;
    s.server.faults.add({ fault: { kind: "status", status } });
    await rejects(s.repository.blobSize(DIGEST), {
      name: "RegistryError",
      status,
    });
    equal(s.server.requests.length, 1);
  }
});

Deno.test("retries: Retry-After is honoured, as seconds and as a date, up to a bound", async () => {
  await using s = await setup({}, { limits: { retryAfterMaxMs: 30_000 } });
  const ask = (value: string) => {
    s.clock.pauses.length = 0;
    s.server.faults.add({
      fault: {
        kind: "status",
        status: 429,
        headers: { "retry-after": value },
      },
    });
    return s.repository.hasBlob(DIGEST);
  };
  equal(await ask("12"), false);
  deepEqual(s.clock.pauses, [12_000]);
  equal(await ask(new Date(Date.now() + 20_000).toUTCString()), false);
  ok(s.clock.pauses[0]! > 17_000 && s.clock.pauses[0]! <= 20_000);
  equal(await ask("soon"), false);
  deepEqual(s.clock.pauses, [125]);
  await rejects(ask("31"), { name: "RegistryError", status: 429 });
});

Deno.test("retries: the total time is bounded", async () => {
  await using s = await setup({}, {
    limits: { attempts: 100, totalMs: 10_000 },
  });
  s.server.faults.add({
    times: 100,
    fault: { kind: "status", status: 503, headers: { "retry-after": "3" } },
  });
  await rejects(s.repository.hasBlob(DIGEST), { name: "RegistryError" });
  deepEqual(s.clock.pauses, [3000, 3000, 3000]);
});

Deno.test("retries: a refused connection is tried again and named", async () => {
  const clock = new FakeClock();
  await using client = new RegistryClient({
    clock,
    limits: { attempts: 3 },
    credentials: onlyCredentials(),
  });
  const host = `127.0.0.1:${UNUSED_PORT}`;
  await rejects(client.open(host, "a").resolve("x"), (e) => {
    ok(e instanceof RegistryError);
    equal(e.status, 0);
    ok(/refused/i.test(e.message), e.message);
    return true;
  });
  equal(clock.pauses.length, 2);
});

Deno.test("requests ask for the stored bytes and say who they are", async () => {
  const seen: Headers[] = [];
  const server = Deno.serve({
    hostname: "127.0.0.1",
    port: 0,
    onListen() {},
  }, (request) => {
    seen.push(request.headers);
    return new Response(null, { status: 404 });
  });
  try {
    await using client = new RegistryClient({
      userAgent: "obd/test",
      credentials: onlyCredentials(),
    });
    const { port } = server.addr as Deno.NetAddr;
    await client.open(`127.0.0.1:${port}`, "a").hasBlob(DIGEST);
    equal(seen[0]!.get("accept-encoding"), "identity");
    equal(seen[0]!.get("user-agent"), "obd/test");
  } finally {
    await server.shutdown();
  }
});

Deno.test("requests that cannot be said keep no place of others", async () => {
  await using s = await setup({}, { concurrency: 2, userAgent: "a\nb" });
  for (let i = 0; i < 3; i++) {
    await rejects(s.repository.hasBlob(DIGEST), /header/i);
  }
  equal(s.server.requests.length, 0);
});

Deno.test("redirects: at most ten, none from here to plain HTTP or without a target", async () => {
  await using s = await setup();
  const to = (location: string | undefined) => {
    s.server.requests.length = 0;
    s.server.faults.clear();
    s.server.faults.add({
      times: 50,
      fault: {
        kind: "status",
        status: 302,
        ...(location && { headers: { location } }),
      },
    });
    return rejects(s.repository.resolve("x"), (e) => {
      ok(e instanceof RegistryError && !e.temporary, String(e));
      ok(!/secret/.test(e.message), e.message);
      return true;
    });
  };
  await to("/v2/app/manifests/y?secret=1");
  equal(s.server.requests.length, 11);
  for (
    const location of [undefined, "file:///etc/passwd", "http://[", "ftp://x"]
  ) {
    await to(location);
    equal(s.server.requests.length, 1);
  }
});

Deno.test("what breaks after a redirect is said in short, without what signs the URL", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  const serving = (async () => {
    for await (const conn of listener) {
      await conn.read(new Uint8Array(4096));
      await conn.write(new TextEncoder().encode("nonsense\n\n"));
      conn.close();
    }
  })();
  try {
    await using s = await setup();
    const location =
      `http://127.0.0.1:${port}/x?name=(secret-1)&sig=(secret-2)`;
    s.server.faults.add({
      times: 50,
      fault: { kind: "status", status: 307, headers: { location } },
    });
    await rejects(s.repository.resolve("x"), (e) => {
      ok(e instanceof RegistryError);
      equal(
        e.message,
        `GET http://127.0.0.1:${port}/x failed: SendRequest: invalid HTTP version parsed`,
      );
      return true;
    });
  } finally {
    listener.close();
    await serving;
  }
});

Deno.test("redirects: none from TLS to plain HTTP, none into inner networks", async () => {
  await using transport = new Transport({ certsDirectories: [] });
  const hop = async (registry: string, from: string, location: string) => {
    const auth = new Authenticator(transport, registry, noCredentials);
    const session = new Session(transport, auth, registry, "app");
    const answer = {
      method: "GET",
      url: new URL(from),
      status: 307,
    } as Exchange;
    try {
      return (await session.checkHop(answer, location)).href;
    } catch (error) {
      ok(error instanceof RegistryError && !error.temporary);
      return error.message.replace(/^.*answered with /, "");
    }
  };
  const cases: [
    registry: string,
    from: string,
    location: string,
    want: string,
  ][] = [
    ["8.8.8.8", "https://8.8.8.8/v2/", "/x?y=1#z", "https://8.8.8.8/x?y=1"],
    [
      "8.8.8.8",
      "https://8.8.8.8/v2/",
      "https://u:p@cdn.example/x",
      "https://cdn.example/x",
    ],
    [
      "8.8.8.8",
      "https://8.8.8.8/v2/",
      "//cdn.example/x",
      "https://cdn.example/x",
    ],
    [
      "8.8.8.8",
      "https://8.8.8.8/v2/",
      "http://cdn.example/x",
      "a redirect from TLS to plain HTTP",
    ],
    [
      "8.8.8.8",
      "https://8.8.8.8/v2/",
      "http://8.8.8.8/x",
      "a redirect from TLS to plain HTTP",
    ],
    [
      "8.8.8.8",
      "https://8.8.8.8/v2/",
      "https://169.254.169.254/x",
      'a redirect to the inner address "169.254.169.254"',
    ],
    [
      "8.8.8.8",
      "https://cdn.example/v2/",
      "https://10.0.0.1/x",
      'a redirect to the inner address "10.0.0.1"',
    ],
    [
      "8.8.8.8",
      "https://8.8.8.8/v2/",
      "https://0x7f.1/x",
      'a redirect to the inner address "127.0.0.1"',
    ],
    [
      "8.8.8.8",
      "https://8.8.8.8/v2/",
      "https://localhost/x",
      'a redirect to the inner address "localhost"',
    ],
    [
      "8.8.8.8",
      "https://8.8.8.8/v2/",
      "https://[::ffff:10.0.0.1]/x",
      'a redirect to the inner address "[::ffff:a00:1]"',
    ],
    [
      "10.0.0.9",
      "https://10.0.0.9/v2/",
      "https://10.0.0.1/x",
      "https://10.0.0.1/x",
    ],
    [
      "10.0.0.9",
      "https://10.0.0.9/v2/",
      "https://127.0.0.1/x",
      'a redirect to the inner address "127.0.0.1"',
    ],
    [
      "localhost:5000",
      "http://localhost:5000/v2/",
      "http://127.0.0.1:9000/x",
      "http://127.0.0.1:9000/x",
    ],
  ];
  for (const [registry, from, location, want] of cases) {
    equal(await hop(registry, from, location), want, location);
  }
});

Deno.test("redirects: credentials stay with the registry", async () => {
  await withTempDir(async (dir) => {
    const authFile = `${dir}/auth.json`;
    await using s = await setup(
      { auth: { kind: "basic", users: { joe: "x" } }, redirect: true },
      { credentials: onlyCredentials({ authFile }) },
    );
    await Deno.writeTextFile(
      authFile,
      JSON.stringify({ auths: { [s.server.host]: { auth: btoa("joe:x") } } }),
    );
    const content = patternBytes(1000);
    const blob = await s.server.putBlob("app", content);
    deepEqual(await collect(s.repository.fetchBlob(blob)), content);
    const storage = s.server.requests.filter((r) => r.origin === "storage");
    equal(storage.length, 1);
    equal(storage[0]!.authorization, null);
  });
});

Deno.test("errors: codes are kept, pages and signed URLs are not shown", async () => {
  await using s = await setup();
  const answer = (body: string) => {
    s.server.faults.add({ fault: { kind: "status", status: 400, body } });
    return s.repository.resolve("x").then(() => "", (e) => e as RegistryError);
  };
  const listed = await answer(
    '{"errors":[{"code":"NAME_INVALID","message":"see https://h/p?sig=secret\\u0007"}]}',
  ) as RegistryError;
  deepEqual(listed.codes, ["NAME_INVALID"]);
  ok(
    listed.message.endsWith("400: NAME_INVALID (see https://h/p)"),
    listed.message,
  );
  const page = await answer("<html><body>" + "x".repeat(100_000));
  ok((page as RegistryError).message.length < 200);
  // What nginx and others say is the title of a page.
  const titled = await answer(
    "<html>\r\n<head><title>413 Request Entity Too Large</title></head>",
  ) as RegistryError;
  ok(
    titled.message.endsWith("400: 413 Request Entity Too Large"),
    titled.message,
  );
  equal(
    redactText("a\x1b[31m\n https://u:p@h/x?y#z b"),
    "a [31m https://h/x b",
  );
  equal(
    redactText("(http://h/x) for https://h/x?n=(y)&z=(z b"),
    "(http://h/x) for https://h/x b",
  );
  equal(redactText("x".repeat(1000), 10), `${"x".repeat(10)}…`);
});

/** A CA, a server certificate for 127.0.0.1 and a client pair signed by it. */
async function makeCertificates(dir: string): Promise<void> {
  const ssl = (...args: string[]) => run("openssl", ...args);
  const key = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
  ];
  await ssl(
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
    "/CN=test CA",
  );
  for (
    const [name, extension] of [
      ["server", "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"],
      ["client", "basicConstraints=CA:FALSE\n"],
    ] as const
  ) {
    await Deno.writeTextFile(`${dir}/${name}.ext`, extension);
    await ssl(
      "req",
      ...key,
      "-keyout",
      `${dir}/${name}.key`,
      "-out",
      `${dir}/${name}.csr`,
      "-subj",
      `/CN=${name}`,
    );
    await ssl(
      "x509",
      "-req",
      "-in",
      `${dir}/${name}.csr`,
      "-CA",
      `${dir}/ca.crt`,
      "-CAkey",
      `${dir}/ca.key`,
      "-CAcreateserial",
      "-days",
      "2",
      "-extfile",
      `${dir}/${name}.ext`,
      "-out",
      `${dir}/${name}.crt`,
    );
  }
}

/** One of those, for a server. */
async function certificate(
  dir: string,
  name: string,
): Promise<{ cert: string; key: string }> {
  return {
    cert: await Deno.readTextFile(`${dir}/${name}.crt`),
    key: await Deno.readTextFile(`${dir}/${name}.key`),
  };
}

Deno.test({
  name:
    "TLS: own CA by file and by directory, no check at all, refusal without",
  ignore: !requires("openssl"),
  fn: () =>
    withTempDir(async (dir) => {
      await makeCertificates(dir);
      await using server = await RegistryServer.start({
        redirect: true,
        tls: await certificate(dir, "server"),
      });
      const content = patternBytes(300_000);
      const blob = await server.putBlob("app", content);
      const certs = `${dir}/certs.d`;
      for (const host of [server.host, server.storageHost]) {
        await Deno.mkdir(`${certs}/${host}`, { recursive: true });
        await Deno.copyFile(`${dir}/ca.crt`, `${certs}/${host}/ca.crt`);
      }
      const ways = [
        { caFile: `${dir}/ca.crt`, certsDirectories: [] },
        { certsDirectories: [certs] },
        { tlsSkipVerify: true, certsDirectories: [] },
      ];
      for (const way of ways) {
        await using client = new RegistryClient({
          ...way,
          credentials: onlyCredentials(),
        });
        const repository = client.open(server.host, "app");
        deepEqual(await collect(repository.fetchBlob(blob)), content);
        const upload = patternBytes(5_000_000, 7);
        const pushed = await server.putBlob("elsewhere", upload);
        await repository.pushBlob(pushed, {
          async *open() {
            for (let i = 0; i < 50; i++) {
              yield upload.subarray(i * 100_000, (i + 1) * 100_000);
            }
          },
        });
        ok(server.hasBlob("app", pushed.digest));
        server.removeBlob("app", pushed.digest);
      }
      await using plain = new RegistryClient({
        plainHttp: false,
        certsDirectories: [],
        credentials: onlyCredentials(),
      });
      await rejects(plain.open(server.host, "app").resolve("x"), (e) => {
        ok(e instanceof RegistryError && !e.temporary);
        ok(/certificate.*--ca-file/.test(e.message), e.message);
        return true;
      });
    }),
});

Deno.test({
  name: "TLS: a server with the certificate of a CA is told how to mend that",
  ignore: !requires("openssl"),
  fn: () =>
    withTempDir(async (dir) => {
      await makeCertificates(dir);
      await using server = await RegistryServer.start({
        tls: await certificate(dir, "ca"),
      });
      await using client = new RegistryClient({
        caFile: `${dir}/ca.crt`,
        certsDirectories: [],
        credentials: onlyCredentials(),
      });
      await rejects(
        client.open(server.host, "app").resolve("x"),
        /basicConstraints=CA:FALSE; or --tls-skip-verify\)$/,
      );
    }),
});

Deno.test({
  name: "TLS: an upload whose content fails ends, also without checks",
  ignore: !requires("openssl"),
  fn: () =>
    withTempDir(async (dir) => {
      await makeCertificates(dir);
      const tls = await certificate(dir, "server");
      for (
        const way of [{ caFile: `${dir}/ca.crt` }, { tlsSkipVerify: true }]
      ) {
        await using client = new RegistryClient({
          ...way,
          certsDirectories: [],
          credentials: onlyCredentials(),
        });
        const server = await RegistryServer.start({ tls });
        const content = {
          async *open() {
            for (let i = 0; i < 5; i++) yield patternBytes(1_000_000, i);
            throw new Error("cannot read");
          },
        };
        const descriptor = { mediaType: "x", digest: DIGEST, size: 10_000_000 };
        await rejects(
          client.open(server.host, "app").pushBlob(descriptor, content),
          /cannot read/,
        );
        // It waits for requests that are under way.
        await withDeadline(
          "Stopping the server",
          10_000,
          () => server[Symbol.asyncDispose](),
        );
      }
    }),
});

Deno.test({
  name:
    "TLS: silence ends with a deadline, an abort at once, without checks too",
  ignore: !requires("openssl"),
  fn: () =>
    withTempDir(async (dir) => {
      await makeCertificates(dir);
      await using server = await RegistryServer.start({
        tls: await certificate(dir, "server"),
      });
      for (
        const way of [{ caFile: `${dir}/ca.crt` }, { tlsSkipVerify: true }]
      ) {
        const stalled: ((value: unknown) => void)[] = [];
        await using client = new RegistryClient({
          ...way,
          clock: new FakeClock(),
          concurrency: 2,
          limits: { answerMs: 300, attempts: 3 },
          certsDirectories: [],
          credentials: onlyCredentials(),
        });
        const repository = client.open(server.host, "app");
        // The connection is one that was used before.
        equal(await repository.hasBlob(DIGEST), false);
        server.faults.add({ times: 5, fault: { kind: "silence" } });
        await withDeadline("Three silences", 10_000, () =>
          rejects(repository.hasBlob(DIGEST), {
            name: "DeadlineError",
            message: /did not finish in 300 ms/,
          }));
        server.faults.clear();
        equal(await repository.hasBlob(DIGEST), false);
        server.faults.add({ times: 9, fault: { kind: "silence" } });
        await withDeadline("An abort", 10_000, () =>
          rejects(
            repository.hasBlob(DIGEST, { signal: AbortSignal.timeout(50) }),
            { name: "CancelledError" },
          ));
        server.faults.clear();
        const content = {
          async *open() {
            yield patternBytes(5_000_000);
            await new Promise((resolve) =>
              stalled.push(resolve)
            );
          },
        };
        await withDeadline("An abort of an upload", 10_000, () =>
          rejects(
            repository.pushBlob(
              { mediaType: "x", digest: DIGEST, size: 10_000_000 },
              content,
              { signal: AbortSignal.timeout(200) },
            ),
            { name: "CancelledError" },
          ));
        for (const go of stalled) {
          go(undefined);
        }
        const both = [1, 2].map(() =>
          repository.hasBlob(DIGEST)
        );
        deepEqual(
          await withDeadline("Both permits", 10_000, () => Promise.all(both)),
          [false, false],
        );
      }
    }),
});

Deno.test({
  name: "TLS: client certificates are sent, a pair without key is named",
  ignore: !requires("openssl"),
  fn: () =>
    withTempDir(async (dir) => {
      await makeCertificates(dir);
      // openssl's own server insists on a client certificate.
      const start = (port: number) =>
        new Deno.Command("openssl", {
          args: [
            "s_server",
            "-accept",
            `127.0.0.1:${port}`,
            "-cert",
            `${dir}/server.crt`,
            "-key",
            `${dir}/server.key`,
            "-CAfile",
            `${dir}/ca.crt`,
            "-Verify",
            "1",
            "-verify_return_error",
            "-www",
            "-quiet",
          ],
          stdin: "null",
          stdout: "null",
          stderr: "null",
        }).spawn();
      const { child: server, port } = await startOnFreePort(
        (port) => Promise.resolve(start(port)),
      );
      try {
        const host = `127.0.0.1:${port}`;
        const own = `${dir}/certs.d/${host}`;
        await Deno.mkdir(own, { recursive: true });
        await Deno.copyFile(`${dir}/ca.crt`, `${own}/ca.crt`);
        const statusOf = async () => {
          await using client = new RegistryClient({
            certsDirectories: [`${dir}/certs.d`],
            limits: { attempts: 1 },
            credentials: onlyCredentials(),
          });
          const error = await client.open(host, "a").resolve("x")
            .then(() => undefined, (e) => e);
          return error;
        };
        const without = await statusOf();
        ok(without instanceof RegistryError && without.status === 0, without);
        await Deno.copyFile(`${dir}/client.crt`, `${own}/client.cert`);
        const halved = await statusOf();
        equal(halved.name, "UsageError");
        ok(/has no key "client.key"/.test(halved.message));
        await Deno.copyFile(`${dir}/client.key`, `${own}/client.key`);
        const accepted = await statusOf();
        // Its status page is no manifest, but it came through.
        equal(accepted.name, "FormatError", String(accepted));
      } finally {
        server.kill();
        await server.status;
      }
    }),
});

Deno.test("TLS: certificates that were mended are read again", async () => {
  await withTempDir(async (dir) => {
    await using transport = new Transport({ certsDirectories: [dir] });
    const own = `${dir}/127.0.0.1:5000`;
    await Deno.mkdir(own);
    await Deno.writeTextFile(`${own}/ca.crt`, "not yet");
    for (let i = 0; i < 2; i++) {
      await rejects(transport.baseUrl("127.0.0.1:5000"), {
        name: "UsageError",
        message: /has no CERTIFICATE/,
      });
    }
    await Deno.remove(`${own}/ca.crt`);
    const { href } = await transport.baseUrl("127.0.0.1:5000");
    equal(href, "http://127.0.0.1:5000/");
  });
});

Deno.test("TLS: plain HTTP where TLS is expected is explained", async () => {
  await using server = await RegistryServer.start();
  await using client = new RegistryClient({
    plainHttp: false,
    limits: { attempts: 1 },
    credentials: onlyCredentials(),
  });
  await rejects(client.open(server.host, "a").resolve("x"), {
    name: "RegistryError",
    message: /--plain-http missing/,
  });
});
