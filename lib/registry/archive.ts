/**
 * `oci-archive:FILE`: an OCI layout as one plain tar file, read in place.
 *
 * One walk over the headers when it is opened makes a table of the members;
 * after that every blob is a slice of the file. Read: ustar, PAX `path` and
 * `size`, GNU long names, base-256 sizes (POSIX pax(1), GNU tar manual
 * "Basic Tar Format"). Of several members with one name the last counts, as
 * when a tar is unpacked. Links are passed over. A compressed archive is
 * refused.
 */

import {
  type ByteSource,
  FileSource,
  FormatError,
  fromUtf8,
  NotFoundError,
  readBytes,
  roundUp,
  SliceSource,
  UnsupportedError,
} from "../io/mod.ts";
import { LayoutReader } from "./layout_reader.ts";
import type { Descriptor } from "./manifest.ts";
import type { PushResult, Repository } from "./repository.ts";

const BLOCK_SIZE = 512;
const MEMBER_COUNT_MAX = 200_000;
const EXTENDED_HEADER_SIZE_MAX = 1024 * 1024;
const FORMAT = "oci-archive";

interface Member {
  offset: number;
  size: number;
}

/** An OCI archive; read-only. */
export class ArchiveRepository extends LayoutReader implements Repository {
  readonly name: string;
  readonly writable = false;
  readonly #file: ByteSource;
  readonly #members: Map<string, Member>;

  private constructor(
    name: string,
    file: ByteSource,
    members: Map<string, Member>,
  ) {
    super();
    this.name = name;
    this.#file = file;
    this.#members = members;
  }

  /**
   * @throws {NotFoundError} If there is no such file.
   * @throws {FormatError} If it is no tar.
   * @throws {UnsupportedError} If it is compressed, or what `docker save` wrote before Docker 25.
   */
  static async open(path: string): Promise<ArchiveRepository> {
    let file: FileSource;
    try {
      file = await FileSource.open(path);
    } catch (cause) {
      if ((cause as { code?: string }).code === "ENOENT") {
        throw new NotFoundError(`No archive "${path}"`, { cause });
      }
      throw cause;
    }
    try {
      const members = await readMembers(file);
      if (!members.has("index.json") && members.has("manifest.json")) {
        throw new UnsupportedError(
          "docker-archive",
          `"${path}" is a Docker archive, not an OCI one; make a layout of it: skopeo copy docker-archive:${path} oci:DIR:TAG`,
        );
      }
      return new ArchiveRepository(`oci-archive:${path}`, file, members);
    } catch (error) {
      await file[Symbol.asyncDispose]();
      throw error;
    }
  }

