/** A set of inode numbers, in a bit each: layers make tens of thousands, close to each other. */

const PAGE_BITS = 32_768;

/** Memory is 4 KiB for each run of 32,768 numbers that has any. */
export class NodeSet {
  readonly #pages = new Map<number, Uint8Array>();

  /** Whether a number was added. */
  has(node: number): boolean {
    const page = this.#pages.get(Math.floor(node / PAGE_BITS));
    if (page === undefined) return false;
    const bit = node % PAGE_BITS;
    return (page[bit >> 3]! & (1 << (bit & 7))) !== 0;
  }

  /** Adds a number. */
  add(node: number): void {
    const index = Math.floor(node / PAGE_BITS);
    let page = this.#pages.get(index);
    if (page === undefined) {
      this.#pages.set(index, page = new Uint8Array(PAGE_BITS / 8));
    }
    const bit = node % PAGE_BITS;
    page[bit >> 3]! |= 1 << (bit & 7);
  }

  /** Takes a number out. */
  delete(node: number): void {
    const page = this.#pages.get(Math.floor(node / PAGE_BITS));
    const bit = node % PAGE_BITS;
    if (page !== undefined) page[bit >> 3]! &= ~(1 << (bit & 7));
  }
}
