/** Runs oracle.py. */
const SCRIPT = new URL("./oracle.py", import.meta.url).pathname;

/** Runs a program; @returns what it prints. */
export async function run(
  program: string,
  args: readonly string[],
  cwd?: string,
): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(program, {
    args: [...args],
    ...(cwd === undefined ? {} : { cwd }),
    env: { LC_ALL: "C.UTF-8" },
    stdin: "null",
  }).output();
  if (!success) {
    const text = new TextDecoder().decode(stderr);
    throw new Error(`${program} ${args.join(" ")}: ${text}`);
  }
  return new TextDecoder().decode(stdout);
}

/** Runs a command of oracle.py. */
export function python(...args: string[]): Promise<string> {
  return run("python3", [SCRIPT, ...args]);
}

/** A node as `oracle.py stat` tells of it. */
export interface StatNode {
  type: string;
  mode: number;
  uid: number;
  gid: number;
  mtimeNs: string;
  size: number;
  link: string;
  dev: number[];
  xattrs: [string, string][];
  sha256?: string;
  inode?: number;
}
