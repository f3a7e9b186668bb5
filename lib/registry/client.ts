/** Opening repositories by reference. */

import { ArchiveRepository } from "./archive.ts";
import { Authenticator } from "./auth.ts";
import {
  createCredentialSource,
  type CredentialOptions,
  type CredentialSource,
} from "./credentials.ts";
import { LayoutRepository } from "./layout.ts";
import { parseReference, type Reference } from "./reference.ts";
import { RemoteRepository } from "./remote.ts";
import type { Repository } from "./repository.ts";
import { Session } from "./session.ts";
import {
  type HostStatistics,
  Transport,
  type TransportOptions,
} from "./transport.ts";

/** How registries are reached. */
export interface RegistryOptions extends TransportOptions {
  /** Where credentials come from. */
  credentials?: CredentialOptions | CredentialSource | undefined;
}

/** Options of {@linkcode openRepository}. */
export interface OpenOptions extends RegistryOptions {
  /** Make an OCI layout directory where there is none. */
  create?: boolean | undefined;
  /** Shares connections, tokens and limits; the other registry options are then of no effect. */
  client?: RegistryClient | undefined;
}

/**
 * What several repositories share: connections, limits per host, challenges
 * and tokens. A process needs one.
 */
export class RegistryClient implements AsyncDisposable {
  readonly #transport: Transport;
  readonly #credentials: CredentialSource;
  readonly #authenticators = new Map<string, Authenticator>();

  constructor(options: RegistryOptions = {}) {
    this.#transport = new Transport(options);
    const given = options.credentials;
    this.#credentials = given && "find" in given
      ? given
      : createCredentialSource({ logger: options.logger, ...given });
  }

  /** A repository of a registry; disposing of it leaves the client open. */
  open(
    registry: string,
    repository: string,
    onDispose?: () => Promise<void>,
  ): RemoteRepository {
    let auth = this.#authenticators.get(registry);
    if (!auth) {
      auth = new Authenticator(this.#transport, registry, this.#credentials);
      this.#authenticators.set(registry, auth);
    }
    return new RemoteRepository(
      new Session(this.#transport, auth, registry, repository),
      onDispose,
    );
  }

  /** As {@linkcode Transport.usePlainHttp}. */
  usePlainHttp(registry: string): void {
    this.#transport.usePlainHttp(registry);
  }

  /** Counters of all hosts that were asked. */
  get statistics(): HostStatistics[] {
    return this.#transport.statistics;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#transport[Symbol.asyncDispose]();
  }
}

/**
 * Opens where an image is, or will be pushed to. A registry is not contacted yet.
 *
 * @throws {UsageError} If the reference is malformed.
 * @throws {NotFoundError} If a layout or archive is not there.
 */
export async function openRepository(
  reference: Reference | string,
  options: OpenOptions = {},
): Promise<Repository> {
  const parsed = typeof reference === "string"
    ? parseReference(reference)
    : reference;
  switch (parsed.kind) {
    case "layout":
      return await LayoutRepository.open(parsed.path, {
        create: options.create ?? false,
      });
    case "archive":
      return await ArchiveRepository.open(parsed.path);
    case "registry": {
      const { registry, repository } = parsed;
      if (options.client) return options.client.open(registry, repository);
      const client = new RegistryClient(options);
      return client.open(
        registry,
        repository,
        () => client[Symbol.asyncDispose](),
      );
    }
  }
}
