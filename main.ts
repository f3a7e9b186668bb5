/** argv → command table → exit code. In a worker thread of the one-file bundle: its role. */

import { loadRole, workerRole } from "./lib/io/mod.ts";

const role = workerRole();
if (role === undefined) {
  const { main } = await import("./cmd/cli.ts");
  Deno.exit(await main(Deno.args));
} else if (role.startsWith("cmd:")) {
  await loadRole(() => import("./cmd/workers.ts"));
} else {
  await loadRole(() => import("./lib/image/workers.ts"));
}
