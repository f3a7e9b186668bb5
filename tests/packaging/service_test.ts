/** The systemd unit. */

import assert from "node:assert/strict";
import { requires } from "../testutil/requires.ts";

const UNIT = new URL("../../packaging/obd.service", import.meta.url).pathname;

Deno.test("obd.service: every line is a section, a setting, or a comment", async () => {
  const lines = (await Deno.readTextFile(UNIT)).split("\n");
  for (const line of lines) assert.match(line, /^(\[\w+\]|\w+=.+|#.*|)$/);
  const text = lines.join("\n");
  assert.match(text, /^Type=notify$/m);
  assert.match(text, /^ExecStart=\S+ serve --config \S+$/m);
});

Deno.test({
  name: "obd.service: systemd finds nothing wrong",
  ignore: !requires("systemd-analyze"),
  async fn() {
    const temp = await Deno.makeTempDir();
    try {
      // The program must exist for the check; it is not started.
      const text = (await Deno.readTextFile(UNIT))
        .replaceAll("/usr/local/bin/obd", "/bin/true");
      await Deno.writeTextFile(`${temp}/obd.service`, text);
      const { code, stderr } = await new Deno.Command("systemd-analyze", {
        args: ["verify", `${temp}/obd.service`],
        stdin: "null",
        stdout: "null",
        stderr: "piped",
      }).output();
      const said = new TextDecoder().decode(stderr);
      assert.equal(code, 0, said);
      assert.doesNotMatch(said, /obd\.service/);
    } finally {
      await Deno.remove(temp, { recursive: true });
    }
  },
});
