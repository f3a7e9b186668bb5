/** Runs this tree's `obd` as a process of its own, with directories of a test's own. */

import { undoesCopy } from "./mount_namespace.ts";

const DEADLINE_MS = 180_000;
const MAIN = new URL("../../main.ts", import.meta.url).pathname;

/** Where modules are cached, whatever HOME says. */
export function denoDirectory(): string {
  const { DENO_DIR, XDG_CACHE_HOME, HOME } = Deno.env.toObject();
  return DENO_DIR ?? `${XDG_CACHE_HOME ?? `${HOME}/.cache`}/deno`;
}

/** How a command ended. */
export interface ObdResult {
  code: number;
  stdout: string;
  stderr: string;
}

/** One test's directories, where obd keeps everything it leaves behind. */
export class ObdSandbox implements AsyncDisposable {
  /** Short: sockets live below it. */
  readonly dir: string;
  readonly #children: Deno.ChildProcess[] = [];

  private constructor(dir: string) {
    this.dir = dir;
  }

  static async make(): Promise<ObdSandbox> {
    return new ObdSandbox(await Deno.makeTempDir({ prefix: "obd-t-" }));
  }

  /** Environment of commands in this sandbox. */
  get env(): Record<string, string> {
    return {
      OBD_RUN_DIR: `${this.dir}/run`,
      OBD_CACHE_DIR: `${this.dir}/cache`,
      // Nothing of the person who runs the tests.
      HOME: this.dir,
      DENO_DIR: denoDirectory(),
      NO_COLOR: "1",
    };
  }

  /** Starts a command; its output is piped. */
  spawn(
    args: string[],
    env: Record<string, string> = {},
  ): Deno.ChildProcess {
    return new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", MAIN, ...args],
      env: { ...this.env, ...env },
      cwd: this.dir,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
  }

  /** Runs a command to its end. */
  async run(
    args: string[],
    env: Record<string, string> = {},
  ): Promise<ObdResult> {
    const child = this.spawn(args, env);
    const timer = setTimeout(() => kill(child.pid, "SIGKILL"), DEADLINE_MS);
    const { code, stdout, stderr } = await child.output();
    clearTimeout(timer);
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    return { code, stdout: text(stdout), stderr: text(stderr) };
  }

  /**
   * Runs a command that must succeed, with `--json`.
   *
   * @returns The object that it printed.
   */
  // deno-lint-ignore no-explicit-any -- tests look at what they name
  async json(...args: string[]): Promise<any> {
    const { code, stdout, stderr } = await this.run([...args, "--json"]);
    if (code !== 0) {
      throw new Error(`obd ${args.join(" ")}: ${code}: ${stderr}`);
    }
    return JSON.parse(stdout);
  }

  /**
   * Starts `obd serve` with a configuration and waits until it is ready. It
   * ends with the sandbox, if not before.
   *
   * @returns The process and the object of its ready line.
   */
  async serve(
    config: Record<string, unknown>,
    // deno-lint-ignore no-explicit-any -- tests look at what they name
  ): Promise<{ child: Deno.ChildProcess; ready: any }> {
    const path = `${this.dir}/serve-${this.#children.length}.json`;
    await Deno.mkdir(`${this.dir}/run`, { recursive: true });
    await Deno.writeTextFile(
      path,
      JSON.stringify({
        nbd: { listen: `unix:${this.dir}/nbd.sock` },
        api: { listen: `unix:${this.dir}/api.sock` },
        cacheConfig: { cacheDir: `${this.dir}/cache/blobs` },
        gzipCacheConfig: { enable: true, cacheDir: `${this.dir}/cache/gzip` },
        ...config,
      }),
    );
    const log = `${path}.log`;
    const child = new Deno.Command("/bin/sh", {
      args: [
        "-c",
        'log=$1; shift; exec "$@" 2>>"$log"',
        "sh",
        log,
        Deno.execPath(),
        "run",
        "-A",
        MAIN,
        "serve",
        "--config",
        path,
      ],
      env: this.env,
      stdin: "null",
      stdout: "piped",
      stderr: "null",
    }).spawn();
    this.#children.push(child);
    let text = "";
    const decoder = new TextDecoder();
    for await (const part of child.stdout) {
      text += decoder.decode(part, { stream: true });
      if (text.includes("\n")) break;
    }
    if (!text.includes("\n")) {
      throw new Error(`serve did not start: ${await Deno.readTextFile(log)}`);
    }
    return { child, ready: JSON.parse(text) };
  }

