/** The repository that a build goes to: a layout that is not there is made only when there is something to put in. */

import { ObdError, UsageError } from "../io/mod.ts";
import type { Reference, Repository } from "../registry/mod.ts";
import type { ImageEnvironment } from "./environment.ts";

/** Opened by {@linkcode openTarget}. */
export interface BuildTarget extends AsyncDisposable {
  /** As it was before the build; undefined for a layout that is not there yet. */
  readonly existing: Repository | undefined;
  /** The repository, made if need be. */
  make(): Promise<Repository>;
}

/**
 * Opens a destination.
 *
 * @throws {UsageError} If it cannot be written to, unless it is a dry run.
 */
export async function openTarget(
  environment: ImageEnvironment,
  reference: Reference,
  dryRun: boolean,
): Promise<BuildTarget> {
  let repository = await openExisting(environment, reference, dryRun);
  const existing = repository;
  if (repository && !repository.writable && !dryRun) {
    await repository[Symbol.asyncDispose]();
    throw new UsageError(`"${repository.name}" cannot be written to`);
  }
  return {
    existing,
    async make() {
      return repository ??= await environment.openRepository(reference, {
        create: true,
      });
    },
    async [Symbol.asyncDispose]() {
      await repository?.[Symbol.asyncDispose]();
    },
  };
}

async function openExisting(
  environment: ImageEnvironment,
  reference: Reference,
  dryRun: boolean,
): Promise<Repository | undefined> {
  try {
    return await environment.openRepository(reference);
  } catch (error) {
    if (!(error instanceof ObdError) || error.code !== "not-found") throw error;
    if (reference.kind !== "layout") throw error;
    if (dryRun || !await holdsSomething(reference.path)) return undefined;
    // A layout that was begun, or another's directory: the latter is refused now, not after the build.
    return await environment.openRepository(reference, { create: true });
  }
}

async function holdsSomething(path: string): Promise<boolean> {
  try {
    for await (const _ of Deno.readDir(path)) return true;
    return false;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
