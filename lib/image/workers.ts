/**
 * Every module that runs in a worker thread. In the one-file bundle `main.ts`
 * loads this in a worker; each module then serves the role that it was started for.
 */

import "../compress/mod.ts";
import "../layers/mod.ts";
