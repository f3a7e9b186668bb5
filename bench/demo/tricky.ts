/** Two small layers with every kind of entry, and every kind of change to the layers below. */

import { bytesFromLatin1, latin1FromBytes, utf8 } from "../../lib/io/mod.ts";
import {
  dir,
  file,
  hardlink,
  type LayerEntry,
  opaque,
  posixAcl,
  symlink,
  whiteout,
} from "../../tests/testutil/oci_image.ts";

// Tags of ACL entries (acl(5)); 0xffffffff is "no id".
const ACL = { userObj: 1, user: 2, groupObj: 4, mask: 16, other: 32 } as const;
const NO_ID = 0xffffffff;
const KIB = 1024;

/** Bytes that look random and are always the same. */
function noise(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed | 1;
  for (let i = 0; i < length; i++) {
    // xorshift32
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state;
  }
  return bytes;
}

/** Every kind of entry that an image can have. */
export function* everyKind(): Generator<LayerEntry> {
  yield dir("", { mtime: { seconds: 1_690_000_000, nanoseconds: 5 } });
  yield dir("demo", { mtime: { seconds: 1_700_000_001, nanoseconds: 7 } });
  yield* contents();
  yield* links();
  yield* attributes();
  yield* specials();
  yield* names();
  yield* manyNames();
  yield* toBeChanged();
}

function* contents(): Generator<LayerEntry> {
  yield dir("demo/content");
  yield file("demo/content/empty");
  // Around the ends of a sector and of a block.
  for (const size of [1, 511, 512, 513, 4095, 4096, 4097, 100_000]) {
    yield file(`demo/content/${size}`, noise(size, size));
  }
  yield file("demo/content/zeros", new Uint8Array(64 * KIB));
  yield file("demo/content/dirty padding", "four", { dirtyPadding: 0x5a });
  yield file("demo/content/hole in front", "", {
    sparse: {
      size: 300_000_000,
      segments: [{ offset: 299_991_296, bytes: noise(8704, 3) }],
    },
  });
  yield file("demo/content/hole behind", "", {
    sparse: {
      size: 10 * KIB * KIB + 1,
      segments: [
        { offset: 0, bytes: noise(5000, 4) },
        { offset: KIB * KIB, bytes: noise(3 * KIB, 5) },
      ],
    },
  });
  yield file("demo/content/all hole", "", {
    sparse: { size: 123_456, segments: [] },
  });
}

function* links(): Generator<LayerEntry> {
  yield dir("demo/links");
  // As tar writes them: each name's header has the attributes of the one inode.
  const shared = { uid: 33, mode: 0o640, mtime: 1_650_000_000 };
  yield file("demo/links/first name", noise(5000, 6), shared);
  yield hardlink("demo/links/second name", "demo/links/first name", shared);
  yield hardlink("demo/third name", "demo/links/first name", shared);
  yield symlink("demo/links/short", "../content/1");
  yield symlink("demo/links/dangling", "/not/there");
  // An inode holds targets of up to 59 bytes, longer ones need a block.
  for (const length of [59, 60, 100, 101, 1000]) {
    yield symlink(`demo/links/${length}`, "x".repeat(length));
  }
}

function* attributes(): Generator<LayerEntry> {
  yield dir("demo/attributes");
  yield file("demo/attributes/setuid", "", { mode: 0o4755 });
  yield file("demo/attributes/setgid", "", { mode: 0o2755 });
  yield file("demo/attributes/no rights", "secret", { mode: 0 });
  yield dir("demo/attributes/sticky", { mode: 0o1777 });
  yield file("demo/attributes/large ids", "", {
    uid: 4_294_967_294,
    gid: 2_097_152,
  });
  const times = {
    nanosecond: { seconds: 1_700_000_000, nanoseconds: 1 },
    "before 1970": { seconds: -86_400, nanoseconds: 250_000_000 },
    "after 2038": { seconds: 4_102_444_800, nanoseconds: 999_999_999 },
    "after 2106": { seconds: 10_000_000_000, nanoseconds: 0 },
  };
  for (const [name, mtime] of Object.entries(times)) {
    yield file(`demo/attributes/${name}`, "", { mtime });
  }
  yield file("demo/attributes/xattrs", "", {
    xattrs: {
      "user.text": "value",
      "user.empty": "",
      "user.binary": bytesFromLatin1("\x00\xff\n="),
      // cap_net_bind_service, as setcap writes it (version 2).
      "security.capability": bytesFromLatin1(
        "\x01\x00\x00\x02\x00\x04\x00\x00" + "\x00".repeat(12),
      ),
    },
  });
  // Beyond what fits into an inode.
  yield file("demo/attributes/large xattr", "", {
    xattrs: { "user.large": noise(3000, 8) },
  });
  const acl = posixAcl([
    [ACL.userObj, 6, NO_ID],
    [ACL.user, 4, 1000],
    [ACL.groupObj, 4, NO_ID],
    [ACL.mask, 4, NO_ID],
    [ACL.other, 0, NO_ID],
  ]);
  yield file("demo/attributes/acl", "shared", {
    mode: 0o640,
    xattrs: { "system.posix_acl_access": acl },
  });
  yield dir("demo/attributes/default acl", {
    mode: 0o750,
    xattrs: { "system.posix_acl_default": acl },
  });
}

