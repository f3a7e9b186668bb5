/**
 * Where an NBD server listens, as text. URIs follow the NBD URI specification
 * (NetworkBlockDevice/nbd, doc/uri.md): `nbd://host:port/NAME` and
 * `nbd+unix:///NAME?socket=PATH`.
 */

import { UsageError } from "../io/mod.ts";
import { MAX_STRING } from "./protocol.ts";

/** The port that IANA gave to NBD. */
export const NBD_PORT = 10809;

/** A place to listen at or to connect to. */
export type NbdAddress =
  | { transport: "unix"; path: string }
  | { transport: "tcp"; hostname: string; port: number };

/** A server and one of its exports. */
export interface NbdTarget {
  address: NbdAddress;
  /** Name of the export; "" is the default export. */
  exportName: string;
}

/**
 * Reads `unix:/path`, `host:port`, `[v6]:port` or `:port` (all interfaces).
 *
 * @throws {UsageError} If the text is none of these.
 */
export function parseNbdAddress(text: string): NbdAddress {
  if (text.startsWith("unix:")) {
    return unixAddress(text.slice("unix:".length), text);
  }
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]/]*)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (!match || port > 65535) {
    throw new UsageError(
      `Bad address "${text}": expected "unix:/path" or "host:port"`,
    );
  }
  return {
    transport: "tcp",
    hostname: match[1] ?? (match[2] || "0.0.0.0"),
    port,
  };
}

function unixAddress(path: string, text: string): NbdAddress {
  if (path === "" || path.includes("\0")) {
    throw new UsageError(`Bad address "${text}": the socket path is missing`);
  }
  return { transport: "unix", path };
}

/** Inverse of {@linkcode parseNbdAddress}. */
export function formatNbdAddress(address: NbdAddress): string {
  if (address.transport === "unix") return `unix:${address.path}`;
  const { hostname, port } = address;
  return hostname.includes(":")
    ? `[${hostname}]:${port}`
    : `${hostname}:${port}`;
}

/**
 * Reads an NBD URI.
 *
 * @throws {UsageError} If it is not an `nbd:` or `nbd+unix:` URI, or asks for TLS.
 */
export function parseNbdUri(uri: string): NbdTarget {
  const bad = (why: string) => new UsageError(`Bad NBD URI "${uri}": ${why}`);
  let url: URL;
  try {
    url = new URL(uri);
  } catch {
    throw bad("not a URI");
  }
  let exportName: string;
  try {
    exportName = decodeURIComponent(url.pathname.replace(/^\//, ""));
  } catch {
    throw bad("the export name is badly escaped");
  }
  if (new TextEncoder().encode(exportName).length > MAX_STRING) {
    throw bad(`the export name is longer than ${MAX_STRING} bytes`);
  }
  if (url.protocol === "nbd+unix:") {
    const path = url.searchParams.get("socket");
    if (!path) throw bad('"socket" is missing');
    return { address: unixAddress(path, uri), exportName };
  }
  if (url.protocol !== "nbd:") {
    throw bad('the scheme must be "nbd" or "nbd+unix"');
  }
  const hostname = url.hostname.replace(/^\[|\]$/g, "") || "localhost";
  const port = url.port === "" ? NBD_PORT : Number(url.port);
  return { address: { transport: "tcp", hostname, port }, exportName };
}

/** The URI of an export; inverse of {@linkcode parseNbdUri}. */
export function formatNbdUri(target: NbdTarget): string {
  const { address } = target;
  // A slash in a name stays one: libnbd takes all that follows the first.
  const name = encodeURIComponent(target.exportName).replaceAll("%2F", "/");
  if (address.transport === "unix") {
    const path = encodeURIComponent(address.path).replaceAll("%2F", "/");
    return `nbd+unix:///${name}?socket=${path}`;
  }
  return `nbd://${formatNbdAddress(address)}/${name}`;
}
