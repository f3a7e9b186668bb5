/** Bit operations on bitmap blocks: bit i of byte i / 8, lowest bit first. */

/** Whether bit `i` is set. */
export function testBit(bits: Uint8Array, i: number): boolean {
  return (bits[i >>> 3]! >>> (i & 7) & 1) === 1;
}

/** Sets bits `[from, to)`. */
export function setBits(bits: Uint8Array, from: number, to: number): void {
  let i = from;
  for (; i < to && (i & 7) !== 0; i++) bits[i >>> 3]! |= 1 << (i & 7);
  const whole = to & ~7;
  if (i < whole) {
    bits.fill(0xff, i >>> 3, whole >>> 3);
    i = whole;
  }
  for (; i < to; i++) bits[i >>> 3]! |= 1 << (i & 7);
}

/** Clears bits `[from, to)`. */
export function clearBits(bits: Uint8Array, from: number, to: number): void {
  let i = from;
  for (; i < to && (i & 7) !== 0; i++) bits[i >>> 3]! &= ~(1 << (i & 7));
  const whole = to & ~7;
  if (i < whole) {
    bits.fill(0, i >>> 3, whole >>> 3);
    i = whole;
  }
  for (; i < to; i++) bits[i >>> 3]! &= ~(1 << (i & 7));
}

/** How many of bits `[0, to)` are set. */
export function countBits(bits: Uint8Array, to: number): number {
  let count = 0;
  const whole = to >>> 3;
  for (let i = 0; i < whole; i++) {
    let b = bits[i]!;
    if (b === 0) continue;
    if (b === 0xff) {
      count += 8;
      continue;
    }
    for (; b !== 0; b &= b - 1) count++;
  }
  for (let i = whole << 3; i < to; i++) if (testBit(bits, i)) count++;
  return count;
}

/** First clear bit in `[from, to)`, or -1. */
export function findClear(bits: Uint8Array, from: number, to: number): number {
  let i = from;
  while (i < to) {
    if ((i & 7) === 0 && bits[i >>> 3] === 0xff) i += 8;
    else if (testBit(bits, i)) i++;
    else return i;
  }
  return -1;
}
