/** Things that go wrong on purpose in the embedded registry. */

/** What a request did, as the log keeps it. */
export interface LoggedRequest {
  method: string;
  /** Without query. */
  path: string;
  query: string;
  /** Which of the three servers was asked. */
  origin: "registry" | "storage" | "token";
  range: string | null;
  authorization: string | null;
  status: number;
  /** Set when a fault was applied. */
  fault?: string;
}

/** One way to go wrong. */
export type Fault =
  /** Another answer instead of the right one. */
  | { kind: "status"; status: number; headers?: HeadersInit; body?: string }
  /** The body breaks off after so many bytes, with the right Content-Length. */
  | { kind: "truncate"; afterBytes: number }
  /** The body ends early and Content-Length says so: a short answer that looks whole. */
  | { kind: "shorten"; bytes: number }
  /** One byte of the body is another one. */
  | { kind: "corrupt"; at: number }
  /** The whole blob with 200, whatever range was asked for. */
  | { kind: "ignore-range" }
  /** 206 with the bytes and Content-Range of a range that begins elsewhere. */
  | { kind: "shift-range"; by: number }
  /** 206 with no more than the first bytes of the range, and a Content-Range that says so. */
  | { kind: "cut-range"; bytes: number }
  /** The body stops after so many bytes and nothing more comes. */
  | { kind: "hang"; afterBytes: number }
  /** No answer at all. */
  | { kind: "silence" }
  /** The answer comes when this settles. */
  | { kind: "hold"; until: Promise<unknown> }
  /** The body comes in pieces of so many bytes, each after a pause. */
  | { kind: "drip"; bytes: number; milliseconds: number }
  /** The answer comes later. */
  | { kind: "delay"; milliseconds: number }
  /** An upload's bytes are taken up to here, then the connection breaks. */
  | { kind: "break-upload"; afterBytes: number };

/** Which requests a fault is for. */
export interface FaultRule {
  fault: Fault;
  /** How often; default once. */
  times?: number;
  method?: string;
  /** Matched against path and query. */
  path?: RegExp;
  origin?: LoggedRequest["origin"];
}

/** The faults still to come. */
export class FaultPlan {
  #rules: { rule: FaultRule; left: number }[] = [];

  /** Plans a fault; the first planned one that fits a request is used. */
  add(rule: FaultRule): void {
    this.#rules.push({ rule, left: rule.times ?? 1 });
  }

  /** Forgets all. */
  clear(): void {
    this.#rules = [];
  }

  /** The fault for a request, counted as used. */
  take(request: LoggedRequest): Fault | undefined {
    const target = request.path + request.query;
    const found = this.#rules.find(({ rule, left }) =>
      left > 0 &&
      (rule.method === undefined || rule.method === request.method) &&
      (rule.origin === undefined || rule.origin === request.origin) &&
      (rule.path === undefined || rule.path.test(target))
    );
    if (!found) return undefined;
    found.left--;
    return found.rule.fault;
  }
}

/** Applies a fault to a body of `size` bytes. `forever` settles when the server closes. */
export async function* spoilBody(
  body: AsyncIterable<Uint8Array<ArrayBuffer>>,
  fault: Fault | undefined,
  forever: Promise<void>,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const limit = fault?.kind === "truncate" || fault?.kind === "hang"
    ? fault.afterBytes
    : fault?.kind === "shorten"
    ? fault.bytes
    : Infinity;
  let at = 0;
  for await (const piece of body) {
    let part = piece.subarray(0, Math.max(0, limit - at));
    const index = fault?.kind === "corrupt" ? fault.at - at : -1;
    if (index >= 0 && index < part.length) {
      part = part.slice();
      part[index]! ^= 0x01;
    }
    at += part.length;
    if (fault?.kind === "drip") yield* dripped(part, fault);
    else if (part.length > 0) yield part;
    if (at < limit) continue;
    if (fault?.kind === "truncate") throw new Error("cut on purpose");
    if (fault?.kind === "hang") await forever;
    return;
  }
}

async function* dripped(
  part: Uint8Array<ArrayBuffer>,
  { bytes, milliseconds }: Extract<Fault, { kind: "drip" }>,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  for (let at = 0; at < part.length; at += bytes) {
    await new Promise((resolve) => setTimeout(resolve, milliseconds));
    yield part.subarray(at, at + bytes);
  }
}
