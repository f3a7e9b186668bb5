/** `docker-credential-NAME get` (docker-credential-helpers, "Development"). */

import { DeadlineError, ObdError, utf8 } from "../io/mod.ts";
import type { Credentials } from "./credentials.ts";

const OUTPUT_SIZE_MAX = 64 * 1024;

/**
 * Asks a helper.
 *
 * @param name Suffix of the program's name.
 * @param server What the helper files its secrets under.
 * @returns Undefined when it has none.
 * @throws {ObdError} If it is missing, fails, or is not done in `timeoutMs`. Never with its output.
 */
export async function runCredentialHelper(
  name: string,
  server: string,
  timeoutMs: number,
): Promise<Credentials | undefined> {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$/.test(name)) {
    throw new ObdError("usage", `"${name}" cannot be a credential helper`);
  }
  const program = `docker-credential-${name}`;
  const { code, output } = await runWithInput(program, server, timeoutMs);
  if (code !== 0) {
    if (/credentials not found/i.test(output)) return undefined;
    throw new ObdError("state", `${program} failed with exit code ${code}`);
  }
  return parseOutput(program, output);
}

function parseOutput(program: string, output: string): Credentials | undefined {
  let json: { Username?: unknown; Secret?: unknown } | null;
  try {
    json = JSON.parse(output);
  } catch {
    throw new ObdError("format", `${program} wrote no valid JSON`);
  }
  const username = json?.Username;
  const secret = json?.Secret;
  if (typeof username !== "string" || typeof secret !== "string") {
    throw new ObdError("format", `${program} wrote no Username and Secret`);
  }
  if (username === "" && secret === "") return undefined;
  return username === "<token>"
    ? { kind: "refresh", token: secret }
    : { kind: "password", username, password: secret };
}

async function runWithInput(
  program: string,
  input: string,
  timeoutMs: number,
): Promise<{ code: number; output: string }> {
  let child: Deno.ChildProcess;
  try {
    child = new Deno.Command(program, {
      args: ["get"],
      stdin: "piped",
      stdout: "piped",
      stderr: "null",
    }).spawn();
  } catch (cause) {
    const why = cause instanceof Deno.errors.NotFound
      ? "it is not installed"
      : "it does not start";
    throw new ObdError("not-found", `Cannot run ${program}: ${why}`);
  }
  let expired = false;
  const timer = setTimeout(() => {
    expired = true;
    // A grandchild may keep the pipe open after the kill, so the read ends too.
    kill(child);
    reader.cancel().catch(() => {});
  }, timeoutMs);
  const reader = child.stdout.getReader();
  try {
    const writer = child.stdin.getWriter();
    // A helper may exit without reading.
    await writer.write(utf8(input)).then(() => writer.close()).catch(() => {});
    let output = "";
    const decoder = new TextDecoder();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      output += decoder.decode(value, { stream: true });
      if (output.length > OUTPUT_SIZE_MAX) {
        kill(child);
        throw new ObdError(
          "limit",
          `${program} wrote more than ${OUTPUT_SIZE_MAX} bytes`,
        );
      }
    }
    const { code } = await child.status;
    if (expired) throw new DeadlineError(program, timeoutMs);
    return { code, output };
  } finally {
    clearTimeout(timer);
    await reader.cancel().catch(() => {});
    await child.status;
  }
}

function kill(child: Deno.ChildProcess): void {
  try {
    child.kill("SIGKILL");
  } catch {
    // It has exited already.
  }
}