function* specials(): Generator<LayerEntry> {
  yield dir("demo/special");
  yield {
    path: "demo/special/null",
    type: "char",
    devMajor: 1,
    devMinor: 3,
    mode: 0o666,
  };
  yield {
    path: "demo/special/disk",
    type: "block",
    devMajor: 259,
    devMinor: 65_537,
    mode: 0o660,
    gid: 6,
  };
  yield { path: "demo/special/fifo", type: "fifo", mode: 0o600 };
}

function* names(): Generator<LayerEntry> {
  yield dir("demo/names");
  const unicode = latin1FromBytes(utf8("Grüße, 世界 🚢"));
  yield file(`demo/names/${unicode}`, unicode);
  yield file("demo/names/not utf-8: \xff\xfe", "bytes");
  yield file("demo/names/new\nline", "");
  yield file("demo/names/ spaces ", "");
  yield file(`demo/names/${"n".repeat(255)}`, "longest name");
  const deep = Array.from({ length: 12 }, (_, i) => `${i}`.repeat(20));
  for (let n = 1; n <= deep.length; n++) {
    yield dir(`demo/names/${deep.slice(0, n).join("/")}`);
  }
  yield file(`demo/names/${deep.join("/")}/leaf`, "deep");
}

/** A directory of many blocks. */
function* manyNames(): Generator<LayerEntry> {
  yield dir("demo/many");
  for (let i = 0; i < 1500; i++) {
    const name = `${String(i).padStart(4, "0")} ${"m".repeat(i % 80)}`;
    yield file(`demo/many/${name}`, i % 3 === 0 ? name : "");
  }
}

function* toBeChanged(): Generator<LayerEntry> {
  yield dir("demo/changed");
  yield file("demo/changed/removed", noise(9000, 9));
  yield file("demo/changed/replaced", noise(9000, 10));
  yield file("demo/changed/becomes directory", "file");
  yield file("demo/changed/becomes symlink", "file");
  yield symlink("demo/changed/becomes file", "nowhere");
  yield file("demo/changed/linked", noise(9000, 11));
  yield hardlink("demo/changed/other name of linked", "demo/changed/linked");
  for (const name of ["removed tree", "opaque", "becomes a file"]) {
    yield dir(`demo/changed/${name}`);
    yield file(`demo/changed/${name}/one`, noise(2000, 12));
    yield dir(`demo/changed/${name}/sub`);
    yield file(`demo/changed/${name}/sub/two`, noise(2000, 13));
  }
  yield dir("demo/changed/attributes only", { mode: 0o755 });
  yield file("demo/changed/attributes only/stays", "stays");
}

/** Changes to what the layers below hold. */
export function* changes(): Generator<LayerEntry> {
  yield whiteout("demo/changed/removed");
  yield whiteout("demo/changed/removed tree");
  yield whiteout("demo/changed/linked");
  yield whiteout("demo/many/0000 ");
  yield file("demo/changed/replaced", noise(12_345, 14), { mode: 0o600 });
  yield dir("demo/changed/becomes directory", { uid: 5 });
  yield file("demo/changed/becomes directory/inside", "inside");
  yield symlink("demo/changed/becomes symlink", "../content/1");
  yield file("demo/changed/becomes file", noise(700, 15));
  yield file("demo/changed/becomes a file", "no directory any more");
  yield dir("demo/changed/opaque", { mode: 0o711 });
  yield opaque("demo/changed/opaque");
  yield file("demo/changed/opaque/new", "new");
  yield dir("demo/changed/attributes only", {
    mode: 0o700,
    gid: 9,
    mtime: 1_600_000_000,
  });
}
