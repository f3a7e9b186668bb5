/** Prometheus text of a status (exposition format 0.0.4). Labels: `export` and `host` only; which cache it is stands in the name. */

import type { ExportStatus, ServeStatus } from "./api.ts";

interface Metric {
  name: string;
  help: string;
  type: "counter" | "gauge";
  samples: { labels?: Record<string, string>; value: number }[];
}

type Reading = ExportStatus["reading"];

/** What reads waited for: end of the name, help, value. Stages are of demand and ahead together. */
const READING: readonly [string, string, (r: Reading) => number][] = [
  ["waits", "Reads that were not answered at once.", (r) => r.waits],
  ["wait_seconds", "Time that reads waited, each.", (r) => r.waitSeconds],
  [
    "waiting_seconds",
    "Time in which at least one read waited.",
    (r) => r.waitingSeconds,
  ],
  [
    "waiting_queue_seconds",
    "Of this, for a place.",
    (r) => r.waitingFor.queue,
  ],
  [
    "waiting_fetch_seconds",
    "Of this, for bytes of blobs.",
    (r) => r.waitingFor.fetch,
  ],
  [
    "waiting_decode_seconds",
    "Of this, for decoding and checking.",
    (r) => r.waitingFor.decode,
  ],
  ["demand_loads", "Loads that reads waited for.", (r) => r.demand.loads],
  [
    "demand_stored_bytes",
    "Bytes of blobs read for them.",
    (r) => r.demand.storedBytes,
  ],
  ["demand_loaded_bytes", "Bytes that came of these.", (r) => r.demand.bytes],
  ["ahead_loads", "Loads that nobody waited for.", (r) => r.ahead.loads],
  [
    "ahead_stored_bytes",
    "Bytes of blobs read for them.",
    (r) => r.ahead.storedBytes,
  ],
  ["ahead_loaded_bytes", "Bytes that came of these.", (r) => r.ahead.bytes],
  ...(["queue", "fetch", "decode"] as const).map((
    stage,
  ): typeof READING[number] => [
    `load_${stage}_seconds`,
    "Time of all loads in this stage, each.",
    (r) => r.demand.seconds[stage] + r.ahead.seconds[stage],
  ]),
];

/** All metrics of one status. */
export function renderMetrics(status: ServeStatus): string {
  const perExport = (
    name: string,
    type: Metric["type"],
    help: string,
    value: (e: ExportStatus) => number,
  ): Metric => ({
    name,
    type,
    help,
    samples: status.exports.map((e) => ({
      labels: { export: e.name },
      value: value(e),
    })),
  });
  const perHost = (
    name: string,
    help: string,
    value: (h: ServeStatus["hosts"][number]) => number,
  ): Metric => ({
    name,
    type: "counter",
    help,
    samples: status.hosts.map((h) => ({
      labels: { host: h.host },
      value: value(h),
    })),
  });
  const perCache = (
    suffix: string,
    type: Metric["type"],
    help: string,
    value: (c: ServeStatus["caches"][number]) => number,
  ): Metric[] =>
    status.caches.map((c) => ({
      name: `obd_${c.name}_cache_${suffix}`,
      type,
      help,
      samples: [{ value: value(c) }],
    }));
  const one = (
    name: string,
    type: Metric["type"],
    help: string,
    value: number,
  ): Metric => ({ name, type, help, samples: [{ value }] });
  return [
    one(
      "obd_ready",
      "gauge",
      "1 when all exports are open.",
      status.ready ? 1 : 0,
    ),
    one(
      "obd_uptime_seconds",
      "gauge",
      "Seconds since the start.",
      status.uptimeSeconds,
    ),
    one(
      "obd_resident_memory_bytes",
      "gauge",
      "Resident memory.",
      status.memory.rssBytes,
    ),
    perExport(
      "obd_export_size_bytes",
      "gauge",
      "Size of the device.",
      (e) => e.size,
    ),
    perExport(
      "obd_export_connections",
      "gauge",
      "Connected NBD clients.",
      (e) => e.connections,
    ),
    perExport(
      "obd_export_in_flight",
      "gauge",
      "Requests being worked on.",
      (e) => e.counters.inFlight,
    ),
    perExport(
      "obd_export_reads_total",
      "counter",
      "Read requests.",
      (e) => e.counters.reads,
    ),
    perExport(
      "obd_export_read_bytes_total",
      "counter",
      "Bytes read by clients.",
      (e) => e.counters.readBytes,
    ),
    perExport(
      "obd_export_read_errors_total",
      "counter",
      "Read requests answered with an error.",
      (e) => e.counters.readErrors,
    ),
    perExport(
      "obd_export_read_seconds_total",
      "counter",
      "Time spent on read requests.",
      (e) => e.counters.readSeconds,
    ),
    ...READING.map(([suffix, help, value]) =>
      perExport(
        `obd_export_${suffix}_total`,
        "counter",
        help,
        (e) => value(e.reading),
      )
    ),
    ...perCache(
      "hits_total",
      "counter",
      "Lookups answered from the cache.",
      (c) => c.hits,
    ),
    ...perCache(
      "misses_total",
      "counter",
      "Lookups that went to the source.",
      (c) => c.misses,
    ),
    ...perCache(
      "evictions_total",
      "counter",
      "Entries evicted.",
      (c) => c.evictions,
    ),
    ...perCache(
      "stored_bytes",
      "gauge",
      "Bytes in the cache.",
      (c) => c.storedBytes,
    ),
    ...perCache(
      "limit_bytes",
      "gauge",
      "Bound of the cache.",
      (c) => c.limitBytes,
    ),
    perHost(
      "obd_registry_requests_total",
      "Requests to registries.",
      (h) => h.requests,
    ),
    perHost(
      "obd_registry_received_bytes_total",
      "Bytes received from registries.",
      (h) => h.bytes,
    ),
    perHost(
      "obd_registry_errors_total",
      "Requests that failed for good.",
      (h) => h.errors,
    ),
  ].filter((m) => m.samples.length > 0).map(render).join("");
}

function render(metric: Metric): string {
  const lines = metric.samples.map(({ labels, value }) => {
    const inner = Object.entries(labels ?? {}).map(([k, text]) =>
      `${k}="${escapeLabel(text)}"`
    );
    const set = inner.length > 0 ? `{${inner.join(",")}}` : "";
    return `${metric.name}${set} ${value}\n`;
  });
  return `# HELP ${metric.name} ${metric.help}\n# TYPE ${metric.name} ${metric.type}\n${
    lines.join("")
  }`;
}

function escapeLabel(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')
    .replaceAll("\n", "\\n");
}