  /** What obd left on this machine in this sandbox: mounts, loop devices, processes, state. */
  async leftovers(): Promise<string[]> {
    const found: string[] = [];
    for (const point of await this.#mountPoints()) found.push(`mount ${point}`);
    for (const device of await this.#loops()) found.push(`loop ${device}`);
    for (const { pid, command } of await this.#processes()) {
      if (await undoesCopy(pid, command)) continue;
      found.push(`process ${pid}: ${command}`);
    }
    try {
      for await (const entry of Deno.readDir(`${this.dir}/run/mounts`)) {
        found.push(`state ${entry.name}`);
      }
    } catch {
      // Nothing was ever mounted.
    }
    return found;
  }

  async #mountPoints(): Promise<string[]> {
    const text = await Deno.readTextFile("/proc/self/mountinfo");
    return text.split("\n").map((line) => line.split(" ")[4] ?? "")
      .filter((point) => point.startsWith(`${this.dir}/`)).reverse();
  }

  async #loops(): Promise<string[]> {
    const loops: string[] = [];
    for await (const { name } of Deno.readDir("/sys/block")) {
      const backing = await Deno.readTextFile(
        `/sys/block/${name}/loop/backing_file`,
      ).catch(() => "");
      if (backing.startsWith(`${this.dir}/`)) loops.push(`/dev/${name}`);
    }
    return loops;
  }

  /**
   * Processes that have this sandbox's name, which no other process has, in
   * their command line, or in their environment if that is asked for.
   */
  async #processes(
    byEnvironment = false,
  ): Promise<{ pid: number; command: string }[]> {
    const found: { pid: number; command: string }[] = [];
    for await (const { name } of Deno.readDir("/proc")) {
      if (!/^\d+$/.test(name) || Number(name) === Deno.pid) continue;
      const command = await Deno.readTextFile(`/proc/${name}/cmdline`)
        .catch(() => "");
      const environment = byEnvironment
        ? await Deno.readTextFile(`/proc/${name}/environ`).catch(() => "")
        : "";
      if (!`${command}${environment}`.includes(this.dir)) continue;
      found.push({
        pid: Number(name),
        command: command.replaceAll("\0", " "),
      });
    }
    return found;
  }

  /** Removes everything, whatever a failed test has left. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children) {
      kill(child.pid, "SIGCONT");
      kill(child.pid, "SIGTERM");
      await child.status;
      await child.stdout.cancel().catch(() => {});
    }
    // Servers first: a reader that waits for one cannot be ended.
    const left: { pid: number }[] = [];
    for (const { pid, command } of await this.#processes(true)) {
      if (!await undoesCopy(pid, command)) left.push({ pid });
    }
    for (const { pid } of left) kill(pid, "SIGCONT");
    for (const { pid } of left) kill(pid, "SIGKILL");
    for (let tries = 0; tries < 20; tries++) {
      for (const point of await this.#mountPoints()) {
        await quietly("umount", point);
      }
      for (const loop of await this.#loops()) {
        await quietly("losetup", "-d", loop);
      }
      if ((await this.#mountPoints()).length === 0) break;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    // Held by something that does not end: it goes with its last user.
    for (const point of await this.#mountPoints()) {
      await quietly("umount", "--lazy", point);
    }
    await quietly("rm", "-rf", "--one-file-system", this.dir);
  }
}

function kill(pid: number, signal: Deno.Signal): void {
  try {
    Deno.kill(pid, signal);
  } catch {
    // It has ended.
  }
}

async function quietly(program: string, ...args: string[]): Promise<void> {
  await new Deno.Command(program, {
    args,
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).output();
}
