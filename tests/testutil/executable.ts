/** Programs that a test writes and then starts. */

/**
 * Writes a program, by a process of its own. If this one had the file open for
 * writing, so had the child of any test beside this one that is between fork
 * and exec; and while anybody has, nobody can start it (ETXTBSY).
 */
export async function writeExecutable(
  path: string,
  content: string | Uint8Array<ArrayBuffer>,
): Promise<void> {
  const child = new Deno.Command("sh", {
    args: ["-c", 'cat >"$1" && chmod 755 "$1"', "sh", path],
    stdin: "piped",
    stdout: "null",
  }).spawn();
  await new Blob([content]).stream().pipeTo(child.stdin);
  const { code } = await child.status;
  if (code !== 0) throw new Error(`cannot write "${path}"`);
}
