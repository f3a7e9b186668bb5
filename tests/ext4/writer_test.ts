import { Ext4Model } from "../../lib/ext4/mod.ts";
import { requires } from "../testutil/requires.ts";
import { attrs, Disk } from "./writer_disk.ts";

const tools = requires("e2fsck", "debugfs");

Deno.test({
  name: "an empty file system of any size is clean",
  ignore: !tools,
  fn: async () => {
    for (const size of [2 ** 20, 10 * 2 ** 20 + 4096, 2 ** 30, 2 ** 36]) {
      const model = Ext4Model.create({ virtualSize: size });
      await using disk = await Disk.create(size);
      disk.apply(model.emit());
      await disk.check();
    }
  },
});

Deno.test({
  name: "three layers of changes stay clean",
  ignore: !tools,
  fn: async () => {
    const model = Ext4Model.create({ virtualSize: 2 ** 30 });
    await using disk = await Disk.create(model.virtualSize);
    const dir = model.mkdir(model.root, "dir", attrs(0o755));
    for (let i = 0; i < 500; i++) {
      const size = (i % 50) * 100;
      model.createFile(dir, `file-${i}`, attrs(0o644), { size });
    }
    model.symlink(dir, "fast", attrs(0o777), "x".repeat(59));
    model.symlink(dir, "slow", attrs(0o777), "y".repeat(60));
    disk.apply(model.emit());
    await disk.check();
    model.unlink(dir, "file-5");
    model.link(dir, "link", model.lookup(dir, "file-6")!);
    disk.apply(model.emit());
    await disk.check();
    model.removeTree(model.root, "dir");
    disk.apply(model.emit());
    await disk.check();
  },
});
