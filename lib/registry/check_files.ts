/**
 * The files that settings name, looked at before any registry is asked: who
 * runs for long would find out at the first request that needs them.
 */

import { errorText, UsageError } from "../io/mod.ts";
import {
  type CredentialService,
  openServiceClient,
} from "./credential_service.ts";
import { checkCredentialsFile } from "./credentials.ts";
import { createEngine } from "./http.ts";
import { type ClientPair, loadHostTls, useSystemCas } from "./tls.ts";

/** Paths as the settings of a client have them. */
export interface ClientFiles {
  caFile?: string | undefined;
  clientPair?: ClientPair | undefined;
  tlsSkipVerify?: boolean | undefined;
  authFile?: string | undefined;
  overlaybdFile?: string | undefined;
  overlaybdService?: CredentialService | undefined;
}

/**
 * Reads them all. What is read anew at each look may still change.
 *
 * @returns A line for each that images can be opened without: overlaybd's
 * credentials may come later, or not be needed.
 * @throws {UsageError} Naming the file that is missing, cannot be read or used.
 * @throws {FormatError} If credentials are not in Docker's form.
 */
export async function checkClientFiles(files: ClientFiles): Promise<string[]> {
  const { caFile, clientPair, tlsSkipVerify: skipVerify = false } = files;
  useSystemCas(); // before the first client
  if (caFile !== undefined || clientPair) {
    const tls = await loadHostTls("", { caFile, clientPair, directories: [] });
    const engine = await createEngine(tls, {
      skipVerify,
      idleConnectionsPerHost: 1,
    });
    engine.close();
  }
  if (files.authFile) await checkCredentialsFile(files.authFile);
  const warnings: string[] = [];
  if (files.overlaybdFile) {
    try {
      await checkCredentialsFile(files.overlaybdFile);
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      warnings.push(errorText(error));
    }
  }
  if (files.overlaybdService) {
    try {
      (await openServiceClient(files.overlaybdService)).close();
    } catch (error) {
      warnings.push(errorText(error));
    }
  }
  return warnings;
}
