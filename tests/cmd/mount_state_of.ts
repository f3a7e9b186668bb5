import type { MountState } from "../../cmd/mount_state.ts";

/** The state of something attached, but for what a test says otherwise. */
export function mountStateOf(change: Partial<MountState>): MountState {
  return {
    version: 1,
    id: "000000000000",
    kind: "attach",
    image: "example/app",
    export: "obd-000000000000",
    api: "unix:/api.sock",
    driver: "fuse",
    started: "2026-01-01T00:00:00.000Z",
    complete: true,
    ...change,
  };
}
