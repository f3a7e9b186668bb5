/** What the walker reports. */
import type { ByteString } from "../io/mod.ts";

/** Bytes of a tar block, and of every sector named here. */
export const SECTOR_SIZE = 512;

/** What an entry creates. */
export type TarEntryType =
  | "file"
  | "directory"
  | "symlink"
  | "hardlink"
  | "char"
  | "block"
  | "fifo";

/** One member of a tar archive, with where its content lies. Owned by the receiver. */
export interface TarEntry {
  /** Cleaned: components joined with "/", no leading slash; "" is the root. */
  path: ByteString;
  type: TarEntryType;
  /** The low 12 bits: permissions, setuid, setgid, sticky. */
  mode: number;
  /** 0 … 2^32 − 2. */
  uid: number;
  /** 0 … 2^32 − 2. */
  gid: number;
  /** Seconds since 1970, negative before; nanoseconds 0 … 999,999,999, always forward. */
  mtime: { seconds: number; nanoseconds: number };
  /** Sorted by name; values are raw bytes. */
  xattrs: readonly (readonly [name: ByteString, value: Uint8Array])[];
  /** Of a symlink verbatim, of a hard link a cleaned path, else "". */
  linkTarget: ByteString;
  /** Of char and block devices 0 … 4095, else 0. */
  devMajor: number;
  /** Of char and block devices 0 … 1048575, else 0. */
  devMinor: number;
  /** Bytes of a file's content, holes included; 0 for all other types. */
  size: number;
  /** Sectors of the uncompressed tar that equal the file's, ascending, not touching. */
  runs: readonly TarRun[];
  /** Sectors that the tar does not hold as the file has them, ascending. Sectors in neither list are zeros. */
  patches: readonly TarPatch[];
}

/**
 * Sectors of the tar that equal sectors of the file. The last one may end
 * behind the file's end: the tar holds zeros there.
 */
export interface TarRun {
  fileSector: number;
  /** In the uncompressed tar. */
  tarSector: number;
  sectors: number;
}

/** Sectors of the file that must be stored elsewhere. */
export interface TarPatch {
  fileSector: number;
  /** A multiple of 512 bytes, zero-filled in holes and behind the file's end. */
  bytes: Uint8Array;
}
