/** How libs tell how far long work is. `cmd` draws it. */

/** One piece of work, e.g. one layer. */
export interface ProgressTask {
  /** Adds to what is done, in the task's unit (bytes). */
  add(amount: number): void;
  /** The work is over, well or not. */
  done(): void;
}

/** Where tasks are shown. */
export interface Progress {
  /**
   * @param label What is worked on, for people.
   * @param total Amount of work in bytes, if known.
   */
  start(label: string, total: number | undefined): ProgressTask;
}

const silentTask: ProgressTask = { add() {}, done() {} };

/** Shows nothing. */
export const silentProgress: Progress = { start: () => silentTask };