  protected openFile(path: string): Promise<ByteSource | undefined> {
    const member = this.#members.get(path);
    return Promise.resolve(
      member &&
        new SliceSource(this.#file, member.offset, member.size, {
          borrow: true,
        }),
    );
  }

  pushBlob(): Promise<PushResult> {
    return Promise.reject(this.#readOnly());
  }

  pushManifest(): Promise<Descriptor> {
    return Promise.reject(this.#readOnly());
  }

  #readOnly(): UnsupportedError {
    return new UnsupportedError(
      "oci-archive push",
      `Cannot write to "${this.name}": archives are read-only`,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file[Symbol.asyncDispose]();
  }
}

async function readMembers(file: ByteSource): Promise<Map<string, Member>> {
  const members = new Map<string, Member>();
  let longName: string | undefined;
  let pax: { path?: string; size?: number } = {};
  let count = 0;
  for (let at = 0; at + BLOCK_SIZE <= file.size;) {
    const header = await readBytes(file, at, BLOCK_SIZE);
    if (count === 0) refuseCompressed(header);
    if (header.every((b) => b === 0)) return members;
    if (++count > MEMBER_COUNT_MAX) {
      throw new FormatError(
        FORMAT,
        "members",
        `are more than ${MEMBER_COUNT_MAX}`,
      );
    }
    checkSum(header, at);
    const type = String.fromCharCode(header[156]!);
    const isExtension = type === "x" || type === "g" || type === "L" ||
      type === "K";
    const size = isExtension
      ? readNumber(header, at)
      : pax.size ?? readNumber(header, at);
    const body = at + BLOCK_SIZE;
    if (size > file.size - body) {
      throw new FormatError(FORMAT, "size", `${size} passes the end`, {
        offset: at,
      });
    }
    if (type === "x") {
      pax = parsePax(await readExtension(file, body, size), at);
    } else if (type === "L") {
      longName = fromUtf8(await readExtension(file, body, size))
        .replace(/\0.*$/s, "");
    } else if (!isExtension) {
      if (type === "0" || type === "\0" || type === "7") {
        const name = pax.path ?? longName ?? headerName(header);
        members.set(cleanName(name), { offset: body, size });
      }
      pax = {};
      longName = undefined;
    }
    at = body + roundUp(size, BLOCK_SIZE);
  }
  // Some writers end without the two zero blocks; a file cut inside a member
  // was noticed above.
  if (count === 0) throw new FormatError(FORMAT, "header", "is missing");
  return members;
}

function refuseCompressed(header: Uint8Array): void {
  const starts = (...magic: number[]) => magic.every((b, i) => header[i] === b);
  const kind = starts(0x1f, 0x8b)
    ? "gzip"
    : starts(0x28, 0xb5, 0x2f, 0xfd)
    ? "zstd"
    : starts(0xfd, 0x37, 0x7a, 0x58, 0x5a)
    ? "xz"
    : undefined;
  if (kind) {
    throw new UnsupportedError(
      `${kind} oci-archive`,
      `A ${kind}-compressed archive is not supported: decompress it first`,
    );
  }
}

function checkSum(header: Uint8Array, offset: number): void {
  let sum = 8 * 0x20; // the checksum field itself counts as spaces
  for (let i = 0; i < BLOCK_SIZE; i++) {
    if (i < 148 || i >= 156) sum += header[i]!;
  }
  const stored = parseInt(fieldText(header, 148, 8), 8);
  if (stored !== sum) {
    throw new FormatError(FORMAT, "header checksum", "is wrong", { offset });
  }
}

function fieldText(header: Uint8Array, at: number, length: number): string {
  return fromUtf8(header.subarray(at, at + length)).replace(/\0.*$/s, "")
    .trim();
}

function readNumber(header: Uint8Array, offset: number): number {
  let value: number;
  if ((header[124]! & 0x80) !== 0) {
    value = header[124]! & 0x7f;
    for (let i = 125; i < 136; i++) value = value * 256 + header[i]!;
  } else {
    const text = fieldText(header, 124, 12);
    value = /^[0-7]*$/.test(text) ? parseInt(text || "0", 8) : NaN;
  }
  if (!Number.isSafeInteger(value)) {
    throw new FormatError(FORMAT, "size", "is no number in range", { offset });
  }
  return value;
}

function headerName(header: Uint8Array): string {
  const name = fieldText(header, 0, 100);
  const isPosix = fromUtf8(header.subarray(257, 263)) === "ustar\0";
  const prefix = isPosix ? fieldText(header, 345, 155) : "";
  return prefix ? `${prefix}/${name}` : name;
}

/** `./blobs//sha256/x` and `blobs/sha256/x` are one name. */
function cleanName(name: string): string {
  return name.split("/").filter((c) => c !== "" && c !== ".").join("/");
}

async function readExtension(
  file: ByteSource,
  offset: number,
  size: number,
): Promise<Uint8Array> {
  if (size > EXTENDED_HEADER_SIZE_MAX) {
    throw new FormatError(
      FORMAT,
      "extended header",
      `is ${size} bytes, at most ${EXTENDED_HEADER_SIZE_MAX} are allowed`,
      { offset },
    );
  }
  return await readBytes(file, offset, size);
}

/** Records are `LENGTH KEY=VALUE\n`, with LENGTH in bytes and counting itself. */
function parsePax(
  bytes: Uint8Array,
  offset: number,
): { path?: string; size?: number } {
  const result: { path?: string; size?: number } = {};
  for (let at = 0; at < bytes.length && bytes[at] !== 0;) {
    const head = fromUtf8(bytes.subarray(at, at + 20));
    const digits = /^([1-9][0-9]{0,8}) /.exec(head)?.[1];
    const length = Number(digits);
    const end = at + length;
    const record = digits && end <= bytes.length
      ? fromUtf8(bytes.subarray(at + digits.length + 1, end))
      : "";
    const equals = record.indexOf("=");
    if (equals < 1 || !record.endsWith("\n")) {
      throw new FormatError(FORMAT, "PAX record", "is malformed", { offset });
    }
    const value = record.slice(equals + 1, -1);
    const key = record.slice(0, equals);
    if (key === "path") result.path = value;
    if (key === "size") {
      const size = /^[0-9]{1,16}$/.test(value) ? Number(value) : NaN;
      if (!Number.isSafeInteger(size)) {
        throw new FormatError(FORMAT, "PAX size", "is no number in range", {
          offset,
        });
      }
      result.size = size;
    }
    at = end;
  }
  return result;
}
