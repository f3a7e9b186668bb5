/**
 * The uncompressed tar of one layer on disk while it is converted. The file has
 * no name from the start, so that it is gone whatever ends the process.
 */

import * as fs from "node:fs";
import { FileSource, ObdError } from "../io/mod.ts";

/** A nameless temporary file: written from front to back, then read anywhere. */
export class TarSpool implements Disposable {
  readonly #directory: string;
  #fd: number | undefined;
  #size = 0;

  /**
   * @param directory Where its bytes lie.
   * @throws {ObdError} If nothing can be written there.
   */
  constructor(directory: string) {
    this.#directory = directory;
    const path = `${directory}/spool-${crypto.randomUUID()}`;
    this.#fd = this.#attempt(() => fs.openSync(path, "wx+", 0o600));
    this.#attempt(() => fs.unlinkSync(path));
  }

  /** Bytes written so far. */
  get size(): number {
    return this.#size;
  }

  /** Appends; borrows `bytes` only during the call. */
  push(bytes: Uint8Array): void {
    const fd = this.#descriptor();
    let done = 0;
    while (done < bytes.length) {
      done += this.#attempt(() =>
        fs.writeSync(fd, bytes, done, bytes.length - done)
      );
    }
    this.#size += bytes.length;
  }

  /** The file's bytes as far as they are written; lives on its own. */
  async source(): Promise<FileSource> {
    return await FileSource.open(`/proc/self/fd/${this.#descriptor()}`);
  }

  [Symbol.dispose](): void {
    if (this.#fd === undefined) return;
    fs.closeSync(this.#fd);
    this.#fd = undefined;
  }

  #descriptor(): number {
    if (this.#fd === undefined) throw new TypeError("The spool was closed");
    return this.#fd;
  }

  #attempt<T>(action: () => T): T {
    try {
      return action();
    } catch (error) {
      const code = (error as { code?: string }).code ?? "";
      const reason = code === "ENOSPC" || code === "EDQUOT"
        ? "no space is left"
        : (error as Error).message;
      throw new ObdError(
        "state",
        `Cannot keep a layer's tar in "${this.#directory}" (${this.#size} bytes so far): ${reason}; TMPDIR names another place`,
        { cause: error },
      );
    }
  }
}
