/** Waiting for what happens by itself. */

/** Not how long it takes: how long nobody would wait on the slowest machine. */
const PATIENCE_MS = 60_000;

/** Waits until something is true; rejects when it never becomes so. */
export async function until(
  condition: () => boolean | Promise<boolean>,
  what = "it",
): Promise<void> {
  const end = performance.now() + PATIENCE_MS;
  while (!await condition()) {
    if (performance.now() > end) throw new Error(`${what} does not happen`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
