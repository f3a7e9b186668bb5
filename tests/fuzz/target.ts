/** What a fuzz target is: seeds, and a reader for each. */

import { errorText, ObdError } from "../../lib/io/mod.ts";
import type { Mutant, Ranges } from "./mutant.ts";
import type { Random } from "./random.ts";

/** Good bytes, and what to do with changed ones. */
export interface Seed {
  name: string;
  bytes: Uint8Array;
  /** Where changes matter most: headers, tables. */
  hot?: Ranges | undefined;
  /** Changes of its own instead of the usual ones; undefined leaves the choice to the harness. */
  mutate?: ((mutant: Mutant, random: Random) => void) | undefined;
  /** The usual changes would say nothing: {@linkcode mutate} makes every input. */
  onlyOwn?: boolean;
  /** Makes checksums right again after changes, so that what lies behind them is reached. */
  repair?: ((mutant: Mutant, random: Random) => void) | undefined;
  /**
   * Gives the input to the reader and uses what comes out.
   *
   * @throws {ObdError} If the reader refuses it.
   * @throws {WrongBytes} If the reader gave something that it must not.
   */
  read(input: FuzzInput, random: Random): void | Promise<void>;
}

/** One input as a reader gets it. */
export interface FuzzInput {
  /** Valid until `read` settles. */
  bytes: Uint8Array<ArrayBuffer>;
  /** Whether {@linkcode Seed.repair} ran: checksums protect nothing then. */
  repaired: boolean;
  /** Ranges of the seed that differ or moved. Unknown (undefined) when a saved input is read again. */
  changes: Ranges | undefined;
}

/** A reader, or a group of them, under a name. */
export interface Target {
  readonly name: string;
  /** What is read, for `--list`. */
  readonly summary: string;
  /** Share of the iterations, relative to the other targets. */
  readonly weight: number;
  /** Bytes of memory that one input may take; default 512 MiB. */
  readonly memoryBytes?: number;
  /** The seeds; those whose golden file or tool is missing are left out. */
  load(): Promise<Seed[]>;
}

/** A reader gave bytes that differ from what they must be. */
export class WrongBytes extends Error {
  override name = "WrongBytes";
}

/** What came of an input. */
export type Outcome =
  | { kind: "read" | "refused" }
  | { kind: FindingKind; error: Error };

/** What counts as a defect. */
export type FindingKind =
  | "crash"
  | "hang"
  | "memory"
  | "untyped"
  | "wrong-bytes";

/** What only a defect says, also where an error of ours was wrapped around it. */
const DEFECT =
  /Internal error|Cannot read propert|is not a function|is not iterable|Array buffer allocation|Invalid (typed )?array (buffer )?length|outside the bounds/;

/** Judges what a reader threw. */
export function judge(error: unknown): Outcome {
  if (error instanceof WrongBytes) return { kind: "wrong-bytes", error };
  if (error instanceof ObdError && !DEFECT.test(errorText(error))) {
    return { kind: "refused" };
  }
  return {
    kind: "untyped",
    error: error instanceof Error ? error : new Error(String(error)),
  };
}

/** Throws {@linkcode WrongBytes} unless the condition holds. */
export function must(condition: boolean, what: string): asserts condition {
  if (!condition) throw new WrongBytes(what);
}

/** Runs a reader on an input. */
export async function attempt(
  seed: Seed,
  input: FuzzInput,
  random: Random,
): Promise<Outcome> {
  try {
    const running = seed.read(input, random);
    // Most readers of small things need no turn of the event loop.
    if (running !== undefined) await running;
    return { kind: "read" };
  } catch (error) {
    return judge(error);
  }
}
