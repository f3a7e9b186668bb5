/**
 * Five minutes of reads through `obd serve` while the registry's tokens live
 * 60 s and its signed redirects 30 s: no read may fail. The short form of this
 * is tests/serve/weather_test.ts.
 *
 *     deno run -A bench/weather_soak.ts [--seconds 300] [--token 60] [--redirect 30] [--pause-ms 50]
 *
 * The caches are as small as they can be, so that every round fetches again.
 * Prints a JSON line every 30 s and one at the end; exits 1 if a read failed.
 */

import { parseArgs } from "node:util";
import { equalBytes } from "../lib/io/mod.ts";
import {
  build,
  content,
  type Files,
  imageOf,
  readFile,
  ServeProcess,
  withTempDir,
  writeConfig,
} from "../tests/serve/harness.ts";
import { putImage } from "../tests/testutil/oci_image.ts";
import { RegistryServer } from "../tests/testutil/registry_server.ts";

const { values } = parseArgs({
  args: Deno.args,
  options: {
    seconds: { type: "string", default: "300" },
    token: { type: "string", default: "60" },
    redirect: { type: "string", default: "30" },
    "pause-ms": { type: "string", default: "50" },
  },
});

/** More than what is kept in memory. */
const FILES: Files = Object.fromEntries(
  Array.from({ length: 24 }, (_, i) => [`f${i}`, content(i, 2_000_000)]),
);

/** What happened so far. */
const total = { reads: 0, bytes: 0, failures: 0, wrong: 0 };

await withTempDir(async (dir) => {
  await using server = await RegistryServer.start({
    directory: `${dir}/registry`,
  });
  const image = imageOf(FILES);
  await putImage(server, "app", "v1", image);
  await build(`${server.host}/app:v1`);
  server.options.redirect = true;
  server.options.auth = {
    kind: "token",
    anonymousPull: true,
    lifetimeSeconds: Number(values.token),
  };
  const config = await writeConfig(
    dir,
    [{ export: "app", image: `${server.host}/app:v1-obd` }],
    {
      cacheConfig: { cacheDir: `${dir}/blobs`, cacheSizeGB: 0.001 },
      gzipCacheConfig: { enable: false },
    },
  );
  await using serve = await ServeProcess.start(config);
  await using client = await serve.connect("app");
  const started = performance.now();
  const say = (event: string) => {
    const count = (status: number, origin: string) =>
      server.requests.filter((r) => r.status === status && r.origin === origin)
        .length;
    console.log(JSON.stringify({
      bench: "weather_soak",
      event,
      seconds: Math.round((performance.now() - started) / 1000),
      ...total,
      tokens: count(200, "token"),
      redirects: count(307, "registry"),
      expired: count(403, "storage"),
      refusedTokens: count(401, "registry"),
      fetches: count(206, "storage"),
    }));
  };
  const timers = [
    setInterval(() => server.revokeTokens(), Number(values.token) * 1000),
    setInterval(() => server.expireUrls(), Number(values.redirect) * 1000),
    setInterval(() => say("so far"), 30_000),
  ];
  const end = started + Number(values.seconds) * 1000;
  while (performance.now() < end) {
    for (const [path, bytes] of Object.entries(FILES)) {
      if (performance.now() > end) break;
      try {
        const got = await readFile(client, path);
        if (!equalBytes(got, bytes)) total.wrong++;
        total.bytes += got.length;
      } catch (error) {
        total.failures++;
        console.error(String(error));
      }
      total.reads++;
      await new Promise((resolve) =>
        setTimeout(resolve, Number(values["pause-ms"]))
      );
    }
  }
  timers.forEach(clearInterval);
  say("done");
  if (total.failures + total.wrong > 0) {
    console.error(serve.log);
    Deno.exitCode = 1;
  }
});
