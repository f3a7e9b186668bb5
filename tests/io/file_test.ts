/** FileSource: what can be opened and must not be. */

import assert from "node:assert/strict";
import {
  FileSource,
  LimitError,
  loadLibc,
  ObdError,
  readFileUpTo,
} from "../../lib/io/mod.ts";
import { seededBytes } from "../testutil/source_contract.ts";
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

Deno.test("readFileUpTo() reads all of a file that is small enough, and no endless one", async () => {
  const path = await Deno.makeTempFile({ prefix: "obd-file-test-" });
  try {
    // More than it reads at once.
    const bytes = new Uint8Array(seededBytes(200_001, 1));
    await Deno.writeFile(path, bytes);
    assert.deepEqual(await readFileUpTo(path, bytes.length), bytes);
    await assert.rejects(readFileUpTo(path, bytes.length - 1), LimitError);
    await assert.rejects(readFileUpTo("/dev/zero", 1_000_000), LimitError);
    assert.equal((await readFileUpTo("/dev/null", 0)).length, 0);
  } finally {
    await Deno.remove(path);
  }
});
