/** A doubly linked list in order of use, without allocation per touch. */

/** What a list's member carries. Zeroed by {@linkcode LruList.remove}. */
export interface LruNode<T> {
  older: T | undefined;
  newer: T | undefined;
}

/** Members in order of use. A member is in one list at most. */
export class LruList<T extends LruNode<T>> {
  #oldest: T | undefined;
  #newest: T | undefined;
  #count = 0;

  /** The least recently used member. */
  get oldest(): T | undefined {
    return this.#oldest;
  }

  get count(): number {
    return this.#count;
  }

  /** Adds a member as the most recently used. */
  add(node: T): void {
    this.#append(node);
    this.#count++;
  }

  /** Makes a member the most recently used. */
  touch(node: T): void {
    if (node === this.#newest) return;
    this.#unlink(node);
    this.#append(node);
  }

  remove(node: T): void {
    this.#unlink(node);
    this.#count--;
  }

  /** Members, least recently used first. The list must not change meanwhile. */
  *[Symbol.iterator](): Generator<T> {
    for (let node = this.#oldest; node; node = node.newer) yield node;
  }

  #append(node: T): void {
    node.older = this.#newest;
    node.newer = undefined;
    if (this.#newest) this.#newest.newer = node;
    else this.#oldest = node;
    this.#newest = node;
  }

  #unlink(node: T): void {
    if (node.older) node.older.newer = node.newer;
    else this.#oldest = node.newer;
    if (node.newer) node.newer.older = node.older;
    else this.#newest = node.older;
    node.older = undefined;
    node.newer = undefined;
  }
}
