/** FileSource: what can be opened and must not be. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import {
  FileSource,
  isMemoryType,
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
    // What has no size beforehand, and what a shell's <(…) gives.
    const status = await readFileUpTo("/proc/self/status", 1_000_000);
    assert.ok(status.length > 0);
    assert.equal((await readFileUpTo("/dev/null", 0)).length, 0);
    const zeros = fs.openSync("/dev/zero", "r");
    await assert.rejects(
      readFileUpTo(`/proc/self/fd/${zeros}`, 1_000_000),
      LimitError,
    );
    fs.closeSync(zeros);
  } finally {
    await Deno.remove(path);
  }
});

Deno.test({
  name: "readFileUpTo() refuses what is no file, and waits for nobody",
  ignore: !requires("mkfifo"),
  fn: async () => {
    const directory = await Deno.makeTempDir({ prefix: "obd-file-test-" });
    try {
      const pipe = `${directory}/pipe`;
      await new Deno.Command("mkfifo", { args: [pipe] }).output();
      for (
        const [path, kind] of [
          [pipe, "pipe"],
          [directory, "directory"],
          ["/dev/zero", "device"],
        ] as const
      ) {
        await assert.rejects(
          readFileUpTo(path, 1_000_000),
          (error) =>
            error instanceof ObdError &&
            error.message === `it is a ${kind}, not a file`,
          path,
        );
      }
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  },
});

const POSIX_FADV_DONTNEED = 4; // fadvise64(2)

/** Has the kernel forget what it holds of a file that is on the disk. */
function dropPages(path: string): void {
  const libc = Deno.dlopen("libc.so.6", {
    posix_fadvise: { parameters: ["i32", "i64", "i64", "i32"], result: "i32" },
  });
  const fd = fs.openSync(path, "r+");
  try {
    fs.fsyncSync(fd);
    const error = libc.symbols.posix_fadvise(fd, 0n, 0n, POSIX_FADV_DONTNEED);
    assert.equal(error, 0);
  } finally {
    fs.closeSync(fd);
    libc.close();
  }
}

Deno.test("FileSource.preadNow() does not wait for the disk", async () => {
  const path = await Deno.makeTempFile({ prefix: "obd-file-test-" });
  try {
    const bytes = new Uint8Array(seededBytes(4 * 2 ** 20, 1));
    await Deno.writeFile(path, bytes);
    dropPages(path);
    await using file = await FileSource.open(path);
    const part = new Uint8Array(4096);
    const places = [3, 1, 2, 0].map((mib) => mib * 2 ** 20);
    const { type } = fs.statfsSync(path);
    for (const at of places) {
      const isNear = file.preadNow(part, at);
      assert.equal(isNear, isMemoryType(type), `${at} is on the disk only`);
    }
    for (const at of places) {
      await file.pread(part, at);
      assert.deepEqual(part, bytes.subarray(at, at + part.length));
    }
    // Others cannot tell, and are always waited for.
    const EXT4 = 0xef53;
    const XFS = 0x58465342;
    if (![EXT4, XFS].includes(type) && !isMemoryType(type)) return;
    for (const at of places) {
      part.fill(0);
      assert.equal(file.preadNow(part, at), true, `${at} is in the page cache`);
      assert.deepEqual(part, bytes.subarray(at, at + part.length));
    }
  } finally {
    await Deno.remove(path);
  }
});
