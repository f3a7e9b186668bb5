/**
 * Tools that a test needs, checked when its module loads (Deno has no skip at
 * run time).
 *
 * Use: `Deno.test({ name, ignore: !requires("e2fsck"), fn })`. A missing tool
 * skips with a reason that `tests/run.ts` prints; under `OBD_REQUIRE_TOOLS=1`
 * it is a failing test instead.
 */

const found = new Map<string, boolean>();
const reported = new Set<string>();

function onPath(tool: string): boolean {
  let is = found.get(tool);
  if (is === undefined) {
    const path = `${Deno.env.get("PATH") ?? ""}:/usr/sbin:/sbin`;
    is = path.split(":").some((dir) => {
      try {
        return dir !== "" && Deno.statSync(`${dir}/${tool}`).isFile;
      } catch {
        return false;
      }
    });
    found.set(tool, is);
  }
  return is;
}

function missing(reason: string): false {
  if (!reported.has(reason)) {
    reported.add(reason);
    const file = Deno.env.get("OBD_SKIP_FILE");
    if (file) Deno.writeTextFileSync(file, `${reason}\n`, { append: true });
    if (Deno.env.get("OBD_REQUIRE_TOOLS") === "1") {
      Deno.test(`requires: ${reason}`, () => {
        throw new Error(`OBD_REQUIRE_TOOLS=1, but ${reason}`);
      });
    }
  }
  return false;
}

/** Whether all programs are installed. */
export function requires(...tools: string[]): boolean {
  const lacking = tools.filter((tool) => !onPath(tool));
  return lacking.length === 0 ||
    missing(`not installed: ${lacking.join(", ")}`);
}

/** Whether a program is installed that not even CI must have: a browser, a third shell. */
export function installed(tool: string): boolean {
  if (onPath(tool)) return true;
  const file = Deno.env.get("OBD_SKIP_FILE");
  if (file) {
    Deno.writeTextFileSync(file, `not installed (optional): ${tool}\n`, {
      append: true,
    });
  }
  return false;
}

/** Whether loopback has IPv6, which not every container has. */
export function hasIpv6(): boolean {
  try {
    Deno.listen({ hostname: "::1", port: 0 }).close();
    return true;
  } catch {
    const file = Deno.env.get("OBD_SKIP_FILE");
    if (file) Deno.writeTextFileSync(file, "no IPv6\n", { append: true });
    return false;
  }
}

/** Whether this process is root; `why` says what for. */
export function requiresRoot(why: string): boolean {
  return Deno.uid() === 0 || missing(`${why} needs root`);
}

/** Whether this process is root with loop devices and FUSE, as mount tests need. */
export function requiresMount(): boolean {
  if (!requiresRoot("mounting")) return false;
  for (const path of ["/dev/fuse", "/dev/loop-control"]) {
    try {
      Deno.statSync(path);
    } catch {
      return missing(`mounting needs ${path}`);
    }
  }
  return true;
}

/** Whether this process may make user namespaces and trace what it starts. */
export function requiresUserNamespaces(): boolean {
  if (!requires("strace", "unshare")) return false;
  const { success } = new Deno.Command("strace", {
    args: ["-o", "/dev/null", "unshare", "--user", "--map-root-user", "true"],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).outputSync();
  return success || missing("user namespaces or ptrace are not allowed here");
}

/**
 * The golden data made by the real overlaybd tools: `OBD_GOLDEN`, else the part
 * that is kept in `tests/testdata/golden`.
 *
 * @returns The path of `name` in it, or undefined (reported as a skip).
 */
export function golden(name: string): string | undefined {
  const roots = [
    Deno.env.get("OBD_GOLDEN"),
    new URL("../testdata/golden", import.meta.url).pathname,
  ];
  for (const root of roots) {
    if (!root) continue;
    try {
      Deno.statSync(`${root}/${name}`);
      return `${root}/${name}`;
    } catch {
      // Try the next root.
    }
  }
  missing(`golden data "${name}" not found (set OBD_GOLDEN)`);
  return undefined;
}
