/** When to begin to fetch ahead for an export that was just added. */

import { waitUntil } from "./mount_process.ts";

/**
 * Resolves with the first read of an export, or when nobody seems to be about
 * to attach it.
 *
 * Connecting a device and mounting it are some thirty messages that wait for
 * one another and need nothing from the registry: beside a replay that fills
 * link and processors they take a quarter of a second, without it 60 ms.
 *
 * @param stats Of the export; live.
 * @param deadlineMs For the first read.
 */
export async function firstRead(
  stats: { readonly reads: number },
  signal: AbortSignal,
  deadlineMs = 300,
): Promise<void> {
  await waitUntil(() => stats.reads > 0, deadlineMs, signal);
}
