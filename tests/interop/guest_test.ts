/**
 * A guest kernel on obd's exports: as virtio disk through QEMU's own NBD
 * client, and through the kernel's NBD driver as nbd-client connects it.
 */

import { createHash } from "node:crypto";
import { equal, match } from "node:assert/strict";
import { runGuest } from "../testutil/guest.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import {
  dir as directory,
  file,
  makeImage,
  symlink,
  writeLayout,
} from "../testutil/oci_image.ts";
import { requires } from "../testutil/requires.ts";

const ignore = !requires(
  "qemu-system-x86_64",
  "busybox",
  "nbd-client",
  "socat",
  "cpio",
  "depmod",
);

const CONTENT = Array.from({ length: 300_000 }, (_, i) => `${i * 7}\n`).join(
  "",
);
const SHA256 = createHash("sha256").update(CONTENT).digest("hex");

/** Serves an image whose upper layer replaces a file of the lower one. */
async function withServe(
  work: (uri: string, socket: string) => Promise<void>,
): Promise<void> {
  await using box = await ObdSandbox.make();
  const image = makeImage({
    layers: [
      {
        entries: [
          directory("data"),
          file("data/old", "gone"),
          file("data/big", "x"),
        ],
      },
      {
        entries: [
          file("data/big", CONTENT),
          file("data/.wh.old"),
          symlink("link", "data/big"),
        ],
      },
    ],
  });
  await writeLayout(`${box.dir}/image`, [{ tag: "v1", image }]);
  const { ready } = await box.serve({
    images: [{ export: "guest", image: `oci:${box.dir}/image:v1` }],
  });
  await work(ready.exports[0].uri, `${box.dir}/nbd.sock`);
}

/** Looks at the image at /mnt, in the guest. */
const LOOK = `sha256sum </mnt/link
find /mnt | sort
echo x 2>/dev/null >/mnt/new && exit 9
umount /mnt`;

function check(out: string): void {
  match(out, new RegExp(`^${SHA256}  -$`, "m"));
  const names = out.split("\n").filter((line) => line.startsWith("/mnt"));
  equal(names.join(" "), "/mnt /mnt/data /mnt/data/big /mnt/link");
}

Deno.test({
  name: "a guest mounts the export as its virtio disk",
  ignore,
  fn: () =>
    withServe(async (uri) => {
      const out = await runGuest({
        drive: uri,
        script: `set -e
mount -t ext4 -o ro,noload /dev/vda /mnt
${LOOK}`,
      });
      check(out);
    }),
});

Deno.test({
  name: "a guest mounts the export through the kernel's NBD driver",
  ignore,
  fn: () =>
    withServe(async (_uri, socket) => {
      // QEMU forwards this address to the socket of serve.
      const out = await runGuest({
        socket,
        script: `set -e
nbd-client 10.0.2.100 10810 /dev/nbd0 -name guest -readonly -block-size 4096 -connections 4 >/dev/null
echo size $(cat /sys/block/nbd0/size) ro $(cat /sys/block/nbd0/ro)
echo pid $(cat /sys/block/nbd0/pid)
mount -t ext4 -o ro,noload /dev/nbd0 /mnt
ls -d /sys/fs/ext4/nbd0
${LOOK}
test ! -e /sys/fs/ext4/nbd0
nbd-client -d /dev/nbd0
test ! -e /sys/block/nbd0/pid`,
      });
      check(out);
      match(out, /^size 134217728 ro 1$/m);
      match(out, /^pid \d+$/m);
    }),
});
