/**
 * The largest and strangest that a layer may hold, through the commands that
 * people use: `obd build`, `dump` with e2fsck, `mount` with the kernel's ext4.
 */

import { deepEqual, equal, match } from "node:assert/strict";
import { bytesFromLatin1, concatBytes } from "../../lib/io/mod.ts";
import {
  dir,
  file,
  hardlink,
  type LayerDescription,
  type LayerEntry,
  layerTar,
  makeImage,
  symlink,
  tarEntry,
  writeLayout,
} from "../testutil/oci_image.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import { sh } from "../image/helpers.ts";

const GIB = 2 ** 30;
const canMount = [
  requiresMount(),
  requires("nbdfuse", "losetup", "mount", "blockdev", "e2fsck", "find", "sort"),
].every((has) => has);

/** Writes one image as `oci:image:v1`, builds and dumps it; e2fsck must be content. */
async function buildClean(
  box: ObdSandbox,
  layers: readonly LayerDescription[],
): Promise<void> {
  const image = makeImage({ layers });
  await writeLayout(`${box.dir}/image`, [{ tag: "v1", image }]);
  await box.json("build", "oci:image:v1");
  await box.json("dump", "oci:image:v1", "device.raw");
  await sh(["e2fsck", "-fn", `${box.dir}/device.raw`]);
  await Deno.remove(`${box.dir}/device.raw`);
}

/** Mounts it at `at` while `look` looks. */
async function mounted(
  box: ObdSandbox,
  look: (at: string) => Promise<void>,
): Promise<void> {
  await Deno.mkdir(`${box.dir}/at`);
  await box.json("mount", "oci:image:v1", "at");
  try {
    await look(`${box.dir}/at`);
  } finally {
    await box.run(["umount", "at"]);
  }
}

/** What a shell pipeline prints, one character per byte. */
async function bytesOf(script: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command("bash", {
    args: [
      "-c",
      `set -euo pipefail; export LC_ALL=C; ${script}`,
      "sh",
      ...args,
    ],
    stdin: "null",
  }).output();
  if (code !== 0) throw new Error(new TextDecoder().decode(stderr));
  return Array.from(stdout, (b) => String.fromCharCode(b)).join("");
}

Deno.test({
  name: "100,000 names in a directory, 65,000 of one file, names of any bytes",
  ignore: !canMount,
  fn: async () => {
    await using box = await ObdSandbox.make();
    const many = Array.from(
      { length: 100_000 },
      (_, i) => file(`many/entry-number-${i}`),
    );
    const links = Array.from(
      { length: 64_999 },
      (_, i) => hardlink(`links/${i}`, "one"),
    );
    const odd: LayerEntry[] = [];
    for (let byte = 1; byte < 256; byte++) {
      if (byte === 0x2f) continue;
      odd.push(file(`odd/x${String.fromCharCode(byte)}y`, `${byte}`));
    }
    odd.push(file(`odd/${"\xff".repeat(255)}`, "long"));
    // 4095 bytes: the longest that a path with its NUL may be.
    const deep = `${"d".repeat(255)}/`.repeat(15) + "e".repeat(255);
    await buildClean(box, [
      { entries: [file("one", "the one"), ...many] },
      { entries: [] },
      { entries: [...links, ...odd, file(deep, "deep")] },
    ]);
    await mounted(box, async (at) => {
      const names = (entries: readonly LayerEntry[]) =>
        entries.map(({ path }) => path.slice(path.indexOf("/") + 1)).sort();
      for (
        const [directory, entries] of [
          ["many", many],
          ["links", links],
          ["odd", odd],
        ] as const
      ) {
        const list = await bytesOf(
          'cd "$1" && find . -mindepth 1 -printf "%f\\0" | sort -z',
          `${at}/${directory}`,
        );
        deepEqual(list.split("\0").slice(0, -1), names(entries), directory);
      }
      equal(
        await bytesOf(
          'stat -c "%h %i" "$1" "$2" | uniq | wc -l',
          `${at}/one`,
          `${at}/links/64998`,
        ),
        "1\n",
      );
      equal(await bytesOf('stat -c %h "$1"', `${at}/one`), "65000\n");
      const contents = await bytesOf(
        'cd "$1" && find . -mindepth 1 -size -4c -print0 | sort -z | xargs -0 cat',
        `${at}/odd`,
      );
      const short = odd.slice(0, -1).toSorted((a, b) =>
        a.path < b.path ? -1 : 1
      );
      equal(contents, short.map((e) => e.content).join(""));
      equal(
        await bytesOf(
          'cd "$1" && find . -name "e*" -path "./d*" -execdir cat {} +',
          at,
        ),
        "deep",
      );
      // Looked up by name, so through the directory's hash tree.
      for (const i of [0, 1, 4711, 65_537, 99_999]) {
        equal((await Deno.stat(`${at}/many/entry-number-${i}`)).size, 0);
      }
    });
  },
});

