import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { Inflate, STATUS } from "../../lib/compress/inflate.ts";
import { hasNativeInflate } from "../../lib/compress/mod.ts";
import {
  openRawInflate,
  PlainRawInflate,
  type RawInflate,
} from "../../lib/compress/raw_inflate.ts";
import { equalBytes, FormatError } from "../../lib/io/mod.ts";
import { DeflateWriter } from "./deflate_writer.ts";
import { mulberry32, sampleBytes } from "./samples.ts";

/** Every kind of block, shifted by `shift` bits through a fixed block of that many 9-bit literals. */
function everyBlock(shift: number): DeflateWriter {
  const writer = new DeflateWriter();
  writer.startFixed();
  for (let i = 0; i < shift; i++) writer.literal(200 + i);
  writer.literal(65).endBlock();
  writer.startFixed().endBlock();
  writer.dynamicRun(66, 300);
  writer.startFixed().literal(67).match3(1).match3(2).match3(200).endBlock();
  writer.stored(new Uint8Array(0));
  writer.stored(sampleBytes(shift, 500, "random"), false, shift & 1);
  writer.dynamicRun(11, 0);
  writer.dynamicRun(244, 17);
  writer.startFixed(true).literal(68).endBlock();
  return writer;
}

function decodeAll(
  decoder: RawInflate,
  stream: Uint8Array,
  step: { input: number; output: number },
): { output: Uint8Array; stops: number[]; ended: boolean; used: number } {
  const output = new Uint8Array(100_000);
  const stops: number[] = [];
  let at = 0;
  let to = 0;
  for (let calls = 0; calls < 100_000; calls++) {
    const size = Math.min(step.input, stream.length - at);
    const room = Math.min(step.output, output.length - to);
    decoder.write(stream, at, size, output, to, room, true);
    const consumed = size - decoder.availableIn;
    const produced = room - decoder.availableOut;
    at += consumed;
    to += produced;
    if (consumed === 0 && produced === 0) {
      return { output: output.slice(0, to), stops, ended: true, used: at };
    }
    if (decoder.availableIn > 0 && decoder.availableOut > 0) {
      stops.push(at, to);
    }
    if (at === stream.length) break;
  }
  return { output: output.slice(0, to), stops, ended: false, used: at };
}

Deno.test("the runtime's internals are as expected", () => {
  assert.ok(hasNativeInflate());
});

Deno.test("PlainRawInflate and native inflate stop at the same places, for every block at every bit", () => {
  for (let shift = 0; shift < 8; shift++) {
    const writer = everyBlock(shift);
    const stream = new Uint8Array(writer.bytes().length + 9);
    stream.set(writer.bytes());
    const content = Uint8Array.from(writer.content);
    assert.deepEqual(
      new Uint8Array(zlib.inflateRawSync(writer.bytes())),
      content,
    );
    const native = openRawInflate();
    for (
      const step of [
        { input: 10_000, output: 10_000 },
        { input: 7, output: 10_000 },
        { input: 1, output: 10_000 },
        { input: 10_000, output: 3 },
        { input: 2, output: 1 },
      ]
    ) {
      const plain = decodeAll(new PlainRawInflate(), stream, step);
      assert.deepEqual(plain.output, content);
      assert.ok(plain.ended);
      assert.equal(plain.used, writer.bytes().length);
      native.reset();
      const want = decodeAll(native, stream, step);
      if (step.input === 10_000 && step.output === 10_000) {
        assert.equal(plain.stops.length, 2 * 9);
        assert.deepEqual(plain.stops, want.stops);
      }
      assert.deepEqual(want.output, content);
    }
    native.close();
  }
});

Deno.test("PlainRawInflate decodes what zlib makes at every level", () => {
  const kinds = ["random", "text", "zeros", "pattern"] as const;
  for (const kind of kinds) {
    const content = sampleBytes(5, 90_000, kind);
    for (const level of [0, 1, 2, 6, 9]) {
      const packed = zlib.deflateRawSync(content, { level });
      const stream = new Uint8Array(packed.length + 8);
      stream.set(packed);
      const got = decodeAll(new PlainRawInflate(), stream, {
        input: 1000,
        output: 5000,
      });
      assert.ok(got.ended);
      assert.ok(equalBytes(got.output, content), `${kind} ${level}`);
    }
  }
});

Deno.test("malformed streams are refused by both, never decoded differently", () => {
  const base = everyBlock(3);
  const random = mulberry32(77);
  const native = openRawInflate();
  const TAIL = 400;
  let refused = 0;
  for (let round = 0; round < 3000; round++) {
    // The tail lets zlib get to errors that it sees later than we do.
    const stream = new Uint8Array(base.bytes().length + TAIL);
    stream.set(base.bytes());
    for (let n = Math.floor(random() * 3); n >= 0; n--) {
      const at = Math.floor(random() * (stream.length - TAIL));
      stream[at]! ^= 1 << Math.floor(random() * 8);
    }
    const results = [native, new PlainRawInflate()].map((decoder) => {
      decoder.reset();
      try {
        const step = { input: 10_000, output: 50_000 };
        const { output, ended, used } = decodeAll(decoder, stream, step);
        return `${ended} ${used} ${zlib.crc32(output)}`;
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
        return "refused";
      }
    });
    assert.equal(results[1], results[0], `round ${round}`);
    if (results[0] === "refused") refused++;
  }
  assert.ok(refused > 300 && refused < 3000, `${refused} refused`);
  native.close();
});

Deno.test("Inflate marks exactly the window bytes that are referred to", () => {
  const writer = new DeflateWriter();
  writer.startFixed();
  for (let i = 0; i < 100; i++) writer.literal(i);
  writer.endBlock();
  const start = writer.bitLength;
  // 3 bytes from 100 back, 3 from 50 back; the last match reaches over the window's end.
  writer.startFixed(true).match3(100).match3(50).match3(7).endBlock();
  const input = writer.bytes();
  const output = new Uint8Array(109);
  output.set(writer.content.slice(0, 100));
  const inflate = new Inflate();
  inflate.reset(start, 0, 100);
  inflate.marks = new Uint8Array(100);
  inflate.marksEnd = 100;
  assert.equal(
    inflate.run(input, input.length, output, 109),
    STATUS.streamEnd,
  );
  assert.deepEqual([...output], writer.content);
  const marked = [...inflate.marks.keys()].filter((i) => inflate.marks![i]);
  assert.deepEqual(marked, [0, 1, 2, 53, 54, 55, 99]);
});
