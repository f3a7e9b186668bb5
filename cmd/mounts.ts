/** `obd mounts`: what is mounted and attached, and whether it is well. */

import { createApiClient } from "./api_client.ts";
import type { Context } from "./context.ts";
import { describeState } from "./mount.ts";
import { listStates, type MountState, runDirectory } from "./mount_state.ts";
import { isAlive } from "./mount_steps.ts";

const PROBE_DEADLINE_MS = 3000;

/** `ok`; or what is missing. */
type Health =
  | "ok"
  | "no-device"
  | "no-serve"
  | "no-export"
  | "disconnected";

export async function run(
  context: Context,
  _args: string[],
  _options: Record<string, unknown>,
): Promise<void> {
  const states = await listStates();
  const exports = await exportsByApi(context, states);
  const rows: { state: MountState; health: Health }[] = [];
  for (const state of states) {
    rows.push({ state, health: await healthOf(state, exports) });
  }
  if (!context.json) printTable(context, rows);
  context.result({
    mounts: rows.map(({ state, health }) => ({
      ...describeState(state),
      health,
    })),
  });
}

/** Exports of each serve, and how many clients each has; undefined for serves that do not answer. */
async function exportsByApi(
  { signal }: Context,
  states: MountState[],
): Promise<Map<string, Map<string, number> | undefined>> {
  const addresses = [...new Set(states.map((state) => state.api))];
  const found = await Promise.all(addresses.map(async (address) => {
    try {
      using client = createApiClient(address);
      const { exports } = await client.status({
        deadlineMs: PROBE_DEADLINE_MS,
        signal,
      });
      return new Map(exports.map((e) => [e.name, e.connections]));
    } catch {
      return undefined;
    }
  }));
  return new Map(addresses.map((address, i) => [address, found[i]]));
}

async function healthOf(
  state: MountState,
  exports: Map<string, Map<string, number> | undefined>,
): Promise<Health> {
  const directory = { path: `${runDirectory()}/mounts/${state.id}` };
  if (!await isAlive(directory, state)) return "no-device";
  const clients = exports.get(state.api);
  if (!clients) return "no-serve";
  const connections = clients.get(state.export);
  if (connections === undefined) return "no-export";
  return connections > 0 ? "ok" : "disconnected";
}

function printTable(
  context: Context,
  rows: { state: MountState; health: Health }[],
): void {
  if (rows.length === 0) {
    context.say("Nothing is mounted or attached");
    return;
  }
  const table = [
    ["ID", "WHERE", "DEVICE", "HEALTH", "SERVE", "IMAGE"],
    ...rows.map(({ state, health }) => [
      state.id,
      state.dir ?? "-",
      state.device ?? "-",
      health,
      state.serve ? `pid ${state.serve.pid}` : state.api,
      state.image,
    ]),
  ];
  const widths = table[0]!.map((_, column) =>
    Math.max(...table.map((row) => row[column]!.length))
  );
  for (const row of table) {
    context.say(
      row.map((cell, column) => cell.padEnd(widths[column]!)).join("  ")
        .trimEnd(),
    );
  }
}
