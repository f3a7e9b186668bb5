import assert from "node:assert/strict";
import { bindUnixSocket, ObdError } from "../../lib/io/mod.ts";

Deno.test("bindUnixSocket: a listener that is going away is waited for, then replaced", () =>
  withSocket(async (path, bind) => {
    const going = listen(path);
    // As a child between fork and exec does: it holds the listener, and never accepts.
    setTimeout(() => going.close(), 20);
    const bound = await bind();
    await assert.doesNotReject(connect(path));
    bound.listener.close();
    await bound.remove();
    await assert.rejects(Deno.lstat(path), Deno.errors.NotFound);
  }));

Deno.test("bindUnixSocket: so is one that goes away while this process is held up", () =>
  withSocket(async (path, bind) => {
    const going = listen(path);
    setTimeout(() => {
      // Longer than it is waited for: then all is due at once.
      const end = performance.now() + 300;
      while (performance.now() < end);
    }, 20);
    setTimeout(() => going.close(), 40);
    const bound = await bind();
    bound.listener.close();
    await bound.remove();
  }));

Deno.test("bindUnixSocket: a listener that accepts nobody keeps its name", () =>
  withSocket(async (path, bind) => {
    using _silent = listen(path);
    await assert.rejects(bind(), isConflict);
    await assert.doesNotReject(connect(path));
  }));

Deno.test("bindUnixSocket: a listener with a full queue keeps its name", () =>
  withSocket(async (path, bind) => {
    using _full = listen(path);
    const waiting: Deno.Conn[] = [];
    try {
      await assert.rejects(async () => {
        for (let i = 0; i < 10_000; i++) {
          waiting.push(await Deno.connect({ transport: "unix", path }));
        }
      }, Deno.errors.WouldBlock);
      await assert.rejects(bind(), isConflict);
    } finally {
      for (const peer of waiting) peer.close();
    }
  }));

function listen(path: string): Deno.UnixListener {
  return Deno.listen({ transport: "unix", path });
}

async function connect(path: string): Promise<void> {
  (await Deno.connect({ transport: "unix", path })).close();
}

function isConflict(error: unknown): boolean {
  return error instanceof ObdError && error.code === "conflict";
}

/** A name for a socket in a directory of its own, and what binds it. */
async function withSocket(
  run: (
    path: string,
    bind: () => ReturnType<typeof bindUnixSocket<Deno.UnixListener>>,
  ) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const path = `${dir}/s`;
  try {
    await run(
      path,
      () => bindUnixSocket(path, listen, (listener) => listener.close()),
    );
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}
