/**
 * Commands in a mount namespace of their own. A namespace begins with copies
 * of all mounts there are, and a copy keeps a device busy: so tests that run
 * beside each other must not get each other's.
 */

/** Undoes the copies of what other tests have mounted, then runs the command. */
const SCRIPT = `grep -o ' [^ ]*/obd-[^ ]* ' /proc/self/mounts | tac |
while read -r point; do umount -l "$point" || :; done
exec "$@"`;

/**
 * The command that runs `command` (program and arguments) with mounts that
 * nobody else sees. Needs root and `unshare`.
 */
export function withOwnMounts(command: readonly string[]): string[] {
  return [
    ...["unshare", "--mount", "--propagation", "private"],
    ...["sh", "-c", SCRIPT, "sh", ...command],
  ];
}
