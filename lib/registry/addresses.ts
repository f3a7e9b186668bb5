/** Which hosts are local ones, for plain HTTP and for redirects that must not reach inside. */

import { lookup } from "node:dns/promises";
import { isIP } from "node:net";

/** `public` also stands for every name. */
export type HostKind = "public" | "private" | "link-local" | "loopback";

/**
 * Kind of a host as it stands in a URL. Names are `public`, except localhost:
 * no lookup is made.
 *
 * @param hostname Without port; IPv6 with or without brackets.
 */
export function hostKind(hostname: string): HostKind {
  const host = hostname.replace(/^\[(.*)\]$/, "$1").toLowerCase();
  switch (isIP(host)) {
    case 4:
      return ipv4Kind(host.split(".").map(Number));
    case 6:
      return ipv6Kind(host);
  }
  return /(^|\.)localhost\.?$/.test(host) ? "loopback" : "public";
}

function ipv4Kind(b: number[]): HostKind {
  const [first, second] = b as [number, number];
  if (first === 127 || first === 0) return "loopback";
  if (first === 169 && second === 254) return "link-local";
  const isPrivate = first === 10 || (first === 172 && (second & 0xf0) === 16) ||
    (first === 192 && second === 168) ||
    (first === 100 && (second & 0xc0) === 64); // RFC 6598, carrier NAT
  return isPrivate ? "private" : "public";
}

function ipv6Kind(host: string): HostKind {
  const groups = ipv6Groups(host);
  const isZero = (from: number, to: number) =>
    groups.slice(from, to).every((g) => g === 0);
  // IPv4-mapped ::ffff:a.b.c.d and NAT64 64:ff9b::a.b.c.d carry an IPv4 address.
  const isMapped = isZero(0, 5) && groups[5] === 0xffff;
  const isNat64 = groups[0] === 0x64 && groups[1] === 0xff9b && isZero(2, 6);
  if (isMapped || isNat64) {
    const [high, low] = [groups[6]!, groups[7]!];
    return ipv4Kind([high >>> 8, high & 255, low >>> 8, low & 255]);
  }
  if (isZero(0, 7) && groups[7]! <= 1) return "loopback";
  if ((groups[0]! & 0xffc0) === 0xfe80) return "link-local";
  return (groups[0]! & 0xfe00) === 0xfc00 ? "private" : "public";
}

function ipv6Groups(host: string): number[] {
  // The URL parser writes the canonical form, IPv4 tails as hex groups.
  const canonical = URL.parse(`http://[${host.replace(/%.*$/, "")}]/`)
    ?.hostname.slice(1, -1) ?? "::";
  const [head, tail] = canonical.split("::") as [string, string?];
  const parse = (text: string) =>
    text === "" ? [] : text.split(":").map((g) => parseInt(g, 16));
  const left = parse(head);
  const right = parse(tail ?? "");
  const gap = new Array<number>(8 - left.length - right.length).fill(0);
  return tail === undefined ? left : [...left, ...gap, ...right];
}

/**
 * Whether a registry may send its clients to `target`. A public registry must
 * not make us talk to machines behind our own firewall (cloud metadata
 * services above all), so a redirect may only go as far inside as the
 * registry itself is.
 */
export async function mayRedirect(
  registryHost: string,
  target: string,
): Promise<boolean> {
  const to = hostKind(target);
  if (to === "public") return true;
  let from = hostKind(registryHost);
  if (from === "public") from = await resolvedKind(registryHost);
  if (from === "loopback") return true;
  if (to === "private") return from === "private" || from === "link-local";
  return to === "link-local" && from === "link-local";
}

/** Kind of a name by its addresses; `public` unless all of them are of one inner kind. */
async function resolvedKind(name: string): Promise<HostKind> {
  try {
    const addresses = await lookup(name, { all: true });
    const kinds = new Set(addresses.map((a) => hostKind(a.address)));
    return kinds.size === 1 ? [...kinds][0]! : "public";
  } catch {
    return "public";
  }
}
