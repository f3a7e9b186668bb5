/** Makes the input of an iteration; the same in every process. */

import { Mutant, mutate, type Ranges } from "./mutant.ts";
import { Random } from "./random.ts";
import {
  attempt,
  type FuzzInput,
  type Outcome,
  type Seed,
  type Target,
} from "./target.ts";

/** A target with its seeds in memory. */
export class LoadedTarget {
  readonly target: Target;
  readonly seeds: readonly Seed[];
  readonly #mutants: Mutant[];

  private constructor(target: Target, seeds: readonly Seed[]) {
    this.target = target;
    this.seeds = seeds;
    this.#mutants = seeds.map((seed) => new Mutant(seed.bytes));
  }

  /** @throws {Error} If there is nothing to mutate. */
  static async load(target: Target): Promise<LoadedTarget> {
    const seeds = await target.load();
    if (seeds.length === 0) {
      throw new Error(`Target "${target.name}" has no seeds`);
    }
    return new LoadedTarget(target, seeds);
  }

  /** Makes an input; {@linkcode MadeInput.release} it before the next one. */
  make(seed: number, iteration: number): MadeInput {
    const random = new Random(seed, this.target.name, iteration);
    const chosen = random.below(this.seeds.length);
    const from = this.seeds[chosen]!;
    const mutant = this.#mutants[chosen]!;
    if (from.mutate && (from.onlyOwn || !random.oneIn(4))) {
      from.mutate(mutant, random);
    } else mutate(mutant, from.hot, random);
    // Before the repair, which is no change of its own.
    const { changes } = mutant;
    const repaired = from.repair !== undefined && !random.oneIn(4);
    if (repaired) from.repair!(mutant, random);
    const { name } = this.target;
    return {
      seed: from,
      input: { bytes: mutant.bytes, repaired, changes },
      read: (input) =>
        attempt(from, input, new Random(seed, `${name}/read`, iteration)),
      release: () => mutant.reset(),
    };
  }

  /** The seed of that name. */
  find(name: string): Seed | undefined {
    return this.seeds.find((seed) => seed.name === name);
  }
}

/** The input of one iteration. */
export interface MadeInput {
  seed: Seed;
  input: FuzzInput;
  /** Reads an input as this iteration does: with the same choices. */
  read(input: FuzzInput): Promise<Outcome>;
  release(): void;
}

/** What remains of a seed's changes when the bytes themselves are kept elsewhere. */
export interface SavedInput {
  bytes: Uint8Array<ArrayBuffer>;
  repaired: boolean;
  changes: Ranges | undefined;
}

/** A copy that outlives the iteration. */
export function saveInput({ bytes, repaired, changes }: FuzzInput): SavedInput {
  return { bytes: bytes.slice(), repaired, changes };
}
