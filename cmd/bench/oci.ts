/** Plain OCI: everything is fetched and unpacked before the container starts. */

import { ended, startClock } from "./clock.ts";
import { type Containerd, runContainer } from "./containerd.ts";
import type { CostGroup } from "./cost.ts";
import { type Measurement, since } from "./measurement.ts";
import { BenchProcess } from "./process.ts";
import type { RunSettings } from "./settings.ts";

/** Pulled and unpacked by containerd onto overlayfs. */
export async function runOci(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  { ctr, root }: Containerd,
  group: CostGroup,
): Promise<Measurement> {
  const reference = `${settings.registry.proxy.address}/${settings.image}`;
  const started = await startClock(settings, group);
  const pull = stack.use(
    new BenchProcess([
      ...ctr,
      "images",
      "pull",
      "--plain-http",
      "--snapshotter",
      "overlayfs",
      reference,
    ], { group, name: "ctr pull" }),
  );
  await ended(pull, settings, "pull the image");
  const rootSeconds = since(started);
  return await runContainer(stack, settings, {
    ctr,
    root: ["--snapshotter", "overlayfs", reference],
    group,
    started,
    rootSeconds,
    keeps: [root],
  });
}

/** Where containerd does not unpack: fetched by skopeo, unpacked by umoci. */
export async function runUmoci(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  { ctr }: Containerd,
  group: CostGroup,
): Promise<Measurement> {
  const { work } = settings;
  const started = await startClock(settings, group);
  await fetchAndUnpack(stack, settings, group);
  const rootSeconds = since(started);
  return await runContainer(stack, settings, {
    ctr,
    root: ["--rootfs", `${work}/bundle/rootfs`],
    group,
    started,
    rootSeconds,
    keeps: [`${work}/layout`, `${work}/bundle`],
  });
}

/** The image into `work/layout`, its tree into `work/bundle/rootfs`; as an ordinary user too. */
export async function fetchAndUnpack(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  group: CostGroup,
): Promise<void> {
  const { work } = settings;
  const copy = stack.use(
    new BenchProcess([
      "skopeo",
      "copy",
      "--insecure-policy",
      "--src-tls-verify=false",
      `docker://${settings.registry.proxy.address}/${settings.image}`,
      `oci:${work}/layout:image`,
    ], { group }),
  );
  await ended(copy, settings, "fetch the image");
  const unpack = stack.use(
    new BenchProcess([
      "umoci",
      "unpack",
      ...(Deno.uid() === 0 ? [] : ["--rootless"]),
      "--image",
      `${work}/layout:image`,
      `${work}/bundle`,
    ], { group }),
  );
  await ended(unpack, settings, "unpack the image");
}
