/**
 * Runs the benchmarks one after the other, each in a process of its own.
 *
 * `deno task bench [NAME…]`: all of them, or those named (e.g. `index_pass`).
 * Options belong to a single benchmark: `deno run -A bench/NAME.ts …`.
 */

const HERE = new URL(".", import.meta.url).pathname;
/** Not benchmarks: this, and what a benchmark starts as its other process. */
const HELPERS = new Set([
  "far_image",
  "far_registry",
  "generated_image",
  "meta_tricks",
  "size_layers",
  "run",
  "serve_image",
  "start_pattern",
]);
/** Only when named: they take minutes. */
const ON_REQUEST = new Set(["scale", "weather_soak"]);

const all = [...Deno.readDirSync(HERE)]
  .filter((e) => e.isFile && e.name.endsWith(".ts"))
  .map((e) => e.name.slice(0, -".ts".length))
  .filter((name) => !HELPERS.has(name))
  .sort();
const unknown = Deno.args.filter((name) => !all.includes(name));
if (unknown.length > 0) {
  console.error(`no benchmark "${unknown[0]}"; there are: ${all.join(", ")}`);
  Deno.exit(2);
}

let failed = 0;
const chosen = Deno.args.length > 0
  ? Deno.args
  : all.filter((name) => !ON_REQUEST.has(name));
for (const name of chosen) {
  console.log(`== ${name}`);
  const { code } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", `${HERE}${name}.ts`],
    stdin: "null",
  }).spawn().status;
  if (code !== 0) failed++;
}
Deno.exit(failed === 0 ? 0 : 1);
