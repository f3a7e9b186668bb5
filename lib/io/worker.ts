/**
 * Workers that work from source and from a one-file bundle alike.
 *
 * A role module ends with `if (workerRole() === "obd:NAME") serve();` and is
 * started with `startWorker(import.meta.url, "obd:NAME")`. From source that URL
 * is the module itself; in a bundle it is the bundle, whose `main.ts` loads
 * every role module when {@linkcode workerRole} is set and runs no command.
 */

/** The role this thread was started for, or undefined on the main thread. */
export function workerRole(): string | undefined {
  const scope = globalThis as { WorkerGlobalScope?: unknown; name?: unknown };
  return typeof scope.WorkerGlobalScope === "undefined"
    ? undefined
    : String(scope.name);
}

/** Starts a module worker; the caller terminates it. */
export function startWorker(moduleUrl: string, role: string): Worker {
  return new Worker(moduleUrl, { type: "module", name: role });
}
