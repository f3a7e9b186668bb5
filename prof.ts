import process from "node:process";
import { openCold, pushDebianImage, seededRandom } from "/tmp/w/n_main/dev/bench/far_image.ts";
import { FarRegistry } from "/tmp/w/n_main/dev/bench/far_registry.ts";
const D = 1.5 * 2 ** 20;
function threads() {
  const m = new Map<string, number>();
  for (const t of Deno.readDirSync("/proc/self/task")) {
    try {
      const s = Deno.readTextFileSync(`/proc/self/task/${t.name}/stat`);
      const name = s.slice(s.indexOf("(") + 1, s.lastIndexOf(")"));
      const ns = Number(Deno.readTextFileSync(`/proc/self/task/${t.name}/schedstat`).split(" ")[0]) / 1e6;
      m.set(`${name.replace(/-\d+$/, "")}${t.name == String(Deno.pid) ? "(main)" : ""}`, (m.get(`${name.replace(/-\d+$/, "")}${t.name == String(Deno.pid) ? "(main)" : ""}`) ?? 0) + ns);
    } catch { /* gone */ }
  }
  return m;
}
const dir = await Deno.makeTempDir({ prefix: "obd-prof-" });
const registry = await FarRegistry.start(`${dir}/registry`);
await pushDebianImage(registry, dir);
const format = Deno.env.get("FORMAT") ?? "turbo";
async function run(readers: number, count: number, perf = false) {
  const host = await registry.link({ rttMs: Number(Deno.env.get("RTT") ?? 10) });
  await using cold = await openCold(`${host}/app:${format === "turbo" ? "v1-obd" : "v1-overlaybd"}`, dir);
  const { source } = cold.image;
  const places: number[] = [];
  let content = 0, next = 0;
  for (const extent of source.extents(0, source.size)) {
    if (extent.kind !== "data") continue;
    let device = extent.offset;
    for (const origin of source.origins(extent.offset, extent.length)) {
      if (origin.isTarget || format !== "turbo") {
        for (; next + 4096 <= content + origin.length;) { places.push(device + Math.max(0, next - content)); next = Math.max(next, content) + D; }
        content += origin.length;
      }
      device += origin.length;
    }
  }
  const random = seededRandom(7);
  for (let i = places.length - 1; i > 0; i--) { const j = Math.floor(random() * (i + 1)); [places[i], places[j]] = [places[j]!, places[i]!]; }
  const todo = places.slice(0, count);
  let p: Deno.ChildProcess | undefined;
  if (perf) { p = new Deno.Command("perf", { args: ["record", "-o", "/tmp/w/n_main/p.data", "-F", "1999", "-g", "-p", String(Deno.pid)], stderr: "null", stdout: "null" }).spawn(); await new Promise(r => setTimeout(r, 1500)); }
  const far = await registry.traffic();
  const before = threads(); const c = process.cpuUsage(); const t = performance.now();
  const lane = async () => { const dst = new Uint8Array(4096); for (let at; (at = todo.pop()) !== undefined;) if (!source.preadNow(dst, at)) await source.pread(dst, at); };
  await Promise.all(Array.from({ length: readers }, lane));
  const ms = performance.now() - t; const u = process.cpuUsage(c); const after = threads();
  const far2 = await registry.traffic();
  if (p) { p.kill("SIGINT"); await p.status; }
  const by: Record<string, string> = {};
  for (const [k, v] of after) { const d = v - (before.get(k) ?? 0); if (d > 0.5) by[k] = (d / count).toFixed(2); }
  console.log(JSON.stringify({ readers, ms: Math.round(ms), rps: Math.round(count / ms * 1e4) / 10, cpu: ((u.user + u.system) / 1e3 / count).toFixed(2), user: (u.user/1e3/count).toFixed(2), far: ((far2.cpuSeconds - far.cpuSeconds) * 1e3 / count).toFixed(2), by, reqs: far2.requests - far.requests, kb: (far2.bytes - far.bytes) / 1e3 / count }));
}
for (let i = 0; i < Number(Deno.env.get("ROUNDS") ?? 3); i++) { await run(1, 128); await run(16, 128); }
if (Deno.env.get("PERF")) await run(16, 128, true);
Deno.exit(0);
