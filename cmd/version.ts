/** What this program says it is. */

import config from "../deno.json" with { type: "json" };

/** Release of obd. */
export const VERSION: string = config.version;

/** `obd 0.1.0 (deno 2.9.6, v8 …, x86_64-unknown-linux-gnu)` */
export function versionLine(): string {
  const { deno, v8 } = Deno.version;
  return `obd ${VERSION} (deno ${deno}, v8 ${v8}, ${Deno.build.target})`;
}
