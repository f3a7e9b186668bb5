/** A thread of the speed probe: does its work whenever it is told to. */

import { errorText, workerRole } from "../../lib/io/mod.ts";
import { SpeedWork } from "./speed_work.ts";

/** The role of this module's worker. */
export const SPEED_ROLE = "cmd:bench-speed";
/** This module; in a one-file bundle, the bundle. */
export const SPEED_WORKER_URL = import.meta.url;

/** The answer to each message: the work is done, or why it is not. */
export interface SpeedReply {
  failure?: string;
}

function serve(): void {
  const scope = globalThis as unknown as {
    onmessage: () => void;
    postMessage(reply: SpeedReply): void;
  };
  let work: SpeedWork | undefined;
  scope.onmessage = () => {
    try {
      work ??= new SpeedWork();
      work.run();
      scope.postMessage({});
    } catch (error) {
      scope.postMessage({ failure: errorText(error) });
    }
  };
}

if (workerRole() === SPEED_ROLE) serve();
