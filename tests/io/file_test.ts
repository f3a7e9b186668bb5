/** FileSource: what can be opened and must not be. */

import assert from "node:assert/strict";
import { FileSource, loadLibc, ObdError } from "../../lib/io/mod.ts";
import { requires } from "../testutil/requires.ts";

loadLibc(); // not a leak of the first test

Deno.test("a directory is refused when it is opened", async () => {
  await assert.rejects(
    FileSource.open("/"),
    (error) =>
      error instanceof ObdError && error.code === "state" &&
      /directory/.test(error.message),
  );
});

Deno.test({
  name: "a pipe without a writer is refused, and not waited for",
  ignore: !requires("mkfifo"),
  async fn() {
    const directory = await Deno.makeTempDir({ prefix: "obd-file-test-" });
    try {
      const path = `${directory}/pipe`;
      const { success } = await new Deno.Command("mkfifo", { args: [path] })
        .output();
      assert.ok(success);
      await assert.rejects(
        FileSource.open(path),
        (error) => error instanceof ObdError && /pipe/.test(error.message),
      );
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  },
});
