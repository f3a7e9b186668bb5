/** Stacks of layers that readers of tar may take in different ways. */

import type { LayerEntry } from "../testutil/oci_image.ts";
import { LAYER_CASES } from "./corpus_layers.ts";
import { LINK_CASES } from "./corpus_links.ts";
import { TAR_CASES } from "./corpus_tar.ts";

/**
 * A stack of layers, and how obd stands to containerd's archive code, as the
 * `native` snapshotter runs it. Without `refused`, `lenient` and `differs`: the
 * same tree.
 */
export interface TarCase {
  name: string;
  /** Bottom first: entries, or a whole tar. */
  layers: readonly (readonly LayerEntry[] | Uint8Array<ArrayBuffer>)[];
  /** Both refuse it; what obd says. */
  refused?: RegExp;
  /** Only containerd refuses it: why, and the paths of obd's tree. */
  lenient?: { why: string; paths: readonly string[] };
  /** The trees differ: why, and in which paths. */
  differs?: { why: string; paths: readonly string[] };
  /** What the `overlayfs` snapshotter makes of it, compared with `native`; not looked at where it is undefined. */
  overlayfs?: "same" | "differs" | "refused";
}

/** All of them. */
export const CORPUS: readonly TarCase[] = [
  ...LAYER_CASES,
  ...LINK_CASES,
  ...TAR_CASES,
];
