import assert from "node:assert/strict";
import {
  copyBytes,
  equalBytes,
  latin1FromBytes,
  quoteName,
  utf8,
} from "../../lib/io/mod.ts";
import { seededBytes } from "../testutil/source_contract.ts";

Deno.test("copyBytes() copies to and from shared memory, however the two lie", () => {
  const LENGTHS = [0, 1, 7, 100, 65_535, 65_536, 65_537, 200_001];
  const content = seededBytes(200_100, 1);
  const plain = () => new Uint8Array(200_100);
  const shared = () => new Uint8Array(new SharedArrayBuffer(200_100));
  for (const makeFrom of [plain, shared]) {
    const source = makeFrom();
    source.set(content);
    for (const makeTo of [plain, shared]) {
      for (const from of [0, 3, 8, 13]) {
        for (const to of [0, 3, 5, 16]) {
          for (const length of LENGTHS) {
            const target = makeTo().fill(7);
            const dst = target.subarray(to, to + length + 1);
            copyBytes(dst, source.subarray(from, from + length));
            const want = plain().fill(7);
            want.set(content.subarray(from, from + length), to);
            assert.ok(equalBytes(target, want), `${from} ${to} ${length}`);
          }
        }
      }
    }
  }
  assert.throws(() => copyBytes(plain(), new Uint8Array(200_101)), RangeError);
});

Deno.test("quoteName() lets no control character through, of any set", () => {
  // The last one moves a terminal's cursor as ESC [ does.
  const name = latin1FromBytes(utf8('a"\n\x1b\x7f\u009b2J\u00e9'));
  assert.equal(quoteName(name), '"a\\"\\n\\u001b\\x7f\\x9b2J\u00e9"');
});
