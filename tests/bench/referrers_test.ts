/** The bench's registry holds what was built now, and nothing that other versions left. */

import assert from "node:assert/strict";
import { startUserRegistry } from "../../cmd/bench/link.ts";
import { keepReferrers } from "../../cmd/bench/referrers.ts";
import { requireBuilt } from "../../cmd/bench/serve_state.ts";
import {
  openEnvironment,
  openImage,
  publishImage,
  ReadStats,
} from "../../lib/image/mod.ts";
import { file, makeImage, writeLayout } from "../testutil/oci_image.ts";
import { requires } from "../testutil/requires.ts";
import { seededBytes } from "../testutil/source_contract.ts";

Deno.test({
  name: "keepReferrers() leaves one meta image of several",
  ignore: !requires("docker-registry"),
  fn: async () => {
    const work = await Deno.makeTempDir({ prefix: "obd-referrers-" });
    try {
      const signal = AbortSignal.timeout(60_000);
      await using registry = await startUserRegistry({
        storage: `${work}/storage`,
        work,
        link: { rate: undefined, rttMs: 0 },
        signal,
      });
      const image = makeImage({
        layers: [{ entries: [file("f", seededBytes(3_000_000, 1))] }],
      });
      await writeLayout(`${work}/layout`, [{ tag: "v1", image }]);
      await using environment = await openEnvironment({ workers: 1 });
      const host = registry.direct;
      const subject = image.manifest.digest;
      const digestTag = `${subject.replace(":", "-")}-obd`;
      const build = async (
        spanSize: number,
        tag: string,
        referrer = true,
      ) => {
        const { platforms } = await publishImage(environment, {
          source: `oci:${work}/layout:v1`,
          dest: `${host}/app:${tag}`,
          spanSize,
          referrer,
        });
        return platforms[0]!.meta.digest;
      };
      // One that only the tag of the image's digest leads to, and one of the list.
      const old = [
        await build(2 ** 20, digestTag, false),
        await build(2 ** 21, "old"),
      ];
      const built = await build(2 ** 18, "v1-obd");
      assert.equal(new Set([built, ...old]).size, 3);
      const opened = async () => {
        await using image = await openImage(
          environment,
          `${host}/app@${subject}`,
          { metaFrom: ["digest", "referrer"] },
        );
        return image.metaDigest;
      };
      const place = { host, repository: "app", subject };
      const keep = (r: { digest: string }) => r.digest === built;
      const deleted = await keepReferrers(place, keep, signal);
      assert.deepEqual(deleted.sort(), old.sort());
      assert.equal(await opened(), built);
      assert.deepEqual(await keepReferrers(place, keep, signal), []);
      await keepReferrers(place, () => false, signal);
      await assert.rejects(opened(), { code: "not-found" });
    } finally {
      await Deno.remove(work, { recursive: true });
    }
  },
});

Deno.test("keepReferrers() says what the registry does not do", async () => {
  await using server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen: () => {} },
    () => new Response(null, { status: 405 }),
  );
  const host = `127.0.0.1:${server.addr.port}`;
  await assert.rejects(
    keepReferrers(
      { host, repository: "app", subject: "sha256:00" },
      () => true,
      AbortSignal.timeout(10_000),
    ),
    /Cannot tidy the bench's registry: GET manifests\/sha256-00: 405/,
  );
});

Deno.test("requireBuilt() fails a run that opened something else", () => {
  const state = {
    edge: { reads: 0, bytes: 0 },
    reading: new ReadStats().counters(),
    metaDigest: "sha256:aa",
  };
  requireBuilt(state, "sha256:aa");
  assert.throws(
    () => requireBuilt(state, "sha256:bb"),
    /than the one that was built: sha256:aa, not sha256:bb/,
  );
});
