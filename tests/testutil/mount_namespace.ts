/**
 * Commands in a mount namespace of their own. A namespace begins with copies
 * of all mounts there are, and a copy keeps a device busy: so tests that run
 * beside each other must not get each other's.
 */

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
/** Below it nothing is mounted. */
const NOWHERE = "/dev/null";

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
