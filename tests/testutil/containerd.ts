/**
 * A containerd of a test's own, to see what real archive code makes of an
 * image: unpacked by a snapshotter, the mounted result as lines of
 * `tests/interop/tree.py`. Needs root, `containerd`, `ctr`, `unshare`, `python3`.
 *
 * The `native` snapshotter copies the layers below and unpacks onto the copy:
 * there containerd carries out whiteouts itself. With `overlayfs` each layer
 * goes into a directory of its own, whiteouts become overlayfs's, and the
 * kernel does the merging.
 */

import { createHash } from "node:crypto";
import { parseTree } from "./device_tree.ts";
import { withOwnMounts } from "./mount_namespace.ts";
import type { MadeImage } from "./oci_image.ts";
import { writeLayout } from "./oci_image.ts";

const TREE = new URL("../interop/tree.py", import.meta.url).pathname;
const START_DEADLINE_MS = 30_000;
/** Plugins that are of no use here, and log errors. */
const UNUSED = [
  "grpc.v1.cri",
  ...["aufs", "btrfs", "devmapper", "zfs"].map((id) => `snapshotter.v1.${id}`),
];

/** How containerd stores what it unpacks. */
export type Snapshotter = "native" | "overlayfs";

/** What unpacking an image gave. */
export type Unpacked =
  | { tree: string[]; error?: undefined }
  /** The last line that `ctr` printed. */
  | { tree?: undefined; error: string };

/** See the module comment. */
export class Containerd implements AsyncDisposable {
  readonly #dir: string;
  readonly #child: Deno.ChildProcess;
  readonly #ctr: string;
  #count = 0;

  private constructor(dir: string, child: Deno.ChildProcess) {
    this.#dir = dir;
    this.#child = child;
    this.#ctr = `ctr --address ${dir}/c.sock`;
  }

  /**
   * Starts it.
   *
   * @param dir An empty directory with a short path; the caller removes it.
   */
  static async start(dir: string): Promise<Containerd> {
    const config = `${dir}/config.toml`;
    await Deno.writeTextFile(
      config,
      `version = 2
root = "${dir}/root"
state = "${dir}/state"
disabled_plugins = [${UNUSED.map((id) => `"io.containerd.${id}"`).join(", ")}]
[grpc]
address = "${dir}/c.sock"
[ttrpc]
address = "${dir}/c.sock.ttrpc"
`,
    );
    const [program, ...args] = withOwnMounts([
      "sh",
      "-c",
      'cd /; exec containerd --config "$0" >"$1" 2>&1',
      config,
      `${dir}/log`,
    ]);
    const child = new Deno.Command(program!, {
      args,
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    const containerd = new Containerd(dir, child);
    try {
      await containerd.#untilReady();
    } catch (error) {
      await containerd[Symbol.asyncDispose]();
      throw error;
    }
    return containerd;
  }

  async #untilReady(): Promise<void> {
    const deadline = Date.now() + START_DEADLINE_MS;
    while ((await this.#shell(`${this.#ctr} version`)).code !== 0) {
      if (Date.now() > deadline) {
        const log = await Deno.readTextFile(`${this.#dir}/log`);
        throw new Error(`containerd does not start: ${log.slice(-2000)}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /**
   * Unpacks images, each by itself, and reads the trees that containers would see.
   *
   * @param together Import them with one command: faster, and all fail if one does.
   */
  async unpack(
    images: readonly MadeImage[],
    snapshotter: Snapshotter,
    together = false,
  ): Promise<Unpacked[]> {
    const work = `${this.#dir}/w${this.#count++}`;
    const options = `--snapshotter ${snapshotter}`;
    const tagged = images.map((image, i) => ({ tag: `v${i}`, image }));
    const groups = together ? [tagged] : tagged.map((one) => [one]);
    const script: string[] = [];
    for (const group of groups) {
      const first = `${work}/${group[0]!.tag}`;
      await writeLayout(`${first}/layout`, group);
      script.push(
        `tar -C ${first}/layout -c . |
          ${this.#ctr} images import ${options} --base-name t - >/dev/null 2>${first}/error`,
      );
    }
    for (const { tag, image } of tagged) {
      const at = `${work}/${tag}`;
      await Deno.mkdir(`${at}/mnt`, { recursive: true });
      script.push(
        `${this.#ctr} snapshots ${options} view --mounts ${this.#count}-${tag} ${
          chainId(image)
        } >${at}/mounts 2>/dev/null`,
      );
    }
    await this.#shell(script.join("\n"));
    const trees = await this.#trees(tagged.map(({ tag }) => `${work}/${tag}`));
    const unpacked = await Promise.all(tagged.map(async ({ tag }, i) => {
      const tree = trees[i];
      if (tree) return { tree };
      const from = together ? "v0" : tag;
      const lines = (await Deno.readTextFile(`${work}/${from}/error`)).trim();
      return { error: lines.split("\n").at(-1)! };
    }));
    await Deno.remove(work, { recursive: true });
    return unpacked;
  }

  /** The trees of directories with the description of a mount; undefined without. */
  async #trees(places: readonly string[]): Promise<(string[] | undefined)[]> {
    const mounts = await Promise.all(places.map(mountCommand));
    const mounted = mounts.flatMap((mount, i) =>
      mount === undefined ? [] : [i]
    );
    const roots = mounted.map((i) => `${places[i]}/mnt`);
    const { code, text } = await this.#shell(
      `set -e\n${mounted.map((i) => mounts[i]).join("\n")}
python3 ${TREE} ${roots.join(" ")}`,
    );
    if (code !== 0) throw new Error(`containerd's trees: ${text}`);
    const parts = text.split("\n\n");
    return places.map((_, i) => {
      const at = mounted.indexOf(i);
      return at < 0 ? undefined : parseTree(parts[at]!);
    });
  }

  async #shell(script: string): Promise<{ code: number; text: string }> {
    const path = `${this.#dir}/script.sh`;
    await Deno.writeTextFile(path, script);
    const [program, ...args] = withOwnMounts(["sh", path]);
    const { code, stdout, stderr } = await new Deno.Command(program!, {
      args,
      stdin: "null",
    }).output();
    return {
      code,
      text: new TextDecoder().decode(code === 0 ? stdout : stderr),
    };
  }

  /** Ends it; its mounts go with its namespace. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await this.#child.status;
  }
}

/** Names a stack of layers (OCI image spec, config.md "Layer ChainID"). */
function chainId(image: MadeImage): string {
  return image.layers.map((layer) => layer.diffId).reduce((chain, diffId) =>
    `sha256:${createHash("sha256").update(`${chain} ${diffId}`).digest("hex")}`
  );
}

/** What mounts a snapshot as `ctr snapshots view --mounts` describes it. */
async function mountCommand(at: string): Promise<string | undefined> {
  const text = await Deno.readTextFile(`${at}/mounts`);
  if (text.trim() === "") return undefined;
  const [{ Type, Source, Options }] = JSON.parse(text);
  return Type === "overlay"
    ? `mount -t overlay overlay -o ${Options.join(",")} ${at}/mnt`
    : `mount --bind ${Source} ${at}/mnt`;
}
