/**
 * `obd mount`, `umount` and `reconnect` in a guest whose kernel has the NBD driver: the guest's
 * disk is an image, served by obd, that has obd's bundle, the runtime, the
 * programs they need, and another image to mount.
 */

import { match } from "node:assert/strict";
import { createHash } from "node:crypto";
import { runTool } from "../testutil/debian_image.ts";
import { runGuest } from "../testutil/guest.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import {
  dir as directory,
  file,
  type LayerEntry,
  makeImage,
  symlink,
  writeLayout,
} from "../testutil/oci_image.ts";
import { requires } from "../testutil/requires.ts";
import { seededBytes } from "../testutil/source_contract.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const PROGRAMS = ["mount", "umount", "blockdev", "busybox"];

const APPLETS = [
  "cat",
  "grep",
  "ls",
  "sed",
  "sh",
  "sha256sum",
  "sleep",
  "tee",
];

const ignore = !requires(
  "qemu-system-x86_64",
  "socat",
  "cpio",
  "depmod",
  "ldd",
  ...PROGRAMS,
);

/** Runs in the guest, in its disk as root directory. Each start of obd takes seconds there. */
const TEST = `set -e
export PATH=/bin DENO_DIR=/tmp/deno HOME=/tmp
obd() { deno run -A --no-config --no-lock --no-remote --no-prompt /obd.js "$@"; }
cold() { echo 3 >/proc/sys/vm/drop_caches; }

obd mount --json oci:/image:v1 /at | tee /tmp/mount
cat /at/file
echo ro $(cat /sys/block/nbd0/ro) readahead $(cat /sys/block/nbd0/queue/read_ahead_kb)
grep -qx "obd-.*" /sys/block/nbd0/backend

echo the serve of the mount is killed, and what is read waits
kill -9 $(sed 's/.*"servePid"://; s/,.*//' /tmp/mount)
sleep 1 # what was under way would wait for the kernel's timeout
cold
sha256sum </at/big >/tmp/sum & reading=$!
sleep 2
kill -0 $reading
obd reconnect
wait $reading
cat /tmp/sum

# As if mount had been killed before it knew which device it got.
umount /at
sed -i 's/"device"/"was"/; s/"nbdPid"/"wasPid"/' /run/obd/mounts/*/state.json
test -e /sys/block/nbd0/pid
obd umount /at
test ! -e /sys/block/nbd0/pid
test -z "$(ls /run/obd/mounts)"
echo all is well
`;

/** More than is read ahead. */
const BIG = seededBytes(2_000_000, 1);
const BIG_SHA256 = createHash("sha256").update(BIG).digest("hex");

Deno.test({
  name: "obd mount with the kernel's NBD driver, in a guest",
  ignore,
  fn: async () => {
    await using box = await ObdSandbox.make();
    const inner = makeImage({
      layers: [{ entries: [file("file", "hello\n"), file("big", BIG)] }],
    });
    await writeLayout(`${box.dir}/inner`, [{ tag: "v1", image: inner }]);
    // Each start of the guest's serve would build it in memory, which takes it long.
    await box.json("build", `oci:${box.dir}/inner:v1`);
    await runTool(
      Deno.execPath(),
      "bundle",
      "--quiet",
      "--platform=deno",
      "-o",
      `${box.dir}/obd.js`,
      `${ROOT}main.ts`,
    );
    const entries = await guestFiles(box.dir);
    const disk = makeImage({ layers: [{ entries, compression: "none" }] });
    await writeLayout(`${box.dir}/disk`, [{ tag: "v1", image: disk }]);
    const { ready } = await box.serve({
      images: [{ export: "disk", image: `oci:${box.dir}/disk:v1` }],
    });
    const out = await runGuest({
      drive: ready.exports[0].uri,
      timeoutMs: 600_000,
      script: `set -e
mount -t ext4 -o ro,noload /dev/vda /mnt
for d in dev proc sys; do mount -o bind /$d /mnt/$d; done
for d in run tmp var; do mount -t tmpfs tmpfs /mnt/$d; done
exec busybox chroot /mnt /bin/sh /test.sh 2>&1`,
    });
    match(out, /"device":"\/dev\/nbd0","driver":"nbd"/);
    match(out, /^hello$/m);
    match(out, /^ro 1 readahead 1024$/m);
    // The kernel has a line for connections that end.
    match(
      out,
      new RegExp(
        `^/at \\(/dev/nbd0\\) is reconnected\n(\\[.*\n)*${BIG_SHA256}  -$`,
        "m",
      ),
    );
    match(out, /^\/at is unmounted \(oci:\/image:v1\)$/m);
    match(out, /^all is well$/m);
  },
});

/** The programs with the libraries that they load, as entries of a layer. */
async function guestFiles(dir: string): Promise<LayerEntry[]> {
  const files = new Map<string, string>();
  const add = async (program: string, path: string) => {
    files.set(`bin/${program}`, path);
    const { stdout } = await new Deno.Command("ldd", {
      args: [path],
      stderr: "null", // "not a dynamic executable"
    }).output();
    const libraries = new TextDecoder().decode(stdout).matchAll(/\/[^ ]+/g);
    for (const [library] of libraries) files.set(library.slice(1), library);
  };
  await add("deno", await Deno.realPath(Deno.execPath()));
  for (const program of PROGRAMS) {
    const path = (await runTool("sh", "-c", `command -v ${program}`)).trim();
    await add(program, path);
  }
  await addTree(files, "image", `${dir}/inner`);
  files.set("obd.js", `${dir}/obd.js`);
  const names = ["at", "dev", "proc", "sys", "run", "tmp", "var"];
  const directories = new Set(names);
  for (const name of files.keys()) {
    for (let at = name.indexOf("/"); at > 0; at = name.indexOf("/", at + 1)) {
      directories.add(name.slice(0, at));
    }
  }
  return [
    ...[...directories].sort().map((name) => directory(name)),
    ...[...files].map(([name, path]) =>
      file(name, Deno.readFileSync(path), { mode: 0o755 })
    ),
    ...APPLETS.map((name) => symlink(`bin/${name}`, "busybox")),
    file("test.sh", TEST),
  ];
}

async function addTree(
  files: Map<string, string>,
  name: string,
  path: string,
): Promise<void> {
  for await (const entry of Deno.readDir(path)) {
    const [inner, from] = [`${name}/${entry.name}`, `${path}/${entry.name}`];
    if (entry.isDirectory) await addTree(files, inner, from);
    else files.set(inner, from);
  }
}
