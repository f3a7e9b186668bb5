/** `obd reconnect [TARGET…]`: devices go on after their serve was started again. */

import { errorText, NotFoundError, ObdError } from "../lib/io/mod.ts";
import {
  formatReference,
  parseReference,
  withTarget,
} from "../lib/image/mod.ts";
import type { ExportStatus } from "./api.ts";
import { type ApiClient, createApiClient } from "./api_client.ts";
import type { Context } from "./context.ts";
import { ownsDevice } from "./mount_device.ts";
import {
  KERNEL_CONNECTIONS,
  OtherDeviceError,
  reconnectKernel,
} from "./mount_kernel.ts";
import { isRunning } from "./mount_process.ts";
import { absolutePath, startServe } from "./mount_serve.ts";
import {
  listStates,
  MountDirectory,
  type MountState,
  undoCommand,
} from "./mount_state.ts";
import { absoluteImage, isConfigFile, requireRoot } from "./mount_steps.ts";

/** `connected`: nothing was to be done. */
type Outcome = "connected" | "reconnected" | "failed";

interface Row {
  state: MountState;
  outcome: Outcome;
  error: string | null;
}

export async function run(
  context: Context,
  targets: string[],
  options: Record<string, unknown>,
): Promise<number> {
  const { api } = options as { api?: string };
  requireRoot("connect devices again");
  const rows: Row[] = [];
  for (const state of chooseStates(await listStates(), targets)) {
    if (api !== undefined && state.api !== api) continue;
    rows.push(await tryReconnect(context, state));
  }
  for (const { state, outcome, error } of rows) {
    if (error === null) context.say(`${whereOf(state)} is ${outcome}`);
    else {context.log.error("device not connected", {
        at: whereOf(state),
        error,
      });}
  }
  if (rows.length === 0) context.say("Nothing is mounted or attached");
  context.result({
    devices: rows.map(({ state, outcome, error }) => ({
      id: state.id,
      dir: state.dir ?? null,
      device: state.device ?? null,
      image: state.image,
      outcome,
      error,
    })),
  });
  return rows.some(({ outcome }) => outcome === "failed") ? 1 : 0;
}

/**
 * The states that targets mean: directories, devices, ids or images; all
 * without any.
 *
 * @throws {NotFoundError} If a target means none.
 */
export function chooseStates(
  states: MountState[],
  targets: string[],
): MountState[] {
  if (targets.length === 0) return states;
  const chosen = targets.flatMap((target) => {
    const found = states.filter((state) =>
      [state.id, state.device, state.dir].includes(target) ||
      state.dir === absolutePath(target).replace(/\/+$/, "") ||
      state.image === absoluteImage(target)
    );
    if (found.length > 0) return found;
    throw new NotFoundError(
      `obd has nothing mounted or attached as "${target}"`,
    );
  });
  return [...new Set(chosen)];
}

function whereOf(state: MountState): string {
  const device = state.device ?? state.id;
  return state.dir === undefined ? device : `${state.dir} (${device})`;
}

async function tryReconnect(
  context: Context,
  state: MountState,
): Promise<Row> {
  try {
    const outcome = await reconnect(context, state);
    return { state, outcome, error: null };
  } catch (error) {
    if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
    return { state, outcome: "failed", error: errorText(error) };
  }
}

async function reconnect(
  context: Context,
  listed: MountState,
): Promise<Outcome> {
  const { signal } = context;
  using directory = await MountDirectory.open(listed.id);
  let state = await directory.read();
  // It may be gone, or another one, since the list was read.
  if (state?.started !== listed.started || !state.complete) {
    throw new ObdError("state", "It is being made or undone at this moment");
  }
  if (!await ownsDevice(directory, state)) {
    throw new ObdError("state", `Its device is gone (${undoCommand(state)})`);
  }
  if (state.serve && !await isRunning(state.serve)) {
    requireKernel(state);
    const save = async (change: Partial<MountState>) => {
      state = { ...state!, ...change };
      await directory.write(state);
    };
    await startServe(context, directory, (own) =>
      save({
        api: own.api,
        serve: own.process,
        privateCache: own.privateCache,
      }), state.serveOptions);
  }
  using client = createApiClient(state.api);
  const { exports } = await client.status({ signal });
  let exported = exports.find(({ name }) => name === state!.export);
  if (exported && isConnected(state, exported)) return "connected";
  requireKernel(state);
  exported ??= await openAgain(client, state, signal);
  if (exported.meta !== state.meta) throw new OtherDeviceError(state);
  await reconnectKernel({ ...state, uri: exported.uri });
  return "reconnected";
}

/** Opens the image as it was: by now its tag may name another one, and other referrers may be found. */
async function openAgain(
  client: ApiClient,
  state: MountState,
  signal: AbortSignal,
): Promise<ExportStatus> {
  const { image, platform } = state;
  const body = {
    name: state.export,
    ...(platform ? { platform } : {}),
    trace: false, // what it would fetch was read long ago
  } as const;
  if (isConfigFile(image)) {
    return await client.addExport({ ...body, config: image }, { signal });
  }
  const at = (digest: string | undefined) =>
    digest === undefined
      ? image
      : formatReference(withTarget(parseReference(image), { digest }));
  const { meta, source } = state;
  try {
    return await client.addExport(
      { ...body, image: at(meta ?? source) },
      { signal },
    );
  } catch (error) {
    const isMissing = error instanceof ObdError && error.code === "not-found";
    if (!isMissing || !meta || !source) throw error;
    // Built on the spot: it is nowhere, and becomes the same again.
    return await client.addExport({ ...body, image: at(source) }, { signal });
  }
}

/** Some of the connections may have ended alone; nobody else should use the export. */
function isConnected(
  state: MountState,
  { connections }: ExportStatus,
): boolean {
  return connections >= (state.driver === "nbd" ? KERNEL_CONNECTIONS : 1);
}

function requireKernel(state: MountState): void {
  if (state.driver === "nbd") return;
  throw new ObdError(
    "unsupported",
    `nbdfuse does not connect again, the kernel's NBD driver would: ${
      undoCommand(state)
    }, and mount or attach "${state.image}" again`,
  );
}
