/** Opening sockets: a Unix socket that only its owner may use, or a TCP port. */

import { bindUnixSocket } from "../io/mod.ts";
import type { NbdAddress } from "./address.ts";

/** A listening socket and how to be rid of it. */
export interface OpenListener {
  readonly listener: Deno.Listener;
  /** The real address: the port is known now, also if it was given as 0. */
  readonly address: NbdAddress;
  /** Stops listening; removes the socket's file if it is still ours. */
  close(): Promise<void>;
}

/**
 * Opens a listening socket.
 *
 * @throws {ObdError} Code `conflict` if somebody else listens at a path, or it cannot be a socket's.
 * @throws {Error} The runtime's error otherwise.
 */
export async function openListener(
  address: NbdAddress,
): Promise<OpenListener> {
  if (address.transport === "unix") {
    const bound = await bindUnixSocket(
      address.path,
      (path) => Deno.listen({ transport: "unix", path }),
      (listener) => listener.close(),
    );
    return {
      listener: bound.listener,
      address,
      close: async () => {
        bound.listener.close();
        await bound.remove();
      },
    };
  }
  const { hostname, port } = address;
  const listener = Deno.listen({ transport: "tcp", hostname, port });
  return {
    listener,
    address: { transport: "tcp", hostname, port: listener.addr.port },
    close: () => {
      listener.close();
      return Promise.resolve();
    },
  };
}
