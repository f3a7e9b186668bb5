/** Names of any bytes: what `ls` prints, `ls` and `cat` take. */

import { deepEqual, equal, match, notEqual } from "node:assert/strict";
import { shownPath } from "../../cmd/image_path.ts";
import { latin1FromBytes, utf8 } from "../../lib/io/mod.ts";
import { file, makeImage, writeLayout } from "../testutil/oci_image.ts";
import { obd } from "./run_obd.ts";

Deno.test("shownPath(): UTF-8 as it is, anything else byte by byte", () => {
  const bytes = (text: string) => latin1FromBytes(utf8(text));
  const cases: [string, string][] = [
    [bytes("käse/日本/𝄞"), "käse/日本/𝄞"],
    ["a\xffb", "a\\xffb"],
    // Latin-1, overlong, a surrogate, cut off, beyond U+10FFFF.
    ["k\xe4se", "k\\xe4se"],
    ["\xc0\xaf", "\\xc0\\xaf"],
    ["\xed\xa0\x80", "\\xed\\xa0\\x80"],
    ["\xe6\x97/x", "\\xe6\\x97/x"],
    ["\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"],
    ["a\nb\x7f", "a\\x0ab\\x7f"],
    [bytes("\x85"), "\\xc2\\x85"],
    [`${bytes("\ufeff")}a`, "\ufeffa"],
    ["dev-a\\x2db.mount", "dev-a\\x2db.mount"],
  ];
  for (const [name, shown] of cases) equal(shownPath(name), shown);
  for (let i = 0; i < 0x110000; i += 7) {
    if (i >= 0xd800 && i < 0xe000) continue;
    const text = String.fromCodePoint(i);
    const shown = shownPath(bytes(text));
    if (/\p{Cc}/u.test(text)) match(shown, /^(\\x[0-9a-f]{2})+$/);
    else equal(shown, text);
  }
});

Deno.test("obd cat and ls take what ls prints", async () => {
  const dir = await Deno.makeTempDir({ prefix: "obd-path-" });
  try {
    // No two of these may stand for each other.
    const names = [
      ...["a", "b\xff", "b\xfe", "c\nd", "\\x2d", "e\\x2d\xff", "\\xfd"],
      ...[latin1FromBytes(utf8("ü")), "\xfc", "d\xff/e\xfe", "d\xff/f"],
    ];
    const image = makeImage({
      layers: [{
        entries: names.map((name) => file(name, `of ${names.indexOf(name)}`)),
      }],
    });
    await writeLayout(dir, [{ tag: "v1", image }]);
    const source = `oci:${dir}:v1`;
    const { entries } = JSON.parse(
      (await obd(["ls", "-R", "--json", source])).stdout,
    ) as { entries: { path: string; type: string }[] };
    const paths = entries.filter((e) => e.type === "file").map((e) => e.path);
    deepEqual(paths.sort(), names.map(shownPath).sort());
    await Promise.all(names.map(async (name, i) => {
      const { stdout, stderr } = await obd(["cat", source, shownPath(name)]);
      equal(stdout, `of ${i}`, stderr);
    }));
    const inner = await obd(["ls", source, "d\\xff"]);
    equal(inner.stdout, "e\\xfe\nf\n");
    const single = await obd(["ls", source, "/d\\xff/e\\xfe"]);
    equal(single.stdout, "d\\xff/e\\xfe\n");
    const absent = await obd(["cat", source, "b\\xfa"]);
    notEqual(absent.code, 0);
    match(absent.stderr, /b\\+xfa/);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});
