/** Codecs, checksums and random access into compressed streams. */
export { crc32c, ZFILE_BLOCK_SEED } from "./crc32c.ts";
export {
  LZ4_BLOCK_SIZE_MAX,
  lz4Compress,
  lz4CompressBound,
  lz4Decompress,
} from "./lz4.ts";
export {
  readZstdFrame,
  zstdCompress,
  zstdDecompress,
  type ZstdFrame,
} from "./zstd.ts";
