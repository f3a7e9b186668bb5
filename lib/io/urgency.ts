/** How urgent a read is, also when that changes while it waits. */

/** Demand reads go before prefetch in every queue. */
export type Priority = "demand" | "prefetch";

/** The parts of a read's options that queues look at. */
export interface Urgent {
  /** Defaults to `"demand"`. */
  priority?: Priority | undefined;
  /** Instead of a priority: one that may rise while the read waits. */
  urgency?: Urgency | undefined;
}

/**
 * The priority of work that began as prefetch and may be wanted at once: it
 * rises to demand and never falls again. Everything that works or waits for one
 * read shares one of these, so that no queue keeps what somebody waits for.
 */
export class Urgency {
  #priority: Priority;
  readonly #listeners = new Set<() => void>();

  constructor(priority: Priority) {
    this.#priority = priority;
  }

  get priority(): Priority {
    return this.#priority;
  }

  /** Makes it demand; again does nothing. */
  hurry(): void {
    if (this.#priority === "demand") return;
    this.#priority = "demand";
    for (const listener of this.#listeners) listener();
    this.#listeners.clear();
  }

  /**
   * Rises as soon as the read with these options is demand.
   *
   * @returns Ends that; to be called when the read has ended.
   */
  follow(options: Urgent): () => void {
    if (options.urgency) return options.urgency.onHurry(() => this.hurry());
    if (priorityOf(options) === "demand") this.hurry();
    return () => {};
  }

  /**
   * Calls `listener` once when it becomes demand; at once if it is.
   *
   * @returns Takes the listener back.
   */
  onHurry(listener: () => void): () => void {
    if (this.#priority === "demand") {
      listener();
      return () => {};
    }
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }
}

/** The priority of a read as it is now. */
export function priorityOf(options: Urgent | undefined): Priority {
  return options?.urgency?.priority ?? options?.priority ?? "demand";
}

interface Place<T> {
  item: T;
  /** Takes the listener for a rise of priority back. */
  leave(): void;
}

/** Waiters in the order in which they came, demand first; a prefetch that is hurried joins the end of demand. */
export class UrgencyQueue<T> {
  readonly #demand: Place<T>[] = [];
  readonly #prefetch: Place<T>[] = [];

  /** Waiters of both kinds. */
  get length(): number {
    return this.#demand.length + this.#prefetch.length;
  }

  /** Waiters that a new one of this priority would come behind. */
  ahead(priority: Priority): number {
    return priority === "demand" ? this.#demand.length : this.length;
  }

  /**
   * Adds a waiter.
   *
   * @param onHurry Called after a waiting prefetch has become demand.
   * @returns Takes it out; false when it is out already.
   */
  push(
    item: T,
    options: Urgent,
    onHurry: () => void = () => {},
  ): () => boolean {
    const place: Place<T> = { item, leave: () => {} };
    if (priorityOf(options) === "demand") this.#demand.push(place);
    else {
      this.#prefetch.push(place);
      place.leave = options.urgency?.onHurry(() => {
        if (!remove(this.#prefetch, place)) return;
        this.#demand.push(place);
        onHurry();
      }) ?? place.leave;
    }
    return () => {
      place.leave();
      return remove(this.#demand, place) || remove(this.#prefetch, place);
    };
  }

  /** The next waiter. */
  peek(kind?: Priority): T | undefined {
    return this.#next(kind)?.[0]?.item;
  }

  /**
   * Takes the next waiter out.
   *
   * @param kind Only one of this kind; default demand, else prefetch.
   */
  shift(kind?: Priority): T | undefined {
    const place = this.#next(kind)?.shift();
    place?.leave();
    return place?.item;
  }

  #next(kind: Priority | undefined): Place<T>[] {
    if (kind === undefined) {
      return this.#demand.length > 0 ? this.#demand : this.#prefetch;
    }
    return kind === "demand" ? this.#demand : this.#prefetch;
  }
}

function remove<P>(list: P[], place: P): boolean {
  const at = list.indexOf(place);
  if (at >= 0) list.splice(at, 1);
  return at >= 0;
}
