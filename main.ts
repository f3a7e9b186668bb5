/** argv → command table → exit code. In a worker thread of the one-file bundle: its role. */

import { workerRole } from "./lib/io/mod.ts";

const role = workerRole();
if (role === undefined) {
  const { main } = await import("./cmd/cli.ts");
  Deno.exit(await main(Deno.args));
} else if (role.startsWith("cmd:")) {
  await import("./cmd/workers.ts");
} else {
  await import("./lib/image/workers.ts");
}
