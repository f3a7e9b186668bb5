/** Makes ext4 images with mke2fs and debugfs for the reader's tests. */

import assert from "node:assert/strict";
import { loadLibc } from "../../lib/io/mod.ts";

// FileSource loads it once per process; first inside a test it would look like that test's leak.
loadLibc();

/** Runs a program; fails with its output unless it exits with one of `codes`. */
export async function run(
  command: string,
  args: string[],
  options: { cwd?: string; codes?: number[]; stdin?: string } = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const child = new Deno.Command(command, {
    args,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    env: { PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin`, LC_ALL: "C" },
    stdin: options.stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  if (options.stdin !== undefined) {
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(options.stdin));
    await writer.close();
  }
  const { code, stdout, stderr } = await child.output();
  const text = new TextDecoder().decode(stderr);
  assert.ok(
    (options.codes ?? [0]).includes(code),
    `${command} ${args.join(" ")}: exit ${code}\n${text}${
      new TextDecoder().decode(stdout)
    }`,
  );
  return stdout;
}

/** Runs one debugfs command and returns what it prints. */
export async function debugfs(image: string, command: string): Promise<string> {
  return new TextDecoder().decode(
    await run("debugfs", ["-R", command, image]),
  );
}

/** Runs debugfs commands that change an image. */
export async function debugfsWrite(
  image: string,
  commands: string[],
): Promise<void> {
  const out = await run("debugfs", ["-w", "-f", "-", image], {
    stdin: commands.join("\n") + "\n",
  });
  const text = new TextDecoder().decode(out).split("\n")
    .filter((line) => line !== "" && !line.startsWith("debugfs: "))
    .filter((line) => !/^Allocated inode|^Filesystem features:/.test(line));
  assert.deepEqual(text, []);
}

/** Runs `body` in a temporary directory. */
export async function withTempDir(
  body: (directory: string) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "obd-ext4-" });
  try {
    await body(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** A tree with something of everything that a file system holds. Needs root for devices and owners. */
export async function makeSourceTree(directory: string): Promise<void> {
  await run("bash", ["-euc", SCRIPT], { cwd: directory });
}

const SCRIPT = String.raw`
mkdir -p usr/bin usr/lib/deep/er/still etc empty many
for i in $(seq 1 300); do echo $i > many/entry-with-a-somewhat-longer-name-$i; done
: > etc/empty
printf x > etc/one
head -c 4095 /dev/zero | tr '\0' a > etc/block-1
head -c 4096 /dev/zero | tr '\0' b > etc/block
head -c 4097 /dev/zero | tr '\0' c > etc/block+1
seq 1 200000 > usr/lib/numbers
seq 1 20 > usr/lib/deep/er/still/twenty
truncate -s 3M usr/lib/sparse
python3 -c 'for i in range(400):
    with open("usr/lib/pieces", "r+b" if i else "wb") as f:
        f.seek(i * 8192); f.write(b"%d" % i)'
printf middle | dd of=usr/lib/sparse bs=1 seek=1500000 conv=notrunc status=none
printf end | dd of=usr/lib/sparse bs=1 seek=3145725 conv=notrunc status=none
truncate -s 5G usr/lib/huge-hole
printf far | dd of=usr/lib/huge-hole bs=1M seek=3072 conv=notrunc status=none
ln etc/one usr/hard
ln -s ../etc/one usr/link
ln -s /usr/lib/deep usr/absolute
ln -s loop2 loop1
ln -s loop1 loop2
ln -s $(head -c 59 /dev/zero | tr '\0' s) etc/link59
ln -s $(head -c 60 /dev/zero | tr '\0' s) etc/link60
ln -s $(head -c 900 /dev/zero | tr '\0' s) etc/link900
mkfifo etc/fifo
printf latin1 > $'etc/n\xe4me\xff'
printf utf8 > etc/ünïcödé
printf long > $(head -c 255 /dev/zero | tr '\0' n)
chmod 4755 etc/one
chmod 1777 empty
if [ $(id -u) = 0 ]; then
  chmod 0 etc/empty # mke2fs of another user could not read it
  mknod etc/null c 1 3
  mknod etc/bigdev b 259 70000
  chown 1000:100 etc/block
  chown 4000000000:3000000000 etc/block+1
fi
touch -d '1901-12-14 00:00:00 UTC' etc/old
touch -d '2038-01-19 03:14:07 UTC' etc/future
touch -d '2020-02-02 02:02:02 UTC' usr/lib/numbers
find . -depth -newermt 2021-01-01 ! -newermt 2038-01-01 -exec touch -h -d '2023-05-06 07:08:09 UTC' {} +
`;

/** One line of what find says, keyed by path; all strings hold one char per byte. */
export interface SourceEntry {
  type: string;
  mode: number;
  uid: number;
  gid: number;
  links: number;
  size: number;
  mtime: number;
  target: string;
}

/** The source tree as find sees it. */
export async function listSource(
  directory: string,
): Promise<Map<string, SourceEntry>> {
  const format = ["%P", "%y", "%m", "%U", "%G", "%n", "%s", "%T@", "%l", ""];
  const out = await run("find", [".", "-printf", format.join("\\0")], {
    cwd: directory,
  });
  let text = "";
  for (const byte of out) text += String.fromCharCode(byte);
  const fields = text.split("\0");
  const entries = new Map<string, SourceEntry>();
  for (let i = 0; i + 9 <= fields.length; i += 9) {
    const [path, type, mode, uid, gid, links, size, mtime, target] = fields
      .slice(i, i + 9) as [string, ...string[]];
    entries.set(path, {
      type: type!,
      mode: parseInt(mode!, 8),
      uid: Number(uid),
      gid: Number(gid),
      links: Number(links),
      size: Number(size),
      mtime: Math.floor(Number(mtime)),
      target: target!,
    });
  }
  return entries;
}
