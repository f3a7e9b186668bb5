/**
 * Fetches a blob in a process with an environment of its own, for
 * `proxy_test.ts`. Arguments: `HOST DIGEST SIZE [MODE PATH]`; the last two name a
 * credential service. Prints the digest of what came.
 */

import { RegistryClient, sha256Digest } from "../../lib/registry/mod.ts";
import type { CredentialService } from "../../lib/registry/mod.ts";
import { collect, onlyCredentials } from "./helpers.ts";

const [host, digest, size, mode, path] = Deno.args as [
  string,
  string,
  string,
  string?,
  string?,
];
const overlaybdService = path === undefined
  ? undefined
  : { mode, path } as CredentialService;
await using client = new RegistryClient({
  credentials: onlyCredentials({ overlaybdService }),
  certsDirectories: [],
  limits: { attempts: 1 },
});
const blob = { mediaType: "x", digest, size: Number(size) };
const pieces = client.open(host, "app").fetchBlob(blob);
console.log(sha256Digest(await collect(pieces)));
