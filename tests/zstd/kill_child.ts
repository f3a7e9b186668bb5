/** Reads the first byte of a layer of one frame into a pinned file, says so, and waits to be killed. */

import { PinnedSource, PinnedStore, SpanTable } from "../../lib/layers/mod.ts";
import { TestSource } from "../testutil/test_source.ts";
import { scan } from "./helpers.ts";

const [blobPath, directory] = Deno.args;
const blob = await Deno.readFile(blobPath!);
const scanned = await scan(blob);
const store = await PinnedStore.open({ directory, keepFreeBytes: 0 });

/** Comes to a stop in the middle of the blob. */
class SlowSource extends TestSource {
  override async pread(dst: Uint8Array, offset: number): Promise<void> {
    if (offset > blob.length / 2) await new Promise(() => {});
    await super.pread(dst, offset);
  }
}

const source = await PinnedSource.open(new SlowSource(blob), {
  digest: scanned.blobDigest,
  diffId: scanned.diffId,
  spans: new SpanTable(
    scanned.spans.uncompressedOffset,
    scanned.tarSize,
    scanned.spans.sha256,
  ),
  compressedStart: 0,
  store,
});
await source.pread(new Uint8Array(1), 0);
console.log("reading");
setInterval(() => {}, 1000);