Deno.test({
  name: "sparse files of 9 GiB in every form that GNU tar writes",
  ignore: ![canMount, requires("tar", "truncate")].every((has) => has),
  fn: async () => {
    await using box = await ObdSandbox.make();
    const size = 9 * GIB + 12_345;
    const places = [0, 4096 * 7 + 1, 8 * GIB - 3, size - 5];
    const path = `${box.dir}/original`;
    {
      using out = await Deno.open(path, { create: true, write: true });
      await out.truncate(size);
      for (const [i, at] of places.entries()) {
        await out.seek(at, Deno.SeekMode.Start);
        await out.write(new Uint8Array(5).fill(65 + i));
      }
    }
    const forms = ["gnu", "posix 0.0", "posix 0.1", "posix 1.0"];
    const layers: LayerDescription[] = [];
    for (const [i, form] of forms.entries()) {
      const [format, version] = form.split(" ");
      await sh([
        ...["tar", "-C", box.dir, "-cS", `--format=${format}`],
        ...(version ? [`--sparse-version=${version}`] : []),
        ...["-f", `${box.dir}/tar`, `--transform=s/original/file-${i}/`],
        "original",
      ]);
      layers.push({ entries: await Deno.readFile(`${box.dir}/tar`) });
    }
    await buildClean(box, layers);
    await mounted(box, async (at) => {
      using original = await Deno.open(path);
      for (const [i, form] of forms.entries()) {
        using copy = await Deno.open(`${at}/file-${i}`);
        equal((await copy.stat()).size, size, form);
        for (const place of [...places, 5 * GIB]) {
          const from = Math.max(0, place - 9000);
          const got = await readAt(copy, from, 18_000);
          deepEqual(
            got,
            await readAt(original, from, 18_000),
            `${form} ${place}`,
          );
        }
      }
    });
  },
});

async function readAt(
  from: Deno.FsFile,
  offset: number,
  length: number,
): Promise<Uint8Array> {
  await from.seek(offset, Deno.SeekMode.Start);
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const count = await from.read(bytes.subarray(done));
    if (count === null) break;
    done += count;
  }
  return bytes.subarray(0, done);
}

Deno.test({
  name: "127 layers, some of them empty, and chains of 40 symlinks",
  ignore: !canMount,
  fn: async () => {
    await using box = await ObdSandbox.make();
    const chain = Array.from(
      { length: 40 },
      (_, i) => symlink(`chain/${i}`, i === 39 ? "../end" : `${i + 1}`),
    );
    const layers: LayerDescription[] = [
      { entries: [dir("end"), dir("chain"), ...chain] },
    ];
    for (let i = 1; i < 126; i++) {
      const entries = i % 10 === 0
        ? []
        : [file(`layer-${i}`, `${i}`), file("last", `${i}`)];
      layers.push({ entries, compression: i % 3 === 0 ? "none" : "gzip" });
    }
    layers.push({ entries: [file("chain/0/through", "the chain")] });
    await buildClean(box, layers);
    await mounted(box, async (at) => {
      equal(await Deno.readTextFile(`${at}/last`), "125");
      equal(await Deno.readTextFile(`${at}/end/through`), "the chain");
      equal(await Deno.readTextFile(`${at}/chain/0/through`), "the chain");
      for (let i = 1; i < 126; i++) {
        if (i % 10 === 0) continue;
        equal(await Deno.readTextFile(`${at}/layer-${i}`), `${i}`);
      }
    });
  },
});

/** Path, and what is wrong, for layers that no file system could take. */
const REFUSED: [name: string, tar: Uint8Array, message: RegExp][] = [
  [
    "a path over 4 KiB",
    layerTar([file("long/".repeat(819) + "xx", "")]),
    /long\/long\/.*over 4096 bytes/,
  ],
  [
    "a name over 255 bytes",
    layerTar([file(`dir/${"n".repeat(256)}`, "")]),
    /"dir\/n{20,}.*255/,
  ],
  [
    "an xattr larger than a block",
    layerTar([file("big", "", { xattrs: { "user.big": "v".repeat(5000) } })]),
    /"big".*user\.big|user\.big.*"big"/,
  ],
  [
    "65,001 names of one file",
    layerTar([
      file("one", ""),
      ...Array.from({ length: 65_000 }, (_, i) => hardlink(`l/${i}`, "one")),
    ]),
    /"l\/64999" to "one": it has 65000 names/,
  ],
  [
    "a chain of 41 symlinks",
    layerTar([
      ...Array.from({ length: 41 }, (_, i) => symlink(`${i}`, `${i + 1}`)),
      file("0/x", ""),
    ]),
    /"0".*too many levels of symbolic links/,
  ],
  [
    "a body of 20 TiB",
    concatBytes([
      tarEntry(file("vast", "", {
        sparse: {
          size: 20 * 2 ** 40,
          segments: [{ offset: 0, bytes: bytesFromLatin1("x".repeat(512)) }],
        },
      })),
      new Uint8Array(1024),
    ]),
    /a file of 21990232555520 bytes/,
  ],
];

Deno.test("obd build refuses by name what no file system can hold", async () => {
  await using box = await ObdSandbox.make();
  for (const [name, tar, message] of REFUSED) {
    const image = makeImage({
      layers: [{ entries: new Uint8Array(tar), compression: "none" }],
    });
    await writeLayout(`${box.dir}/${name}`, [{ tag: "v1", image }]);
    const { code, stdout, stderr } = await box.run([
      ...["build", `oci:${name}:v1`, "-q"],
    ]);
    equal(code, 1, name);
    equal(stdout, "", name);
    equal(stderr.trim().split("\n").length, 1, `${name}: ${stderr}`);
    match(stderr, message, name);
    match(stderr, /^obd: Layer 1 of 1 /, name);
  }
});
