/** The shared floor: sources, bytes, errors, bounded concurrency. Imports nothing. */
export * from "./budget.ts";
export * from "./bytes.ts";
export * from "./crc32c.ts";
export * from "./errors.ts";
export * from "./file.ts";
export * from "./libc.ts";
export * from "./limit.ts";
export * from "./log.ts";
export * from "./progress.ts";
export * from "./scratch.ts";
export * from "./sink.ts";
export * from "./source.ts";
export * from "./turns.ts";
export * from "./unix_socket.ts";
export * from "./urgency.ts";
export * from "./worker.ts";
