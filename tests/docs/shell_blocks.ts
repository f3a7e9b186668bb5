/**
 * The shell blocks of the documentation, and how each is tested.
 *
 * An HTML comment right before a block says it:
 *
 *     <!-- run: NAME -->               part of the session NAME: its blocks run
 *                                      in order, in one shell
 *     <!-- run: NAME; needs: a, b -->  and only where these programs are
 *                                      installed ("mount": root, loop, FUSE)
 *     <!-- by: PATH -->                the test PATH does the same
 *     <!-- not run: REASON -->         a person must
 */

/** One fenced `sh` block. */
export interface ShellBlock {
  file: string;
  /** Of its first line. */
  line: number;
  text: string;
  marker: Marker | undefined;
}

/** What stands before a block. */
export type Marker =
  | { kind: "run"; session: string; needs: string[] }
  | { kind: "by"; path: string }
  | { kind: "not run"; reason: string };

/** All `sh` blocks of a page, in order. */
export function shellBlocks(file: string, page: string): ShellBlock[] {
  const lines = page.split("\n");
  const blocks: ShellBlock[] = [];
  for (let i = 0; i < lines.length; i++) {
    if (!/^\s*```(sh|bash|shell|console)\s*$/.test(lines[i]!)) continue;
    const end = lines.indexOf("```", i + 1);
    if (end < 0) throw new Error(`${file}:${i + 1}: block without an end`);
    let before = i - 1;
    while (before >= 0 && lines[before]!.trim() === "") before--;
    blocks.push({
      file,
      line: i + 2,
      text: lines.slice(i + 1, end).join("\n"),
      marker: parseMarker(lines[before] ?? ""),
    });
    i = end;
  }
  return blocks;
}

function parseMarker(line: string): Marker | undefined {
  const match = /^<!-- (run|by|not run): (.+) -->$/.exec(line.trim());
  if (!match) return undefined;
  const [, kind, text] = match as unknown as [string, Marker["kind"], string];
  if (kind === "by") return { kind, path: text };
  if (kind === "not run") return { kind, reason: text };
  const [session, needs = ""] = text.split("; needs: ");
  return {
    kind,
    session: session!,
    needs: needs.split(",").map((n) => n.trim()).filter((n) => n !== ""),
  };
}
