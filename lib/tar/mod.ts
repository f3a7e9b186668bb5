/** Tar archives as container layers use them: entries with the place of every body. See README.md. */
export * from "./entry.ts";
export * from "./limits.ts";
export * from "./path.ts";
export * from "./walker.ts";
export * from "./whiteout.ts";
