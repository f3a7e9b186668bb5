import { deepEqual, rejects, throws } from "node:assert/strict";
import { OtherDeviceError, reconnectKernel } from "../../cmd/mount_kernel.ts";
import { chooseStates } from "../../cmd/reconnect.ts";
import { MemorySource } from "../../lib/io/mod.ts";
import { NbdServer } from "../../lib/nbd/mod.ts";
import { mountStateOf as state } from "./mount_state_of.ts";

Deno.test("chooseStates() takes directories, devices, ids and images", () => {
  const attached = state({ id: "111111111111", device: "/dev/nbd1" });
  const mounted = state({
    id: "222222222222",
    kind: "mount",
    dir: `${Deno.cwd()}/at`,
    device: "/dev/nbd2",
  });
  const all = [attached, mounted];
  deepEqual(chooseStates(all, []), all);
  deepEqual(chooseStates(all, ["/dev/nbd1"]), [attached]);
  deepEqual(chooseStates(all, ["222222222222"]), [mounted]);
  deepEqual(chooseStates(all, ["at/"]), [mounted]);
  deepEqual(chooseStates(all, ["example/app", "/dev/nbd2"]), all);
  throws(() => chooseStates(all, ["/dev/nbd1", "none"]), {
    name: "NotFoundError",
    message: 'obd has nothing mounted or attached as "none"',
  });
});

Deno.test("reconnectKernel() refuses what the device was not, before it asks the kernel", async () => {
  await using server = new NbdServer();
  server.addExport({
    name: "app",
    source: new MemorySource(new Uint8Array(8192)),
  });
  const address = await server.listen("127.0.0.1:0");
  const port = address.transport === "tcp" ? address.port : 0;
  const device = state({
    device: "/dev/nbd0",
    uri: `nbd://127.0.0.1:${port}/app`,
    size: 8192,
    nbdBackend: "obd-000000000000-0",
  });
  await rejects(reconnectKernel(device), OtherDeviceError);
  const other = { ...device, fingerprint: "0".repeat(64) };
  await rejects(reconnectKernel(other), OtherDeviceError);
  const { nbdBackend: _none, ...old } = device;
  await rejects(
    reconnectKernel(old),
    /made by an earlier version of obd/,
  );
});
