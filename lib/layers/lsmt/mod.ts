/** LSMT layers of overlaybd: index, merged reading, writers. See README.md. */
export * from "./format.ts";
export * from "./lsmt_source.ts";
export * from "./merge.ts";
export * from "./open.ts";
export * from "./segment_table.ts";
