/** What `obd verify` finds, collected check by check. */

import { errorText, ObdError } from "../io/mod.ts";
import type { Attempt } from "./verify_layer.ts";

/** Something that is wrong. */
export interface Finding {
  /** 1 = bottom; absent where it concerns the whole image. */
  layer?: number;
  /** Of the layer's blob. */
  digest?: string;
  /** What was checked. */
  check: string;
  problem: string;
}

/** One layer that was looked at. */
export interface VerifiedLayer {
  digest: string;
  kind: "plain" | "turbo" | "native" | "acceleration";
  size: number;
  ok: boolean;
}

/** Turns what a check throws into findings; cancellation and our own mistakes pass. */
export function attempts(
  findings: Finding[],
  where: Pick<Finding, "layer" | "digest">,
): Attempt {
  return async (check, work) => {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ObdError) || error.code === "cancelled") {
        throw error;
      }
      findings.push({ ...where, check, problem: errorText(error) });
      return undefined;
    }
  };
}
