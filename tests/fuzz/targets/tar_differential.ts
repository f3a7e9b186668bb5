/** Generated archives, read by others too: see `../tar_compare.ts`. */

import { AssertionError } from "node:assert";
import { requires } from "../../testutil/requires.ts";
import { compareWithGnuTar, compareWithTarStream } from "../tar_compare.ts";
import { type GenerateOptions, generateTar } from "../tar_generate.ts";
import { type Seed, type Target, WrongBytes } from "../target.ts";

/** Room for any archive of so many entries. */
const ARCHIVE_MAX = 1024 * 1024;

/** A seed whose "mutation" is an archive of its own. */
function generated(
  name: string,
  options: GenerateOptions,
  compare: (tar: Uint8Array) => Promise<void>,
): Seed {
  const make: Seed["mutate"] = (mutant, random) =>
    mutant.replace(generateTar(random, options).bytes);
  return {
    name,
    bytes: new Uint8Array(ARCHIVE_MAX),
    mutate: make,
    onlyOwn: true,
    async read({ bytes }) {
      try {
        await compare(bytes);
      } catch (error) {
        if (!(error instanceof AssertionError)) throw error;
        throw new WrongBytes(error.message.slice(0, 500), { cause: error });
      }
    },
  };
}

/** Targets of this file. */
export const TAR_DIFFERENTIAL_TARGETS: Target[] = [
  {
    name: "tar-stream",
    summary: "generated archives as npm:tar-stream reads them",
    weight: 5,
    load: () =>
      Promise.resolve([
        generated(
          "tar-stream",
          { entries: 20, sparse: "none", ascii: true },
          compareWithTarStream,
        ),
      ]),
  },
  ...(requires("tar", "python3")
    ? [{
      name: "tar-gnu",
      summary: "generated archives as GNU tar unpacks them",
      weight: 0.2,
      load: () => {
        const isRoot = Deno.uid() === 0;
        return Promise.resolve([
          generated(
            "GNU tar",
            { entries: 40, sparse: "blocks", devices: isRoot },
            (tar) => compareWithGnuTar(tar, isRoot),
          ),
        ]);
      },
    }]
    : []),
];
