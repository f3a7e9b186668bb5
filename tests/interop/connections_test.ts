/**
 * Several connections of one client: what nbdfuse opens for `obd mount`, and
 * what happens when a server allows fewer.
 */

import { deepEqual, equal, match, ok } from "node:assert/strict";
import { createApiClient } from "../../cmd/api_client.ts";
import { runTool } from "../testutil/debian_image.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import {
  file,
  makeImage,
  putImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { unmount } from "../testutil/unmount.ts";
import { until } from "../testutil/until.ts";

const ignore = ![
  requiresMount(),
  requires("nbdfuse", "nbdinfo", "losetup", "mount", "blockdev", "dd", "cmp"),
].every((has) => has);

/** What `obd mount` asks nbdfuse for. */
const CONNECTIONS = 8;
/**
 * Reads that must wait at once: more than four connections can have. Of eight
 * readers seven did with eight, three with four, one with one or two, because a
 * connection has one read under way and which reads meet on one is chance.
 */
const AT_ONCE = 5;
const FILES = Array.from(
  { length: CONNECTIONS },
  (_, i) => seededBytes(1_500_000 + i * 4096, i),
);
const IMAGE = makeImage({
  layers: [{ entries: FILES.map((bytes, i) => file(`f${i}`, bytes)) }],
});

/** In front of a registry: can keep everything that asks for a blob waiting. */
class Gate implements AsyncDisposable {
  #open = Promise.withResolvers<void>();
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  constructor(registry: string) {
    this.#open.resolve();
    this.#server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen() {} },
      async (request) => {
        const url = new URL(request.url);
        if (url.pathname.includes("/blobs/")) await this.#open.promise;
        return await fetch(`http://${registry}${url.pathname}${url.search}`, {
          method: request.method,
          headers: request.headers,
        });
      },
    );
  }

  get host(): string {
    return `127.0.0.1:${this.#server.addr.port}`;
  }

  /** Before the server's deadline for a read, which is a minute, it is to be opened. */
  close(): void {
    this.#open = Promise.withResolvers();
  }

  open(): void {
    this.#open.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.open();
    await this.#server.shutdown();
  }
}

/** Copies every file at once, past the page cache of the mount; they must be what they were. */
async function copyAll(box: ObdSandbox, from: string, blockSize: string) {
  await Promise.all(
    FILES.map((_, i) =>
      runTool(
        "dd",
        `if=${from}/f${i}`,
        `of=${box.dir}/copy${i}`,
        `bs=${blockSize}`,
        "iflag=direct",
      )
    ),
  );
  await Promise.all(
    FILES.map((_, i) =>
      runTool("cmp", `${box.dir}/want${i}`, `${box.dir}/copy${i}`)
    ),
  );
}

async function writeWanted(box: ObdSandbox): Promise<void> {
  for (const [i, bytes] of FILES.entries()) {
    await Deno.writeFile(`${box.dir}/want${i}`, bytes);
  }
}

Deno.test({
  name:
    "the connections of one mount serve at once, and parallel reads are right",
  ignore,
  fn: async () => {
    await using registry = await RegistryServer.start();
    await putImage(registry, "app", "v1", IMAGE);
    await using gate = new Gate(registry.host);
    await using box = await ObdSandbox.make();
    await writeWanted(box);
    await box.json("build", `${registry.host}/app:v1`);
    const dir = `${box.dir}/at`;
    await Deno.mkdir(dir);
    const { id } = await box.json("mount", `${gate.host}/app:v1`, dir);
    const api = createApiClient(`unix:${box.dir}/run/mounts/${id}/api.sock`);
    try {
      const status = async () => (await api.status()).exports[0]!;
      equal((await status()).connections, CONNECTIONS);
      gate.close();
      const copied = copyAll(box, dir, "64k");
      const waiting = until(
        async () => (await status()).counters.inFlight >= AT_ONCE,
        `${AT_ONCE} reads at once`,
      ).finally(() => gate.open());
      await Promise.allSettled([waiting, copied]);
      await Promise.all([waiting, copied]);
      await copyAll(box, dir, "4k");
      equal((await status()).counters.readErrors, 0);
    } finally {
      api[Symbol.dispose]();
    }
    await box.json("umount", dir);
    deepEqual(await box.leftovers(), []);
  },
});

Deno.test({
  name:
    "nbd.maxConnections: who comes too late is told so at once, who is there goes on",
  ignore,
  fn: async () => {
    await using box = await ObdSandbox.make();
    await writeWanted(box);
    await writeLayout(`${box.dir}/image`, [{ tag: "v1", image: IMAGE }]);
    const image = `oci:${box.dir}/image:v1`;
    await box.json("build", image);
    const socket = `${box.dir}/nbd.sock`;
    await box.serve({
      nbd: { listen: `unix:${socket}`, maxConnections: 2 },
      images: [{ export: "app", image }],
    });
    const uri = `nbd+unix:///app?socket=${socket}`;
    for (const name of ["fuse", "more", "at"]) {
      await Deno.mkdir(`${box.dir}/${name}`);
    }
    const fuse = (file: string, connections: number) =>
      new Deno.Command("timeout", {
        args: ["300", "nbdfuse", "-r", "-C", `${connections}`, file, uri],
        stdout: "null",
        stderr: "piped",
      });
    const held = fuse(`${box.dir}/fuse/img`, 2).spawn();
    const shown = () =>
      Deno.stat(`${box.dir}/fuse/img`).then(() => true, () => false);
    await until(shown, "nbdfuse with as many connections as there may be");
    await runTool(
      "mount",
      "-o",
      "ro,noload,loop",
      `${box.dir}/fuse/img`,
      `${box.dir}/at`,
    );

    const refused = await fuse(`${box.dir}/more/img`, CONNECTIONS).output();
    ok(refused.code !== 0 && refused.code !== 124, `${refused.code}`);
    match(new TextDecoder().decode(refused.stderr), /^nbd_connect_uri: /);
    const asked = await new Deno.Command("timeout", {
      args: ["60", "nbdinfo", uri],
    }).output();
    ok(asked.code !== 0 && asked.code !== 124, `${asked.code}`);
    await copyAll(box, `${box.dir}/at`, "64k");

    await unmount(`${box.dir}/at`);
    // Busy as long as anybody has the loop device on it.
    await unmount(`${box.dir}/fuse`);
    equal((await held.output()).code, 0);
    await until(async () => {
      const { success } = await new Deno.Command("nbdinfo", { args: [uri] })
        .output();
      return success;
    }, "a place for the next");
    const log = await Deno.readTextFile(`${box.dir}/serve-0.json.log`);
    // A flood of them does not fill the log.
    equal(log.match(/nbd-connection-refused/g)?.length, 1, log);
  },
});
