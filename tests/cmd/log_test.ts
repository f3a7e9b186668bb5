/** Log lines where they cannot be written. */

import { equal } from "node:assert/strict";
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
