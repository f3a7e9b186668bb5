/** LSMT layers of overlaybd: index, merged reading, writers. See README.md. */
export * from "./format.ts";
export {
  type LayerFields,
  type LayerSummary,
  LayerWriter,
  MAX_VIRTUAL_SIZE,
} from "./layer_writer.ts";
export * from "./lsmt_source.ts";
export * from "./merge.ts";
export * from "./open.ts";
export * from "./open_writable.ts";
export * from "./segment_table.ts";
export * from "./warp_writer.ts";
