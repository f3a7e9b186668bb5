/**
 * Whiteouts: names in a layer that delete names of the layers below (OCI image
 * spec, layer.md "Whiteouts"; the names come from AUFS).
 */
import { type ByteString, FormatError, quoteName } from "../io/mod.ts";

const PREFIX = ".wh.";
const OPAQUE = ".wh..wh..opq";

/** What an entry with a whiteout name means. */
export type Whiteout =
  /** `DIR/.wh.NAME`: `path` = `DIR/NAME` of the layers below is gone, with all below it. */
  | { kind: "remove"; path: ByteString }
  /** `DIR/.wh..wh..opq`: nothing of the layers below is left in `directory`. */
  | { kind: "opaque"; directory: ByteString };

/**
 * Tells what a path means as a whiteout, from its last component alone: what
 * lies below a directory with such a name is ordinary, as in containerd. AUFS's
 * own `.wh..wh.plnk` and the like so remove `.wh.plnk`, which is never there.
 *
 * @param path Cleaned.
 * @returns `undefined` for an ordinary name.
 * @throws {FormatError} When the whiteout names nothing, or the directory itself or its parent.
 */
export function parseWhiteout(path: ByteString): Whiteout | undefined {
  const slash = path.lastIndexOf("/");
  const directory = slash < 0 ? "" : path.slice(0, slash);
  const name = path.slice(slash + 1);
  if (name === OPAQUE) return { kind: "opaque", directory };
  if (!name.startsWith(PREFIX)) return undefined;
  const target = name.slice(PREFIX.length);
  if (target === "" || target === "." || target === "..") {
    throw new FormatError(
      "whiteout",
      "name",
      `${quoteName(path)} does not name an entry of its directory`,
    );
  }
  return {
    kind: "remove",
    path: directory === "" ? target : `${directory}/${target}`,
  };
}
