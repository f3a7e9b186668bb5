/** Noise instead of a client: the server must neither fall over nor forget the others. */

import assert from "node:assert/strict";
import { equalBytes, MemorySource } from "../../lib/io/mod.ts";
import { NbdClient } from "../../lib/nbd/mod.ts";
import { seededBytes, seededRandom } from "../testutil/source_contract.ts";
import { RecordingLogger } from "../testutil/test_source.ts";
import { until } from "../testutil/until.ts";
import {
  contextData,
  infoData,
  option,
  pack,
  RawPeer,
  request,
  withServer,
} from "./peer.ts";
import { MemoryBlockSource } from "./sources.ts";

const content = seededBytes(100_000, 1);

/** A good conversation, to be spoiled. */
const GOOD = pack(
  [3, 4],
  option(8),
  option(9, contextData("app", ["base:"])),
  option(10, contextData("app", ["base:allocation"])),
  option(6, infoData("app", [1, 2, 3])),
  option(3),
  option(7, infoData("app")),
  request({ type: 0, offset: 10, length: 5000 }),
  request({ type: 7, length: 5000 }),
  request({ type: 1, length: 300, payload: new Uint8Array(300) }),
  request({ type: 5, length: 5000 }),
  request({ type: 3 }),
  request({ type: 2 }),
);

function spoil(random: () => number): Uint8Array {
  const pick = (n: number) => Math.floor(random() * n);
  let bytes = GOOD.slice();
  for (let n = 1 + pick(4); n > 0; n--) {
    const at = pick(bytes.length);
    switch (pick(5)) {
      case 0:
        bytes[at]! ^= 1 << pick(8);
        break;
      case 1:
        bytes = bytes.slice(0, at);
        break;
      case 2:
        bytes.fill(random() < 0.5 ? 0xff : 0, at, at + 1 + pick(8));
        break;
      case 3:
        bytes = pack(bytes.subarray(0, at), bytes.subarray(pick(bytes.length)));
        break;
      default:
        bytes = pack(bytes.subarray(0, at), seededBytes(pick(64), at));
    }
    if (bytes.length === 0) bytes = new Uint8Array(1);
  }
  return bytes;
}

Deno.test("NBD fuzz: spoiled conversations harm nobody", async () => {
  const logger = new RecordingLogger();
  await withServer({ logger }, async (server, socket) => {
    const source = new MemoryBlockSource(content.slice());
    server.addExport({ name: "app", source, readOnly: false });
    const other = new MemorySource(content);
    const { stats } = server.addExport({ name: "other", source: other });
    await using client = await NbdClient.connect({
      address: { transport: "unix", path: socket },
      exportName: "other",
    });
    const random = seededRandom(42);
    for (let round = 0; round < 150; round++) {
      using peer = await RawPeer.open(socket);
      // Its answers are not read: what matters is that the server goes on.
      await peer.send(spoil(random)).catch(() => {});
      const half = round % 3 === 0;
      if (half) (peer.conn as Deno.UnixConn).closeWrite().catch(() => {});
      const dst = new Uint8Array(5000);
      await client.pread(dst, round * 100);
      const want = content.subarray(round * 100, round * 100 + 5000);
      assert.ok(equalBytes(dst, want), `round ${round}`);
    }
    await until(() => server.connectionCount === 1, "ending");
    assert.equal(stats.reads, 150);
    const known = [
      "nbd-connection-failed",
      "nbd-connection-lost",
      "nbd-request-failed",
    ];
    for (const line of logger.lines) {
      assert.ok(known.includes(line.event), line.event);
      const text = String(line.fields.error);
      assert.doesNotMatch(text, /DataView|Internal error|undefined/);
    }
  });
});
