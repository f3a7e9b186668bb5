/** Log lines: what they hold, and where they cannot be written. */

import { equal, match } from "node:assert/strict";
import { StderrLogger } from "../../cmd/log.ts";
import { withTempDir } from "./run_obd.ts";

Deno.test("a full disk takes log lines, and nothing else", () =>
  withTempDir(async (dir) => {
    const module = JSON.stringify(
      new URL("../../cmd/log.ts", import.meta.url).href,
    );
    await Deno.writeTextFile(
      `${dir}/log.ts`,
      `import { StderrLogger } from ${module};
const log = new StderrLogger({ level: "info", format: "text" });
log.error("one");
console.log("goes on", log.recent.length);`,
    );
    const { stdout } = await new Deno.Command("/bin/sh", {
      args: [
        "-c",
        'exec "$1" run -A --no-config "$2" 2>/dev/full',
        "sh",
        Deno.execPath(),
        `${dir}/log.ts`,
      ],
      stdin: "null",
    }).output();
    equal(new TextDecoder().decode(stdout), "goes on 1\n");
  }));

Deno.test("a value in a log line holds no control character, of any set", () => {
  const log = new StderrLogger({ level: "error", format: "text" });
  log.info("read", { path: "a\n\x1b[2J\x7f\u009b2J" });
  match(log.recent[0]!, / path="a\\n\\u001b\[2J\\x7f\\x9b2J"$/);
});
