import { equal } from "node:assert/strict";
import { chainKey, type ChainParameters } from "../../lib/image/chain_key.ts";
import { META_FORMAT_VERSION } from "../../lib/image/annotations.ts";

const HEX = "0123456789abcdef".repeat(4);
const CHAIN: ChainParameters = {
  diffIds: [`sha256:${HEX}`],
  layerDigests: [`sha256:${HEX}`],
  mediaTypes: ["application/vnd.oci.image.layer.v1.tar+gzip"],
  virtualSize: 2 ** 36,
  inodeRatio: 16384,
  flatten: false,
};

Deno.test("chainKey(): layers of other span sizes are other layers", () => {
  const chosen = chainKey(CHAIN, 1);
  const keys = [65_536, 2 ** 20, 2 ** 21].map((spanSize) =>
    chainKey({ ...CHAIN, spanSize }, 1)
  );
  equal(new Set([chosen, ...keys]).size, 4);
  equal(chainKey({ ...CHAIN, spanSize: undefined }, 1), chosen);
});

Deno.test("chainKey(): the key of a release changes with META_FORMAT_VERSION only", () => {
  // Another key for the same image, or another version: change both or none.
  equal(META_FORMAT_VERSION, 2);
  const key = chainKey(CHAIN, 1);
  equal(
    key,
    "e36263ae2fd463b78e0238eb7a9204d0e348a22af80d3b01651128e377964c89",
  );
});
