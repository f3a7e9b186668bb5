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

/**
 * Loads the module of this thread's role, which the main module waits for.
 *
 * While a main module waits the runtime (Deno 2.9.6) hands messages over, and
 * those that nobody listens for yet are lost: they are kept until the role's
 * module listens.
 */
export async function loadRole(load: () => Promise<unknown>): Promise<void> {
  const early: MessageEvent[] = [];
  const keep = (event: Event) => {
    // The role's own listener, once it is there, gets them in their order.
    event.stopImmediatePropagation();
    early.push(event as MessageEvent);
  };
  addEventListener("message", keep);
  await load();
  removeEventListener("message", keep);
  for (const { data } of early) {
    dispatchEvent(new MessageEvent("message", { data }));
  }
}
