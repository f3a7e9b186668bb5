import assert from "node:assert/strict";
import { planRounds } from "../../cmd/bench/rounds.ts";

Deno.test("planRounds() has all workloads in each round, and every other round backwards", () => {
  const plan = [...planRounds(["a", "b"], [1, 2], 3)];
  assert.deepEqual(
    plan.map(({ round, workload, contender }) =>
      `${round}${workload}${contender}`
    ),
    [
      ...["1a1", "1a2", "1b1", "1b2"],
      ...["2b2", "2b1", "2a2", "2a1"],
      ...["3a1", "3a2", "3b1", "3b2"],
    ],
  );
  assert.deepEqual([...planRounds([], [1], 3)], []);
});
