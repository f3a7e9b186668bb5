/** Which meta image a plain image would be served with, and why not another. */

import type { LogFields, Logger } from "../io/mod.ts";
import type { ImageManifest, Reference, Repository } from "../registry/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import { findMeta, type MetaWay } from "./find_meta.ts";
import type { SourceImage } from "./source.ts";

/** Ways that find a meta image; `build` makes one. */
const WAYS: readonly MetaWay[] = ["digest", "tag", "referrer"];

/** Result of the search. */
export interface MetaReport {
  /** The one that would be used. */
  used?: { digest: string; size: number; annotations: Record<string, string> };
  /** What each way leads to. */
  ways: { way: MetaWay; digest?: string }[];
  /** Meta images that were passed over, and why. */
  ignored: string[];
}

/**
 * Searches as `serve` does, each way by itself and then all of them.
 *
 * @returns What to print, and the manifest of the one that would be used.
 */
export async function inspectMeta(
  environment: ImageEnvironment,
  repository: Repository,
  reference: Reference,
  source: SourceImage,
): Promise<{ report: MetaReport; manifest?: ImageManifest }> {
  const log = new NoteLogger();
  const search = (ways: readonly MetaWay[]) =>
    findMeta(
      { environment: { ...environment, log }, repository, reference, ways },
      source,
      () => Promise.resolve(source),
    );
  const ways: MetaReport["ways"] = [];
  for (const way of WAYS) {
    const found = await search([way]);
    ways.push({ way, ...(found ? { digest: found.descriptor.digest } : {}) });
  }
  const used = ways.some((w) => w.digest) ? await search(WAYS) : undefined;
  return {
    report: {
      ...(used
        ? {
          used: {
            digest: used.descriptor.digest,
            size: used.descriptor.size,
            annotations: used.manifest.annotations,
          },
        }
        : {}),
      ways,
      ignored: [...new Set(log.notes)],
    },
    ...(used ? { manifest: used.manifest } : {}),
  };
}

/** Keeps warnings for a report instead of writing them. */
export class NoteLogger implements Logger {
  readonly notes: string[] = [];

  debug(): void {}
  info(): void {}
  error(event: string, fields?: LogFields): void {
    this.warn(event, fields);
  }
  warn(event: string, fields: LogFields = {}): void {
    const { repository: _, reason, ...rest } = fields;
    const named = Object.values(rest).map(String).join(" ");
    const what = named === "" ? event : `${event} (${named})`;
    this.notes.push(reason === undefined ? what : `${what}: ${reason}`);
  }
}
