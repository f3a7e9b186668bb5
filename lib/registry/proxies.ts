/**
 * Proxies of the environment (`HTTP_PROXY` and so on), which the runtime's
 * `fetch` heeds for every host that `NO_PROXY` does not name.
 */

const PROXIES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
/** What is on this machine, in the words of `NO_PROXY`. */
const LOOPBACK = ["localhost", ".localhost", "127.0.0.0/8", "::1"];

/**
 * Keeps what is on this machine from proxies, as Go's programs do
 * (`net/http.ProxyFromEnvironment`): a registry, a P2P agent or a credential
 * service at a loopback address is another one there, and what is said to it in
 * plain HTTP, passwords too, is not for them. The runtime looks at the variable
 * when it makes a client, so this runs before.
 */
export function keepLoopbackDirect(): void {
  keepDirect([]);
}

/**
 * Keeps these hosts, and what is on this machine, from proxies: in this process,
 * whose clients are made later, and in those that it starts later.
 */
export function keepDirect(others: readonly string[]): void {
  const get = (name: string) =>
    Deno.env.get(name) || Deno.env.get(name.toLowerCase()) || "";
  if (!PROXIES.some(get)) return;
  const given = get("NO_PROXY");
  const hosts = given.split(",").map((host) => host.trim());
  const more = [...LOOPBACK, ...others].filter((host) => !hosts.includes(host));
  if (more.length === 0) return;
  const all = [...hosts.filter(Boolean), ...more].join(",");
  for (const name of ["NO_PROXY", "no_proxy"]) Deno.env.set(name, all);
}
