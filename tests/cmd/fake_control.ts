/** A status API over a control of the test's own. */

import {
  createApi,
  type ExportStatus,
  type ServeControl,
  type ServeStatus,
} from "../../cmd/api.ts";
import type { ImageConfig } from "../../cmd/config.ts";
import { NotFoundError } from "../../lib/io/mod.ts";

/** A name that breaks out of every quoting but the right one. */
export const HOSTILE = '<script>alert("x")</script>&\'"\n\\`${1}';

/** A status with this name. */
export function exportStatus(name: string): ExportStatus {
  return {
    name,
    uri: `nbd+unix:///${encodeURIComponent(name)}?socket=/s`,
    size: 2 ** 30,
    image: `r.example/${name}`,
    source: "sha256:aa",
    integrity: "spans",
    layers: [{
      digest: "sha256:bb",
      kind: "turbo",
      integrity: "spans",
      size: 5,
    }],
    connections: 1,
    requestTimeoutSeconds: 60,
    counters: {
      reads: 3,
      readBytes: 4096,
      readErrors: 0,
      readSeconds: 0.25,
      inFlight: 0,
    },
    reading: {
      waits: 2,
      waitSeconds: 0.75,
      waitingSeconds: 0.5,
      waitingFor: { queue: 0.0625, fetch: 0.25, decode: 0.125, other: 0.0625 },
      demand: {
        loads: 4,
        storedBytes: 400,
        bytes: 1000,
        seconds: { queue: 1, fetch: 2, decode: 3 },
      },
      ahead: {
        loads: 5,
        storedBytes: 500,
        bytes: 2000,
        seconds: { queue: 10, fetch: 20, decode: 30 },
      },
    },
  };
}

/** A control that keeps names. */
export class FakeControl implements ServeControl {
  ready = true;
  readonly exports: ExportStatus[] = [];
  readonly added: ImageConfig[] = [];
  failure: unknown;

  status(): ServeStatus {
    return {
      version: "1.2.3",
      pid: 42,
      started: "2026-01-01T00:00:00.000Z",
      uptimeSeconds: 12.5,
      ready: this.ready,
      exports: this.exports,
      caches: [{
        name: "blob",
        hits: 1,
        misses: 2,
        storedBytes: 3,
        limitBytes: 4,
        evictions: 5,
      }],
      hosts: [{ host: "r.example", requests: 6, bytes: 7, errors: 8 }],
      memory: { rssBytes: 9, heapUsedBytes: 10 },
    };
  }

  recentLog(): readonly string[] {
    return ["one", "two"];
  }

  add(image: ImageConfig): Promise<ExportStatus> {
    if (this.failure) return Promise.reject(this.failure);
    this.added.push(image);
    const status = exportStatus(image.export);
    this.exports.push(status);
    return Promise.resolve(status);
  }

  remove(name: string): Promise<void> {
    if (this.failure) return Promise.reject(this.failure);
    const at = this.exports.findIndex((e) => e.name === name);
    if (at < 0) {
      return Promise.reject(new NotFoundError(`No export "${name}"`));
    }
    this.exports.splice(at, 1);
    return Promise.resolve();
  }
}

/** An API over a {@linkcode FakeControl} with one export, and a way to send requests. */
export function fixture(
  options: Partial<Parameters<typeof createApi>[1]> = {},
) {
  const control = new FakeControl();
  control.exports.push(exportStatus("app"));
  const api = createApi(control, { trusted: true, ...options });
  const send = async (
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ) => {
    const response = await api.request(path, {
      method,
      headers,
      ...(body === undefined
        ? {}
        : { body: typeof body === "string" ? body : JSON.stringify(body) }),
    });
    const text = await response.text();
    return { status: response.status, text, headers: response.headers };
  };
  return { control, api, send };
}
