/** Where tests keep what takes long to make, from one run to the next. */

/** A directory that this user may write: `/var/cache/obd-tests` for root. */
export function cacheRoot(): string {
  if (Deno.uid() === 0) return "/var/cache/obd-tests";
  const base = Deno.env.get("XDG_CACHE_HOME") ??
    `${Deno.env.get("HOME") ?? "/tmp"}/.cache`;
  return `${base}/obd-tests`;
}
