/** ZFile: overlaybd's seekable compressed container. See README.md. */
export { BlockPacker } from "./block_packer.ts";
export { checkZFileTrailer } from "./check_trailer.ts";
export type { ZFileCodec } from "./format.ts";
export { isZFile, MAX_BLOCKS, openZFile } from "./open.ts";
export { type ZFileGeometry, ZFileSource } from "./zfile_source.ts";
export {
  type ZFileOptions,
  type ZFileSummary,
  ZFileWriter,
} from "./zfile_writer.ts";
