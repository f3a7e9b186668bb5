/** Progress bars on stderr when it is a terminal, nothing otherwise. */

import {
  formatSize,
  type Progress,
  type ProgressTask,
  silentProgress,
} from "../lib/io/mod.ts";

const REDRAW_MS = 100;
const BAR_WIDTH = 24;
const encoder = new TextEncoder();

interface Bar {
  label: string;
  total: number | undefined;
  done: number;
  started: number;
}

/** Draws all running tasks as one block of lines and redraws it in place. */
export class TerminalProgress implements Progress {
  readonly #bars = new Set<Bar>();
  #drawnLines = 0;
  #timer: ReturnType<typeof setInterval> | undefined;

  start(label: string, total: number | undefined): ProgressTask {
    const bar: Bar = { label, total, done: 0, started: performance.now() };
    this.#bars.add(bar);
    this.#timer ??= setInterval(() => this.#draw(), REDRAW_MS);
    return {
      add: (amount) => {
        bar.done += amount;
      },
      done: () => {
        this.#bars.delete(bar);
        if (this.#bars.size === 0) this.close();
      },
    };
  }

  /** Removes the bars from the screen, so that something else can be written. */
  clear(): void {
    if (this.#drawnLines === 0) return;
    write(`\x1b[${this.#drawnLines}A\x1b[J`);
    this.#drawnLines = 0;
  }

  /** Stops drawing. */
  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.clear();
  }

  #draw(): void {
    this.clear();
    const columns = terminalColumns();
    const lines = [...this.#bars].map((bar) =>
      barLine(bar).slice(0, columns - 1)
    );
    write(lines.map((line) => `${line}\n`).join(""));
    this.#drawnLines = lines.length;
  }
}

/** The progress display that fits: bars on a terminal, else nothing. */
export function createProgress(
  quiet: boolean,
): Progress & { clear?(): void; close?(): void } {
  const canDraw = Deno.stderr.isTerminal() && Deno.env.get("TERM") !== "dumb";
  return !quiet && canDraw ? new TerminalProgress() : silentProgress;
}

function barLine(bar: Bar): string {
  const seconds = (performance.now() - bar.started) / 1000;
  const rate = seconds > 0.2
    ? `${formatSize(Math.round(bar.done / seconds))}/s`
    : "";
  if (!bar.total) {
    return `${bar.label}  ${formatSize(bar.done)}  ${rate}`;
  }
  const part = Math.min(1, bar.done / bar.total);
  const filled = Math.round(part * BAR_WIDTH);
  const drawn = "█".repeat(filled) + "░".repeat(BAR_WIDTH - filled);
  const percent = `${Math.floor(part * 100)}%`.padStart(4);
  return `${bar.label}  ${drawn} ${percent}  ${formatSize(bar.done)} of ${
    formatSize(bar.total)
  }  ${rate}`;
}

function terminalColumns(): number {
  try {
    return Deno.consoleSize().columns;
  } catch {
    return 80;
  }
}

function write(text: string): void {
  Deno.stderr.writeSync(encoder.encode(text));
}
