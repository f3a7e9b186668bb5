/** `obd report` for people. */

import { formatSize, printable } from "../lib/io/mod.ts";
import type { ServeStatus } from "./api.ts";
import type { Report } from "./report_collect.ts";

/** Log lines that are printed; the archive has all. */
const LOG_LINES = 20;

/** The report as text, ended by a newline when it is written to a file. */
export function reportText(report: Report): string {
  const { versions: v, machine } = report;
  const lines = [
    `obd report of ${report.created}`,
    "",
    `obd         ${v.obd}`,
    `deno        ${v.deno} (v8 ${v.v8}, typescript ${v.typescript}, ${v.target})`,
    `system      ${v.system}, kernel ${v.kernel}`,
    `machine     ${machine.cores} cores, ${formatSize(machine.memoryBytes)}${
      machine.user === 0 ? ", root" : ""
    }`,
    `nbd         ${report.nbdModule}`,
    ...Object.entries(report.tools).map(([name, tool]) =>
      `${name.padEnd(12)}${
        tool.found ? tool.version ?? "version unknown" : "not installed"
      }`
    ),
    ...Object.entries(report.environment).map(([name, value]) =>
      `env         ${name}=${value}`
    ),
    ...serveLines(report),
    ...configLines(report),
    ...mountLines(report),
  ];
  if (report.log.length > 0) {
    const shown = report.log.slice(-LOG_LINES);
    lines.push("", `Last ${shown.length} of ${report.log.length} log lines`);
    lines.push(...shown);
  }
  return lines.map(printable).join("\n") + "\n";
}

function serveLines({ serve }: Report): string[] {
  const lines = ["", `Serve at ${serve.api}`];
  if (serve.problem !== undefined) lines.push(`  ${serve.problem}`);
  if (serve.command) lines.push(`  ${serve.command.join(" ")}`);
  if (serve.status === undefined) return lines;
  const s = serve.status as ServeStatus;
  lines.push(
    `  obd ${s.version}, process ${s.pid}, ${
      s.ready ? "ready" : "starting"
    }, up ${Math.round(s.uptimeSeconds)} s, ${
      formatSize(s.memory.rssBytes)
    } of memory`,
  );
  for (const e of s.exports) {
    lines.push(
      `  export ${e.name}: ${e.image}, ${
        formatSize(e.size)
      }, integrity ${e.integrity}, ${e.layers.length} layers, ${e.connections} clients, ${e.counters.reads} reads, ${
        formatSize(e.counters.readBytes)
      }, ${e.counters.readErrors} errors`,
    );
  }
  for (const c of s.caches) {
    lines.push(
      `  cache ${c.name}: ${formatSize(c.storedBytes)} of ${
        formatSize(c.limitBytes)
      }, ${c.hits} hits, ${c.misses} misses, ${c.evictions} evictions`,
    );
  }
  for (const h of s.hosts) {
    lines.push(
      `  registry ${h.host}: ${h.requests} requests, ${
        formatSize(h.bytes)
      }, ${h.errors} errors`,
    );
  }
  return lines;
}

function configLines({ config }: Report): string[] {
  if (config.files.length === 0 && config.problem === undefined) return [];
  const lines = ["", "Configuration"];
  for (const { file, content, problem } of config.files) {
    lines.push(`  ${file}${problem === undefined ? "" : `: ${problem}`}`);
    if (content !== undefined) {
      const text = JSON.stringify(content, undefined, 2);
      lines.push(...text.split("\n").map((line) => `    ${line}`));
    }
  }
  if (config.problem !== undefined) lines.push(`  ${config.problem}`);
  return lines;
}

function mountLines({ mounts }: Report): string[] {
  if (mounts.length === 0) return [];
  return [
    "",
    "Mounts",
    ...mounts.map(({ id, state, problem }) =>
      `  ${id} ${problem ?? JSON.stringify(state)}`
    ),
  ];
}
