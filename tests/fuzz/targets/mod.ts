/** All targets. */
import type { Target } from "../target.ts";
import { CODEC_TARGETS } from "./codecs.ts";
import { EXT4_TARGETS } from "./ext4.ts";
import { INDEX_TARGETS } from "./indexes.ts";
import { LSMT_TARGETS } from "./lsmt.ts";
import { SMALL_TARGETS } from "./small.ts";
import { ZFILE_TARGETS } from "./zfile.ts";

/** See `../README.md`. */
export const TARGETS: Target[] = [
  ...LSMT_TARGETS,
  ...ZFILE_TARGETS,
  ...INDEX_TARGETS,
  ...CODEC_TARGETS,
  ...EXT4_TARGETS,
  ...SMALL_TARGETS,
];
