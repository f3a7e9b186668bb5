/** In which order a bench runs what it compares. */

/** One run of a bench. */
export interface PlannedRun<W, C> {
  /** From 1. */
  round: number;
  workload: W;
  contender: C;
}

/**
 * Each round has every contender of every workload, in the other order every
 * other round: what drifts (the machine above all) meets all of them alike, and
 * the lowest and highest of a workload are those of the whole bench, not of the
 * few minutes in which it had its turn.
 */
export function* planRounds<W, C>(
  workloads: readonly W[],
  contenders: readonly C[],
  rounds: number,
): Generator<PlannedRun<W, C>> {
  for (let round = 1; round <= rounds; round++) {
    const inOrder = <T>(items: readonly T[]) =>
      round % 2 === 1 ? items : items.toReversed();
    for (const workload of inOrder(workloads)) {
      for (const contender of inOrder(contenders)) {
        yield { round, workload, contender };
      }
    }
  }
}
