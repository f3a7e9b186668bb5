/** Debian's docker-registry (distribution) on loopback, with a log that can be read back. */

import { startOnFreePort } from "./free_port.ts";

/** A registry that runs until it is disposed of. */
export interface DockerRegistry extends AsyncDisposable {
  /** `127.0.0.1:PORT`, as in references. */
  readonly host: string;
  /** Directory of its storage. */
  readonly storage: string;
  /** Requests so far, oldest first: `GET /v2/… HTTP/1.1" 200 …`. */
  requests(): Promise<string[]>;
}

/**
 * Starts `docker-registry serve` with its files in `dir` (which the caller removes).
 *
 * @param extra YAML below the common configuration.
 */
export async function startDockerRegistry(
  dir: string,
  extra = "",
): Promise<DockerRegistry> {
  const config = `${dir}/registry.yml`;
  const log = `${dir}/registry.log`;
  const { child, port } = await startOnFreePort(async (port) => {
    await Deno.writeTextFile(
      config,
      `version: 0.1
log: {level: error, accesslog: {disabled: false}}
storage:
  filesystem: {rootdirectory: ${dir}/registry}
  delete: {enabled: true}
http: {addr: "127.0.0.1:${port}"}
${extra}
`,
    );
    // The shell only redirects: its exec keeps the process's id.
    return new Deno.Command("bash", {
      args: ["-c", 'exec docker-registry serve "$0" >"$1" 2>&1', config, log],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
  }, log);
  const stop = async () => {
    try {
      child.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await child.status;
  };
  return {
    host: `127.0.0.1:${port}`,
    storage: `${dir}/registry`,
    requests: async () =>
      (await Deno.readTextFile(log)).split("\n").flatMap((line) => {
        const match = /"((?:GET|HEAD|PUT|POST|PATCH|DELETE) [^"]*" \d+)/.exec(
          line,
        );
        return match ? [match[1]!] : [];
      }),
    [Symbol.asyncDispose]: stop,
  };
}
