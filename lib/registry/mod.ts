/** Registries, OCI layouts and OCI archives behind one interface, {@linkcode Repository}. */
export * from "./archive.ts";
export * from "./blob_source.ts";
export { checkClientFiles } from "./check_files.ts";
export * from "./client.ts";
export { type Clock, systemClock } from "./clock.ts";
export * from "./content.ts";
export { type CredentialService } from "./credential_service.ts";
export {
  createCredentialSource,
  type CredentialOptions,
  type Credentials,
  type CredentialSource,
  type FoundCredentials,
  noCredentials,
} from "./credentials.ts";
export * from "./digest.ts";
export { redactText, redactUrl, RegistryError } from "./errors.ts";
export { LayoutRepository } from "./layout.ts";
export { REF_NAME_ANNOTATION } from "./layout_reader.ts";
export * from "./manifest.ts";
export * from "./media_types.ts";
export { peerUrl } from "./peer.ts";
export * from "./platform.ts";
export { keepDirect } from "./proxies.ts";
export * from "./reference.ts";
export { fallbackTag } from "./referrers.ts";
export { RemoteRepository } from "./remote.ts";
export * from "./repository.ts";
export { CERTS_DIRECTORIES, type ClientPair } from "./tls.ts";
export {
  DEFAULT_LIMITS,
  type HostStatistics,
  type TransportLimits,
  type TransportOptions,
} from "./transport.ts";
