/** `GET /`: the status for people, without scripts. */

import { html } from "hono/html";
import { formatSize } from "../lib/io/mod.ts";
import type { ServeStatus } from "./api.ts";

const STYLE = `
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .85em; overflow-wrap: anywhere; }
.none { color: #a40; }`;

/** The whole page; every value is escaped by the template. */
export function statusPage(status: ServeStatus) {
  const exports = status.exports.map((e) =>
    html`
      <tr>
        <td><strong>${e.name}</strong><br><code>${e.image}</code></td>
        <td><code>${e.uri}</code></td>
        <td class="n">${formatSize(e.size)}</td>
        <td class="${e.integrity === "none" ? "none" : ""}">${e.integrity}</td>
        <td class="n">${e.connections}</td>
        <td class="n">${e.counters.reads}</td>
        <td class="n">${formatSize(e.counters.readBytes)}</td>
        <td class="n">${e.counters.readErrors}</td>
        <td class="n">${e.reading.waits}</td>
        <td class="n">${e.reading.waitingSeconds.toFixed(1)} s</td>
      </tr>
    `
  );
  const caches = status.caches.map((c) =>
    html`
      <tr>
        <td>${c.name}</td>
        <td class="n">${formatSize(c.storedBytes)} of ${formatSize(
          c.limitBytes,
        )}</td>
        <td class="n">${c.hits}</td>
        <td class="n">${c.misses}</td>
        <td class="n">${c.evictions}</td>
      </tr>
    `
  );
  return html`
    <!DOCTYPE html>
    <html lang="en">
      <head>
        <meta charset="utf-8">
        <meta name="viewport" content="width=device-width">
        <meta http-equiv="refresh" content="5">
        <title>obd</title>
        <style>${STYLE}</style>
      </head>
      <body>
        <h1>obd ${status.version}</h1>
        <p>${status.ready ? "Ready" : "Starting"}, process ${status
          .pid}, up ${Math.round(status.uptimeSeconds)} s, ${formatSize(
            status.memory.rssBytes,
          )} of memory.
    <a href="/v1/status">JSON</a> · <a href="/metrics">metrics</a></p>
        <h2>Exports</h2>
        <table>
    <tr><th>Export</th><th>URI</th><th class="n">Size</th><th>Integrity</th><th class="n">Clients</th>
    <th class="n">Reads</th><th class="n">Bytes</th><th class="n">Errors</th>
    <th class="n">Waits</th><th class="n">Waited</th></tr>
    ${exports}
        </table>
        <h2>Caches</h2>
        <table>
    <tr><th>Cache</th><th class="n">Stored</th><th class="n">Hits</th><th class="n">Misses</th><th class="n">Evicted</th></tr>
    ${caches}
        </table>
      </body>
    </html>
  `;
}
