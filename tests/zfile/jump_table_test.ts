import assert from "node:assert/strict";
import { JumpTable } from "../../lib/zfile/jump_table.ts";
import { FormatError } from "../../lib/io/mod.ts";
import { seeded } from "../testutil/lsmt_image.ts";

const table = (
  lengths: number[],
  options = { blockSize: 4096, verify: true },
) => new JumpTable(Uint32Array.from([...lengths, 0]), 512, options);

Deno.test("JumpTable positions are the running sum", () => {
  const random = seeded(1);
  for (const count of [0, 1, 63, 64, 65, 128, 1000]) {
    const lengths = Array.from(
      { length: count },
      () => 5 + Math.floor(random() * 4000),
    );
    const built = table(lengths);
    assert.equal(built.count, count);
    let at = 512;
    for (let i = 0; i <= count; i++) {
      assert.equal(built.position(i), at, `${i} of ${count}`);
      at += lengths[i] ?? 0;
    }
    assert.throws(() => built.position(count + 1), TypeError);
  }
});

Deno.test("JumpTable refuses blocks without content or longer than possible", () => {
  table([5]);
  assert.throws(() => table([4]), FormatError);
  table([1], { blockSize: 4096, verify: false });
  assert.throws(() => table([0], { blockSize: 4096, verify: false }));
  table([4096 + 16 + 16 + 4]);
  assert.throws(() => table([5, 5000]), /block 1 is 5000 bytes/);
  // What overlaybd writes for 64 KiB of noise, and cannot read itself.
  table([65794 + 4, 65546], { blockSize: 65536, verify: true });
});

Deno.test("JumpTable refuses groups over 16 bits, as overlaybd does", () => {
  const small = { blockSize: 512, verify: true }; // 128 blocks to a group
  const most = new Array<number>(128).fill(516);
  most[0] = 65534 - 126 * 516; // 127 blocks sum to 65534
  assert.ok(most[0]! < 648);
  table(most, small);
  const over = most.slice();
  over[3]!++;
  assert.throws(() => table(over, small), /block 126 puts its group/);
  const lastIsFree = most.slice();
  lastIsFree[127] = 640;
  table([...lastIsFree, ...most], small);
});
