/**
 * What the bench's own registry keeps with an image. It outlives benches, and
 * with it the meta images that other versions of obd pushed: of several that
 * fit one is chosen by a rule of its own, which need not be the one that is to
 * be measured.
 */

import { fallbackTag, MediaType } from "../../lib/image/mod.ts";
import { ObdError } from "../../lib/io/mod.ts";

const MANIFEST_TYPES = [MediaType.ociIndex, MediaType.ociManifest];
/** Of an image's digest: leads to a meta image, before all referrers. */
const META_ENDING = "-obd";

/** A manifest that refers to an image, as lists of referrers have it. */
export interface Referrer {
  digest: string;
  artifactType?: string;
}

/** What {@linkcode keepReferrers} works on. */
export interface ReferrersOf {
  /** HOST:PORT, plain HTTP. */
  host: string;
  repository: string;
  /** Digest of the image. */
  subject: string;
}

/**
 * Deletes everything that refers to an image and is not to be kept, and the meta
 * image that a tag of the image's digest leads to.
 *
 * @returns Digests of what was deleted.
 * @throws {ObdError} If the registry does not do it.
 */
export async function keepReferrers(
  { host, repository, subject }: ReferrersOf,
  keep: (referrer: Referrer) => boolean,
  signal: AbortSignal,
): Promise<string[]> {
  const base = `http://${host}/v2/${repository}`;
  const call = async (method: string, path: string, body?: string) => {
    const answer = await fetch(`${base}/${path}`, {
      method,
      signal,
      headers: {
        accept: MANIFEST_TYPES.join(", "),
        ...(body === undefined ? {} : { "content-type": MediaType.ociIndex }),
      },
      ...(body === undefined ? {} : { body }),
    });
    const text = await answer.text();
    if (answer.ok || answer.status === 404) return { answer, text };
    throw new ObdError(
      "registry",
      `Cannot tidy the bench's registry: ${method} ${path}: ${answer.status}`,
    );
  };
  const tag = fallbackTag(subject);
  const unwanted = new Set<string>();
  // docker-registry has no API for referrers: they are listed under a tag.
  const list = await call("GET", `manifests/${tag}`);
  if (list.answer.ok) {
    const index = JSON.parse(list.text);
    const kept: Referrer[] = [];
    for (const referrer of index.manifests as Referrer[]) {
      if (keep(referrer)) kept.push(referrer);
      else unwanted.add(referrer.digest);
    }
    if (unwanted.size > 0) {
      const body = JSON.stringify({ ...index, manifests: kept });
      await call("PUT", `manifests/${tag}`, body);
    }
  }
  const { answer } = await call("HEAD", `manifests/${tag}${META_ENDING}`);
  const tagged = answer.headers.get("docker-content-digest");
  if (answer.ok && tagged && !keep({ digest: tagged })) unwanted.add(tagged);
  for (const digest of unwanted) await call("DELETE", `manifests/${digest}`);
  return [...unwanted];
}
