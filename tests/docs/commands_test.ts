/** Every command in the documentation is run here, or says why it is not. */

import assert from "node:assert/strict";
import { writeExecutable } from "../testutil/executable.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import { withOwnMounts } from "../testutil/mount_namespace.ts";
import {
  dir,
  file,
  makeImage,
  putImage,
  symlink,
  whiteout,
  writeLayout,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import { type ShellBlock, shellBlocks } from "./shell_blocks.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const DEADLINE_MS = 180_000;
/** The registry of the examples; another one takes its place. */
const EXAMPLE_HOST = "127.0.0.1:5000";

function pages(dir = ""): string[] {
  return [...Deno.readDirSync(ROOT + dir)].flatMap((entry) => {
    if (entry.name.startsWith(".") || entry.name === "testdata") return [];
    const path = dir + entry.name;
    if (entry.isDirectory) return pages(`${path}/`);
    return path.endsWith(".md") ? [path] : [];
  }).sort();
}

const blocks = pages().flatMap((page) =>
  shellBlocks(page, Deno.readTextFileSync(ROOT + page))
);

Deno.test("every shell block is run, or says why not", async () => {
  assert.ok(blocks.length > 5, `found only ${blocks.length} blocks`);
  for (const { file, line, marker } of blocks) {
    assert.ok(marker, `${file}:${line}: nothing says how this is tested`);
    if (marker.kind === "by") await Deno.stat(ROOT + marker.path);
  }
});

const sessions = new Map<string, ShellBlock[]>();
for (const block of blocks) {
  if (block.marker?.kind !== "run") continue;
  const { session } = block.marker;
  sessions.set(session, [...sessions.get(session) ?? [], block]);
}

for (const [name, parts] of sessions) {
  const needs = new Set(
    parts.flatMap((p) => p.marker?.kind === "run" ? p.marker.needs : []),
  );
  const has = [...needs].map((n) =>
    n === "mount" ? requiresMount() && requires("unshare") : requires(n)
  );
  Deno.test({
    name: `docs: ${name} (${parts[0]!.file}:${parts[0]!.line})`,
    ignore: !has.every((h) => h),
    fn: () => runSession(parts, needs.has("mount")),
  });
}

/** Runs the blocks as one script, in a directory of its own, beside a registry with an image. */
async function runSession(
  parts: readonly ShellBlock[],
  mounts: boolean,
): Promise<void> {
  await using box = await ObdSandbox.make();
  await using registry = await RegistryServer.start();
  const image = exampleImage();
  await putImage(registry, "app", "v1", image);
  await writeLayout(`${box.dir}/image`, [{ tag: "v1", image }]);
  const bin = `${box.dir}/bin`;
  await Deno.mkdir(bin);
  await writeExecutable(
    `${bin}/obd`,
    `#!/bin/sh\nexec "${Deno.execPath()}" run -A "${ROOT}main.ts" "$@"\n`,
  );
  await writeExecutable(
    `${bin}/deno`,
    `#!/bin/sh\nexec "${Deno.execPath()}" "$@"\n`,
  );
  await Deno.symlink(ROOT, `${box.dir}/checkout`);
  const script = parts.map((part) =>
    `# ${part.file}:${part.line}\n${part.text}\n`
  ).join("").replaceAll(EXAMPLE_HOST, registry.host);
  await Deno.writeTextFile(`${box.dir}/script`, script);
  // A session of its own, so that what it leaves in the background ends with it.
  const bash = ["bash", "-euxo", "pipefail", `${box.dir}/script`];
  const [shell, ...args] = [
    ...["setsid", "--wait"],
    ...(mounts ? withOwnMounts(bash) : bash),
  ];
  const child = new Deno.Command(shell!, {
    args,
    cwd: box.dir,
    env: { ...box.env, PATH: `${bin}:${Deno.env.get("PATH")}:/usr/sbin:/sbin` },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const timer = setTimeout(() => child.kill("SIGKILL"), DEADLINE_MS);
  // Read to the end of the script, not of what it left running.
  const said = collect(child.stderr);
  const { code } = await child.status;
  clearTimeout(timer);
  const text = await Promise.race([
    said.done,
    new Promise<void>((resolve) => {
      const patience = setTimeout(resolve, 200);
      said.done.then(() => clearTimeout(patience));
    }),
  ]).then(() => said.text());
  await said.stop();
  assert.equal(code, 0, text);
}

function collect(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let text = "";
  const done = (async () => {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += decoder.decode(value, { stream: true });
    }
  })().catch(() => {});
  return { done, text: () => text, stop: () => reader.cancel() };
}

/** A small image that behaves as the examples expect it to. */
function exampleImage() {
  const executable = { mode: 0o755 };
  const busybox = busyboxBytes();
  return makeImage({
    layers: [
      {
        entries: [
          dir("bin"),
          dir("etc"),
          dir("proc"),
          dir("sys"),
          dir("dev"),
          dir("tmp", { mode: 0o1777 }),
          file("bin/busybox", busybox, executable),
          symlink("bin/sh", "busybox"),
          symlink("bin/cat", "busybox"),
          file("etc/os-release", "NAME=example\n"),
          file("etc/old", "old\n"),
        ],
      },
      {
        entries: [
          whiteout("etc/old"),
          file("etc/motd", "hello\n"),
        ],
      },
    ],
  });
}

/** The static shell of this machine, where there is one: blocks that run it need `busybox`. */
function busyboxBytes(): Uint8Array {
  for (const path of ["/bin/busybox", "/usr/bin/busybox"]) {
    try {
      return Deno.readFileSync(path);
    } catch {
      // Try the next.
    }
  }
  return new Uint8Array();
}
