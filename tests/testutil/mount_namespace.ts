/**
 * Commands in a mount namespace of their own. A namespace begins with copies
 * of all mounts there are, and a copy keeps a device busy: so tests that run
 * beside each other must not get each other's.
 */

import { until } from "./until.ts";

/** Undoes the copies of what other tests have mounted, then runs the command. */
const SCRIPT = `kept=$1; shift
grep -o ' [^ ]*/obd-[^ ]* ' /proc/self/mounts | tac |
while read -r point; do
  case $point in
    "$kept"/*) ;;
    *) umount -l "$point" || : ;;
  esac
done
exec "$@"`;
/** How command lines of that begin. */
const UNDOING = "umount -l ";
/** Below it nothing is mounted. */
const NOWHERE = "/dev/null";

/**
 * Whether it was not left by what a test did, but undoes the copy of a mount
 * of that test, for a test beside it: if so, waits until it has ended.
 *
 * @param command A process's arguments, with blanks between them.
 */
export async function undoesCopy(
  pid: number,
  command: string,
): Promise<boolean> {
  if (!command.startsWith(UNDOING)) return false;
  const runs = () =>
    Deno.readTextFile(`/proc/${pid}/cmdline`)
      .then((text) => text.replaceAll("\0", " ") === command, () => false);
  return await until(async () => !await runs()).then(() => true, () => false);
}

/**
 * The command that runs `command` (program and arguments) with mounts that
 * nobody else sees. Needs root and `unshare`.
 *
 * @param kept A directory of the test's own: what is mounted below it stays.
 */
export function withOwnMounts(
  command: readonly string[],
  kept = NOWHERE,
): string[] {
  return [
    ...["unshare", "--mount", "--propagation", "private"],
    ...["sh", "-c", SCRIPT, "sh", kept, ...command],
  ];
}
