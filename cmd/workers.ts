/**
 * Every module of a command that runs in a worker thread; lib/image/workers.ts
 * has those of the libraries. In the one-file bundle `main.ts` loads this in a
 * worker whose role begins with `cmd:`.
 */

import "./bench/speed_worker.ts";
