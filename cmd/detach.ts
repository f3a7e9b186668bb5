/** `obd detach TARGET`: undoes `obd attach`. */

import { ObdError, UsageError } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { listStates, MountDirectory, type MountState } from "./mount_state.ts";
import { absoluteImage, requireRoot, tearDown } from "./mount_steps.ts";

export async function run(
  context: Context,
  [target]: string[],
  _options: Record<string, unknown>,
): Promise<void> {
  requireRoot("detach");
  const found = findTarget(await listStates(), target!);
  let done = false;
  if (found) {
    using directory = await MountDirectory.open(found.id);
    // It may be gone, or another one, since the list was read.
    const state = await directory.read();
    if (state?.started === found.started) {
      await tearDown(directory, state);
      done = true;
    }
  }
  context.say(
    done
      ? `${found!.device ?? found!.id} is detached (${found!.image})`
      : `obd has nothing attached as ${target}`,
  );
  context.result({
    target: target!,
    id: found?.id ?? null,
    device: found?.device ?? null,
    image: found?.image ?? null,
    detached: done,
  });
}

/**
 * What a target means: an id, a device, or an image that is attached once.
 *
 * @throws {ObdError} If it means several, or a mount.
 */
export function findTarget(
  states: MountState[],
  target: string,
): MountState | undefined {
  const matches = states.filter((state) =>
    state.id === target || state.device === target
  );
  const mount = matches.find((state) => state.kind === "mount");
  if (mount) {
    throw new UsageError(
      `"${target}" is a mount: use obd umount ${mount.dir}`,
    );
  }
  if (matches.length > 0) return matches[0];
  const image = absoluteImage(target);
  const same = states.filter((state) =>
    state.kind === "attach" && state.image === image
  );
  if (same.length > 1) {
    throw new ObdError(
      "conflict",
      `"${target}" is attached ${same.length} times: name one of ${
        same.map((state) => state.device ?? state.id).join(", ")
      }`,
    );
  }
  return same[0];
}
