/** Generated archives of every form: lib/tar, GNU tar and tar-stream see the same in them. */

import { loadLibc } from "../../lib/io/mod.ts";
import { requires } from "../testutil/requires.ts";
import { Random } from "./random.ts";
import {
  compareWithExpected,
  compareWithGnuTar,
  compareWithTarStream,
} from "./tar_compare.ts";
import { generateTar } from "./tar_generate.ts";

loadLibc(); // not a leak of the first test

const SEED = Number(Deno.env.get("OBD_FUZZ_SEED") ?? 1);

Deno.test("generated archives give what they were made of", () => {
  for (let i = 0; i < 60; i++) {
    const random = new Random(SEED, "tar expected", i);
    const { bytes, entries } = generateTar(random, { entries: 60 });
    compareWithExpected(bytes, entries);
  }
});

Deno.test("generated archives read as tar-stream reads them", async () => {
  for (let i = 0; i < 30; i++) {
    const random = new Random(SEED, "tar-stream", i);
    const { bytes } = generateTar(random, {
      entries: 60,
      sparse: "none",
      ascii: true,
    });
    await compareWithTarStream(bytes);
  }
});

Deno.test({
  name: "generated archives unpack with GNU tar to what the entries say",
  ignore: !requires("tar", "python3"),
  async fn() {
    const isRoot = Deno.uid() === 0;
    for (let i = 0; i < 5; i++) {
      const random = new Random(SEED, "GNU tar", i);
      const { bytes } = generateTar(random, {
        entries: 80,
        devices: isRoot,
        sparse: "blocks",
      });
      await compareWithGnuTar(bytes, isRoot);
    }
  },
});
