/** How registries are reached by the keys of an `overlaybd.json`. */

import { UsageError } from "../lib/io/mod.ts";
import { peerUrl, type RegistrySettings } from "../lib/image/mod.ts";
import type { RawConfig } from "./config_schema.ts";

/** The part of the settings that overlaybd's keys decide. */
export type OverlaybdSettings = Pick<
  RegistrySettings,
  | "overlaybdCredentialFile"
  | "overlaybdCredentialService"
  | "clientPair"
  | "peerAddress"
>;

/** What overlaybd takes when the key is missing (its src/config.h). */
const P2P_ADDRESS = "http://localhost:9731/accelerator";

/**
 * Collects them.
 *
 * @throws {UsageError} If a key lacks the one that belongs to it, or is no URL where one must be.
 */
export function overlaybdSettings(raw: RawConfig): OverlaybdSettings {
  return { ...credentials(raw), ...clientPair(raw), ...peer(raw) };
}

function credentials(raw: RawConfig): OverlaybdSettings {
  const config = raw.credentialConfig;
  const { mode, path } = config ?? {};
  // An empty mode is the older key's turn.
  if (!config || !mode) {
    const file = raw.credentialFilePath;
    return file ? { overlaybdCredentialFile: file } : {};
  }
  if (mode === "file") return path ? { overlaybdCredentialFile: path } : {};
  if (!path) {
    throw new UsageError(
      `Key "credentialConfig.path" is missing, which mode "${mode}" needs`,
    );
  }
  const { timeout, client_cert_path, client_key_path, server_ca_path } = config;
  return {
    overlaybdCredentialService: {
      mode,
      path,
      ...(timeout === undefined ? {} : { timeoutMs: timeout * 1000 }),
      ...(client_cert_path ? { clientCertFile: client_cert_path } : {}),
      ...(client_key_path ? { clientKeyFile: client_key_path } : {}),
      ...(server_ca_path ? { caFile: server_ca_path } : {}),
    },
  };
}

function clientPair({ certConfig }: RawConfig): OverlaybdSettings {
  const { certFile, keyFile } = certConfig ?? {};
  // Both, or it is as if there were none.
  return certFile && keyFile ? { clientPair: { certFile, keyFile } } : {};
}

function peer({ p2pConfig }: RawConfig): OverlaybdSettings {
  if (!p2pConfig?.enable) return {};
  const peerAddress = p2pConfig.address || P2P_ADDRESS;
  peerUrl(peerAddress);
  return { peerAddress };
}
