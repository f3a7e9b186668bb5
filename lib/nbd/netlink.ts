/**
 * Generic netlink [RFC 3549; Linux Documentation/userspace-api/netlink], as far
 * as the NBD driver needs it: one request at a time, which the kernel has
 * worked off when the sending call returns. Integers are in host order, which
 * is little-endian on every machine that obd runs on.
 */

import { concatBytes, FormatError, ObdError, utf8, viewOf } from "../io/mod.ts";
import { SystemSocket } from "./system_socket.ts";

/** Sizes of `struct nlmsghdr`, `struct genlmsghdr` and `struct nlattr`. */
const MESSAGE_HEADER = 16;
const GENERIC_HEADER = 4;
const ATTRIBUTE_HEADER = 4;
/** More than any answer to what is asked here. */
const RECEIVE_BYTES = 32 * 1024;
/** Messages of one answer. */
const MAX_MESSAGES = 64;

const NLMSG_ERROR = 2;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;

/** The controller's own family, which knows the numbers of the others. */
const CONTROLLER = { id: 16, version: 2 };
const CTRL_CMD_GETFAMILY = 3;
const CTRL_ATTR_FAMILY_ID = 1;
const CTRL_ATTR_FAMILY_NAME = 2;

/** Error numbers of Linux that {@linkcode NetlinkError} may have. */
export const LINUX_ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  EBUSY: 16,
  ENODEV: 19,
  EINVAL: 22,
} as const;

/** What an attribute holds: a number of a size, text with its NUL, or attributes. */
export type AttributeValue =
  | { u32: number }
  | { u64: number | bigint }
  | { text: string }
  | { nested: Attribute[] };

/** Type and value. */
export type Attribute = [type: number, value: AttributeValue];

/** The kernel refused a request. */
export class NetlinkError extends ObdError {
  /** Positive. */
  readonly errno: number;

  constructor(what: string, errno: number) {
    const name = Object.entries(LINUX_ERRNO).find(([, n]) => n === errno)?.[0];
    super("state", `Cannot ${what}: the kernel says ${name ?? errno}`);
    this.errno = errno;
  }
}

/** A family of requests, e.g. the NBD driver's. */
export class NetlinkFamily implements Disposable {
  readonly #socket: SystemSocket;
  readonly #id: number;
  readonly #version: number;
  #sequence: number;

  private constructor(
    socket: SystemSocket,
    id: number,
    version: number,
    sequence: number,
  ) {
    this.#socket = socket;
    this.#id = id;
    this.#version = version;
    this.#sequence = sequence;
  }

  /**
   * Opens a family by its name.
   *
   * @param timeoutMs For each call.
   * @throws {NetlinkError} `ENOENT` if the kernel (or the module) is not there.
   */
  static async open(
    name: string,
    version: number,
    timeoutMs: number,
  ): Promise<NetlinkFamily> {
    const socket = SystemSocket.netlink(timeoutMs);
    try {
      const controller = new NetlinkFamily(
        socket,
        CONTROLLER.id,
        CONTROLLER.version,
        0,
      );
      const answer = await controller.request(
        `find netlink family "${name}"`,
        CTRL_CMD_GETFAMILY,
        [[CTRL_ATTR_FAMILY_NAME, { text: name }]],
      );
      const id = answer.get(CTRL_ATTR_FAMILY_ID);
      if (id?.length !== 2) throw badAnswer("family id");
      return new NetlinkFamily(
        socket,
        viewOf(id).getUint16(0, true),
        version,
        controller.#sequence,
      );
    } catch (error) {
      socket.close();
      throw error;
    }
  }

