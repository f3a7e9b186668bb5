/** Network block devices: a server for any source, and a client. */
export {
  formatNbdAddress,
  formatNbdUri,
  NBD_PORT,
  type NbdAddress,
  type NbdTarget,
  parseNbdAddress,
  parseNbdUri,
} from "./address.ts";
export { NbdClient, type NbdClientOptions } from "./client.ts";
export type { ExportInfo, ListedExport } from "./client_handshake.ts";
export { NBD_ERROR, NbdError } from "./errno.ts";
export { type ExportOptions, NbdExport } from "./exports.ts";
export { NbdServer, type NbdServerOptions } from "./server.ts";
export {
  connectKernelDevice,
  disconnectKernelDevice,
  type KernelConnection,
  reconnectKernelDevice,
} from "./kernel_device.ts";
export type { ExportStats, LatencyHistogram } from "./stats.ts";
export type { ByteStream } from "./stream.ts";
