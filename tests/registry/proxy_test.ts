/** Proxies that the environment names: what is on this machine is not for them to see. */

import { deepEqual, equal, match } from "node:assert/strict";
import { RegistryServer } from "../testutil/registry_server.ts";
import { patternBytes, withTempDir } from "./helpers.ts";

const CONTENT = patternBytes(10_000);
const CLIENT = new URL("./proxied_client.ts", import.meta.url).pathname;

/** Without the variables of whoever runs the tests. */
const NONE = Object.fromEntries(
  ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"].flatMap((name) => [
    [name, ""],
    [name.toLowerCase(), ""],
  ]),
);

/** Runs the client. @returns What it printed, or its error. */
async function fetchWith(
  env: Record<string, string>,
  ...args: string[]
): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", CLIENT, ...args],
    env: { ...NONE, ...env },
    stdout: "piped",
    stderr: "piped",
  }).output();
  return new TextDecoder().decode(code === 0 ? stdout : stderr).trim();
}

/** A proxy that keeps the first line of each connection and answers none. Its port may have been another test's, whose clients come too. */
class Proxy implements AsyncDisposable {
  readonly seen: string[] = [];
  readonly #listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  readonly #accepting = this.#accept();

  get url(): string {
    return `http://127.0.0.1:${(this.#listener.addr as Deno.NetAddr).port}`;
  }

  async #accept(): Promise<void> {
    for await (const connection of this.#listener) {
      const bytes = new Uint8Array(1000);
      const length = await connection.read(bytes).catch(() => 0) ?? 0;
      const text = new TextDecoder().decode(bytes.subarray(0, length));
      this.seen.push(text.split("\r\n")[0]!);
      connection.close();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    await this.#accepting;
  }
}

Deno.test("a registry on this machine is not asked through a proxy", async () => {
  await using server = await RegistryServer.start();
  const { digest, size } = await server.putBlob("app", CONTENT);
  await using proxy = new Proxy();
  const port = server.host.split(":")[1];
  for (const host of [server.host, `localhost:${port}`]) {
    for (const name of ["HTTP_PROXY", "http_proxy", "all_proxy"]) {
      for (const exceptions of [{}, { no_proxy: ".corp.example" }]) {
        const env = { [name]: proxy.url, ...exceptions };
        equal(await fetchWith(env, host, digest, String(size)), digest, name);
      }
    }
  }
  deepEqual(proxy.seen.filter((line) => line.includes(`:${port}`)), []);
  // Others are, as the user wishes.
  const env = { HTTPS_PROXY: proxy.url };
  await fetchWith(env, "registry.example", digest, String(size));
  match(proxy.seen.join("\n"), /^CONNECT registry\.example:443 /m);
});

Deno.test("a credential service at a Unix socket is asked whatever proxies there are", async () => {
  await withTempDir(async (dir) => {
    await using server = await RegistryServer.start({
      auth: { kind: "basic", users: { ann: "pw" } },
    });
    const { digest, size } = await server.putBlob("app", CONTENT);
    await using proxy = new Proxy();
    const socket = `${dir}/s.sock`;
    const service = Deno.serve(
      { path: socket, onListen() {} },
      () =>
        Response.json({
          success: true,
          data: { auths: { [server.host]: { auth: btoa("ann:pw") } } },
        }),
    );
    try {
      const settings: Record<string, string>[] = [
        {},
        { NO_PROXY: "localhost,127.0.0.1" },
        { NO_PROXY: "*" },
        { HTTP_PROXY: proxy.url },
      ];
      for (const env of settings) {
        equal(
          await fetchWith(env, server.host, digest, `${size}`, "uds", socket),
          digest,
          JSON.stringify(env),
        );
      }
    } finally {
      await service.shutdown();
    }
  });
});