  /**
   * Asks for something to be done.
   *
   * @param what For the error: `Cannot …`.
   * @returns Attributes of the answer, by type; none if it is only an acknowledgement.
   * @throws {NetlinkError} If the kernel refuses.
   */
  async request(
    what: string,
    command: number,
    attributes: Attribute[],
  ): Promise<Map<number, Uint8Array>> {
    const sequence = ++this.#sequence;
    const message = this.#encode(command, sequence, attributes);
    const sent = await this.#socket.write(message);
    if (sent !== message.length) throw badAnswer("length sent");
    const buffer = new Uint8Array(RECEIVE_BYTES);
    let found = new Map<number, Uint8Array>();
    for (let count = 0; count < MAX_MESSAGES; count++) {
      const length = await this.#socket.read(buffer);
      if (length === null) throw badAnswer("length");
      for (const part of splitMessages(buffer.slice(0, length))) {
        // A late answer to what was given up.
        if (part.sequence !== sequence) continue;
        if (part.type === NLMSG_ERROR) {
          if (part.body.length < 4) throw badAnswer("error");
          const errno = -viewOf(part.body).getInt32(0, true);
          if (errno !== 0) throw new NetlinkError(what, errno);
          return found;
        }
        if (part.type !== this.#id) throw badAnswer("type");
        found = readAttributes(part.body.subarray(GENERIC_HEADER));
      }
    }
    throw badAnswer("count");
  }

  [Symbol.dispose](): void {
    this.#socket.close();
  }

  #encode(
    command: number,
    sequence: number,
    attributes: Attribute[],
  ): Uint8Array {
    const body = encodeAttributes(attributes);
    const bytes = new Uint8Array(MESSAGE_HEADER + GENERIC_HEADER + body.length);
    const view = viewOf(bytes);
    view.setUint32(0, bytes.length, true);
    view.setUint16(4, this.#id, true);
    view.setUint16(6, NLM_F_REQUEST | NLM_F_ACK, true);
    view.setUint32(8, sequence, true);
    bytes[MESSAGE_HEADER] = command;
    bytes[MESSAGE_HEADER + 1] = this.#version;
    bytes.set(body, MESSAGE_HEADER + GENERIC_HEADER);
    return bytes;
  }
}

interface Message {
  type: number;
  sequence: number;
  /** What follows the header. */
  body: Uint8Array;
}

function* splitMessages(bytes: Uint8Array): Generator<Message> {
  const view = viewOf(bytes);
  for (let at = 0; at < bytes.length;) {
    if (bytes.length - at < MESSAGE_HEADER) throw badAnswer("header");
    const length = view.getUint32(at, true);
    if (length < MESSAGE_HEADER || length > bytes.length - at) {
      throw badAnswer("length");
    }
    yield {
      type: view.getUint16(at + 4, true),
      sequence: view.getUint32(at + 8, true),
      body: bytes.subarray(at + MESSAGE_HEADER, at + length),
    };
    at += align(length);
  }
}

/** @throws {FormatError} If lengths do not fit. */
export function readAttributes(bytes: Uint8Array): Map<number, Uint8Array> {
  const view = viewOf(bytes);
  const found = new Map<number, Uint8Array>();
  for (let at = 0; at < bytes.length;) {
    if (bytes.length - at < ATTRIBUTE_HEADER) throw badAnswer("attribute");
    const length = view.getUint16(at, true);
    if (length < ATTRIBUTE_HEADER || length > bytes.length - at) {
      throw badAnswer("attribute length");
    }
    found.set(
      view.getUint16(at + 2, true) & NLA_TYPE_MASK,
      bytes.subarray(at + ATTRIBUTE_HEADER, at + length),
    );
    at += align(length);
  }
  return found;
}

/** The bytes of attributes, each padded to 4. */
export function encodeAttributes(attributes: Attribute[]): Uint8Array {
  const parts = attributes.map(([type, value]) => {
    const data = encodeValue(value);
    const length = ATTRIBUTE_HEADER + data.length;
    const bytes = new Uint8Array(align(length));
    const view = viewOf(bytes);
    view.setUint16(0, length, true);
    view.setUint16(2, type | ("nested" in value ? NLA_F_NESTED : 0), true);
    bytes.set(data, ATTRIBUTE_HEADER);
    return bytes;
  });
  return concatBytes(parts);
}

function encodeValue(value: AttributeValue): Uint8Array {
  if ("nested" in value) return encodeAttributes(value.nested);
  if ("text" in value) return utf8(`${value.text}\0`);
  if ("u32" in value) {
    return new Uint8Array(new Uint32Array([value.u32]).buffer);
  }
  return new Uint8Array(new BigUint64Array([BigInt(value.u64)]).buffer);
}

function align(length: number): number {
  return (length + 3) & ~3;
}

function badAnswer(field: string): FormatError {
  return new FormatError("netlink answer", field, "is wrong");
}
