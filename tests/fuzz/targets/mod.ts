/** All targets. */
import type { Target } from "../target.ts";
import { APPLY_TARGETS } from "./apply.ts";
import { ARCHIVE_TARGETS } from "./archive.ts";
import { CODEC_TARGETS } from "./codecs.ts";
import { CONFIG_TARGETS } from "./config.ts";
import { EXT4_TARGETS } from "./ext4.ts";
import { INDEX_TARGETS } from "./indexes.ts";
import { INSPECT_TARGETS } from "./inspect.ts";
import { JSON_TARGETS } from "./json.ts";
import { LSMT_TARGETS } from "./lsmt.ts";
import { NBD_TARGETS } from "./nbd.ts";
import { SMALL_TARGETS } from "./small.ts";
import { TAR_TARGETS } from "./tar.ts";
import { TAR_DIFFERENTIAL_TARGETS } from "./tar_differential.ts";
import { ZFILE_TARGETS } from "./zfile.ts";

/** See `../README.md`. */
export const TARGETS: Target[] = [
  ...LSMT_TARGETS,
  ...ZFILE_TARGETS,
  ...SMALL_TARGETS,
  ...INDEX_TARGETS,
  ...CODEC_TARGETS,
  ...TAR_TARGETS,
  ...TAR_DIFFERENTIAL_TARGETS,
  ...EXT4_TARGETS,
  ...APPLY_TARGETS,
  ...JSON_TARGETS,
  ...ARCHIVE_TARGETS,
  ...CONFIG_TARGETS,
  ...NBD_TARGETS,
  ...INSPECT_TARGETS,
];
