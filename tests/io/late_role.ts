/** A thread whose main module waits long before the role's module listens (worker_test.ts). */

import { delay, loadRole } from "../../lib/io/mod.ts";

await loadRole(async () => {
  await delay(200);
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<number>) => void;
    postMessage(reply: number): void;
  };
  scope.onmessage = ({ data }) => scope.postMessage(data + 1);
});
