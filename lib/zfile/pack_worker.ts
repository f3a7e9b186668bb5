/** The threads behind `BlockPacker`: one batch of blocks after the other. */

import { type ErrorMessage, packError } from "../compress/mod.ts";
import { workerRole } from "../io/mod.ts";
import type { PackedBatch } from "./block_packer.ts";
import type { BlockCodec } from "./format.ts";
import { packBlocks } from "./pack_blocks.ts";

/** The role of this module's worker. */
export const PACK_ROLE = "obd:zfile-pack";
/** This module; in a one-file bundle, the bundle. */
export const PACK_WORKER_URL = import.meta.url;

/** A batch as it is posted; `content` and `room` are transferred. */
export interface PackJob {
  content: ArrayBuffer;
  /** For the result. */
  room: ArrayBuffer;
  /** Bytes of `content` to pack. */
  length: number;
  blockSize: number;
  codec: BlockCodec;
}

/** The answer to a {@linkcode PackJob}. */
export type PackReply = { batch: PackedBatch } | { error: ErrorMessage };

function serve(): void {
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<PackJob>) => void;
    postMessage(reply: PackReply, transfer: Transferable[]): void;
  };
  scope.onmessage = ({ data: { content, room, length, blockSize, codec } }) => {
    try {
      const batch = {
        content,
        ...packBlocks(
          new Uint8Array(content, 0, length),
          blockSize,
          codec,
          room,
        ),
      };
      scope.postMessage({ batch }, [
        content,
        batch.bytes.buffer,
        batch.lengths.buffer,
      ]);
    } catch (error) {
      scope.postMessage({ error: packError(error) }, []);
    }
  };
}

if (workerRole() === PACK_ROLE) serve();
