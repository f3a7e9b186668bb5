/** Layer formats: overlaybd's containers and indexes. */
export * from "./lsmt/mod.ts";
