/** What the kernel makes of our file systems. */

import assert from "node:assert/strict";
import { Ext4Model } from "../../lib/ext4/mod.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import { detachLoop, unmount } from "../testutil/unmount.ts";
import { attrs, Disk, run } from "./writer_disk.ts";
import {
  drawChange,
  listDevice,
  random,
  sameLines,
  Shadow,
} from "./writer_tree.ts";

const tools = requires("e2fsck", "losetup", "mount", "umount", "getfattr") &&
  requiresMount();

/** Mounts a disk for the time of `work`, whatever happens in it. */
async function mounted(
  disk: Disk,
  options: string,
  work: (dir: string, bytesWritten: () => Promise<number>) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "obd-mount-" });
  const loop = (await run("losetup", ["-f", "--show", disk.path])).trim();
  // The counters of a loop device outlive what is attached to it.
  const before = await sectorsWritten(loop);
  const bytesWritten = async () => 512 * (await sectorsWritten(loop) - before);
  try {
    await run("mount", ["-t", "ext4", "-o", options, loop, dir]);
    try {
      await work(dir, bytesWritten);
    } finally {
      await unmount(dir);
    }
  } finally {
    await detachLoop(loop, disk.path);
    await Deno.remove(dir);
  }
}

async function sectorsWritten(loop: string): Promise<number> {
  const stat = await Deno.readTextFile(`/sys/block/${loop.slice(5)}/stat`);
  return Number(stat.trim().split(/ +/)[6]);
}

/** A tree that has everything, large directories too. */
function build(model: Ext4Model, disk: Disk): void {
  const rnd = random(11);
  const shadow = new Shadow();
  for (let i = 0; i < 300; i++) drawChange(rnd)(model, shadow, disk);
  for (
    const [name, count, length] of [["htree", 5000, 40], [
      "deep",
      9000,
      250,
    ]] as const
  ) {
    const dir = model.mkdir(model.root, name, attrs(0o755));
    for (let i = 0; i < count; i++) {
      model.mknod(dir, `${i}-`.padEnd(length, "\xe9"), attrs(0o600), {
        type: "fifo",
      });
    }
  }
}

Deno.test({
  name: "the kernel reads what was written",
  ignore: !tools,
  fn: async () => {
    const model = Ext4Model.create({ virtualSize: 2 ** 30 });
    await using disk = await Disk.create(model.virtualSize);
    const acl = Uint8Array.fromHex(
      "0200000001000700ffffffff02000600e803000004000500ffffffff10000700ffffffff20000500ffffffff",
    );
    const capability = Uint8Array.fromHex(
      "0100000200200000000000000000000000000000",
    );
    const body = new TextEncoder().encode("found\n".repeat(3000));
    const dir = model.mkdir(
      model.root,
      "dir",
      attrs(0o2750, { uid: 5, gid: 6 }),
    );
    const { node, extents } = model.createFile(
      dir,
      "file",
      attrs(0o4775, {
        uid: 100_000,
        gid: 200_000,
        mtime: { seconds: 2 ** 32 + 1, nanoseconds: 987_654_321 },
        xattrs: [
          ["security.capability", capability],
          ["system.posix_acl_access", acl],
          ["trusted.overlay.opaque", new Uint8Array([0x79])],
          ["user.large", new Uint8Array(2000).fill(0x41)],
        ],
      }),
      { size: body.length },
    );
    disk.writeBody(extents, body);
    model.link(model.root, "hard", node);
    model.symlink(model.root, "link", attrs(0o777), "d".repeat(80) + "/../dir");
    build(model, disk);
    disk.apply(model.emit());
    await disk.check();
    await mounted(disk, "ro,noload", async (mount) => {
      const stat = await run("stat", [
        "-c",
        "%a %u %g %h %s %.9Y",
        `${mount}/dir/file`,
      ]);
      assert.equal(
        stat.trim(),
        `4775 100000 200000 2 ${body.length} 4294967297.987654321`,
      );
      assert.deepEqual(await Deno.readFile(`${mount}/hard`), body);
      assert.equal(
        await Deno.readLink(`${mount}/link`),
        "d".repeat(80) + "/../dir",
      );
      const names = await run("getfattr", [
        "-d",
        "-m",
        "-",
        "-e",
        "hex",
        `${mount}/hard`,
      ]);
      assert.ok(names.includes(`system.posix_acl_access=0x${acl.toHex()}`));
      assert.ok(names.includes(`security.capability=0x${capability.toHex()}`));
      assert.ok(names.includes("trusted.overlay.opaque=0x79"));
      assert.ok(names.includes(`user.large=0x${"41".repeat(2000)}`));
      // Lookups go through the htree; listing does not.
      const found = await run("find", [
        mount,
        "-type",
        "p",
        "-newermt",
        "2001-01-01",
        "-printf",
        "x",
      ]);
      assert.ok(found.length >= 14_000, `${found.length} fifos`);
    });
  },
});

Deno.test({
  name: "the kernel may write to it, and writes next to nothing by itself",
  ignore: !tools,
  fn: async () => {
    const model = Ext4Model.create();
    await using disk = await Disk.create(model.virtualSize);
    build(model, disk);
    disk.apply(model.emit());
    for (const options of ["rw", "rw,init_itable=0"]) {
      const before = disk.allocatedBytes;
      await mounted(disk, options, async (_, bytesWritten) => {
        await new Promise((resolve) => setTimeout(resolve, 2500));
        await run("sync", []);
        const bytes = await bytesWritten();
        assert.ok(bytes < 1 << 20, `${options}: ${bytes} bytes`);
      });
      assert.ok(disk.allocatedBytes - before < 1 << 20);
    }
    await mounted(disk, "rw", async (mount) => {
      for (const name of ["htree", "deep"]) {
        for (let i = 0; i < 300; i++) {
          await Deno.writeTextFile(`${mount}/${name}/new-${i}`, "x".repeat(i));
        }
        await Deno.remove(`${mount}/${name}/new-7`);
      }
    });
    await disk.check();
    // And what the kernel wrote is a base for further layers.
    await using source = await disk.source();
    const ranges = {
      highestMapped: () => model.virtualSize / 64,
      isMapped: (offset: number) => offset < model.virtualSize / 64,
    };
    const next = await Ext4Model.load(source, ranges);
    next.removeTree(next.root, "deep");
    next.mkdir(next.root, "more", attrs(0o755));
    disk.apply(next.emit());
    await disk.check();
    sameLines(
      (await listDevice(source)).filter((l) => /^\["(deep|more)/.test(l)).map((
        l,
      ) => l.slice(0, 20)),
      ['["more","directory",'],
    );
  },
});
