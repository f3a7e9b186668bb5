/** argv → command table → exit code. In a worker thread of the one-file bundle: its role. */

import { workerRole } from "./lib/io/mod.ts";

if (workerRole() !== undefined) {
  await import("./lib/image/workers.ts");
} else {
  const { main } = await import("./cmd/cli.ts");
  Deno.exit(await main(Deno.args));
}
