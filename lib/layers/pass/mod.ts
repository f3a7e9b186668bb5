/** One pass over a layer blob: digests, checkpoints, and its tar. */
export { scanLayer } from "./scan.ts";
export { sniffLayer } from "./sniff.ts";
export {
  type LayerCheckpoints,
  type LayerCompression,
  type LayerScan,
  type LayerSpans,
  PLAIN_SPAN_SIZE,
  type ScanOptions,
  TAR_SIZE_MAX,
  type TarReceiver,
} from "./types.ts";
