/** The report's style sheet: light and dark, from a phone's width up. */

import { STAGES } from "../stages.ts";

/** See the module's comment. */
export const STYLE = `
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #d9dde3; --raised: #f5f7f9;
  --bad: #c02b2b;
  --oci: #7d8590; --umoci: #b08a3e; --obd: #1f6feb; --obd-trace: #0d9488;
  --obd-native: #8250df; --obd-warm: #d9730d; --other: #6b7280; --touched: #24292f;
  --s-command: #c8ced6; --s-open: #1f6feb; --s-mount: #74a9f7; --s-queue: #f2c46d;
  --s-fetch: #d9730d; --s-decode: #8250df; --s-other: #b08a3e; --s-service: #0d9488;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161b; --ink: #e7ebf0; --soft: #9aa5b1; --line: #333b45; --raised: #1b2128;
    --bad: #ff7b72;
    --oci: #98a2ae; --umoci: #d2ab5e; --obd: #4c93ff; --obd-trace: #2bc0b0;
    --obd-native: #b18cff; --obd-warm: #f0924a; --other: #9aa5b1; --touched: #e7ebf0;
    --s-command: #57616d; --s-open: #4c93ff; --s-mount: #2a558f; --s-queue: #8a6a2a;
    --s-fetch: #f0924a; --s-decode: #b18cff; --s-other: #d2ab5e; --s-service: #2bc0b0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 64rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0; }
h2 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; text-wrap: balance; }
h3 { font-size: 1.05rem; margin: 0; }
h4 { margin: 2rem 0 .5rem; font-size: 1.05rem; }
section { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
.workload { color: var(--soft); font-weight: 600; margin: 0 0 .25rem; overflow-wrap: anywhere; }
.lead { color: var(--soft); margin: 0; }
figure { margin: 2rem 0 0; }
figcaption { margin-bottom: .75rem; }
figcaption p, .legend, small { color: var(--soft); font-size: .875rem; margin: 0; }
.row { display: grid; grid-template-columns: 7rem 1fr 17rem; column-gap: .75rem; align-items: center; }
.row .name { font-weight: 600; overflow-wrap: anywhere; }
.row .value { font-variant-numeric: tabular-nums; font-size: .875rem; }
.row .failure:last-child:not(.value) { grid-column: 2 / -1; margin: 0; font-size: .875rem; overflow-wrap: anywhere; }
.failure { color: var(--bad); font-weight: 600; }
.track, .area, .amounts, .times { display: block; width: 100%; overflow: visible; }
.axis line, .whisker line { stroke: var(--ink); stroke-width: 1.5; }
.axis line { stroke: var(--line); }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
.run { fill: var(--paper); stroke: var(--ink); stroke-width: 1.5; }
.limit { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 3 3; }
.grid { stroke: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin-top: .5rem; }
.legend span { white-space: nowrap; }
.legend svg { vertical-align: middle; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem; vertical-align: -1px; }
.plot { display: grid; grid-template-columns: 4rem 1fr; column-gap: .5rem; }
.plot .times { grid-column: 2; margin-top: 2px; }
.curve { fill: none; stroke-width: 2.5; }
.ready { stroke: var(--paper); stroke-width: 2; }
.layer { margin: .75rem 0; }
.layer summary { cursor: pointer; font-weight: 600; }
.layer summary span { font-weight: 400; margin-left: .5rem; }
.layer summary code { color: var(--soft); font-size: .8rem; margin-left: .5rem; }
.strip { line-height: 1.3; }
.strip .name, .strip .value { font-size: .8rem; font-weight: 400; }
.empty { fill: var(--raised); stroke: var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
tbody th { min-width: 12rem; font-weight: 500; }
th small, td small { display: block; font-weight: 400; font-size: .8rem; }
@media (min-width: 44rem) { table th:first-child { position: sticky; left: 0; background: var(--paper); } }
thead th { color: var(--soft); }
dl { margin: 1rem 0 0; font-size: .875rem; }
dl div { display: grid; grid-template-columns: 9rem 1fr; column-gap: 1rem; padding: .2rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.leaves-out { background: var(--raised); border-left: 4px solid var(--obd-warm); padding: .75rem 1rem; margin: 1.5rem 0 0; }
.leaves-out ul { margin: .25rem 0 0; padding-left: 1.25rem; }
${
  [
    "oci",
    "umoci",
    "obd",
    "obd-trace",
    "obd-native",
    "obd-warm",
    "other",
    "touched",
  ]
    .map((name) =>
      `.c-${name} { fill: var(--${name}); } .c-${name}.curve { fill: none; stroke: var(--${name}); }`
    ).join("\n")
}
.c-obd-trace.curve { stroke-dasharray: 8 3; } .c-obd-native.curve { stroke-dasharray: 2 3; } .c-obd-warm.curve { stroke-dasharray: 10 3 2 3; } .c-umoci.curve { stroke-dasharray: 5 5; }
${
  STAGES.map((name) =>
    `.s-${name} { fill: var(--s-${name}); background: var(--s-${name}); }`
  ).join(" ")
}
@media (max-width: 44rem) {
  body { padding-top: 1rem; }
  h2 { font-size: 1.4rem; }
  .row { grid-template-columns: auto 1fr; row-gap: 0; margin-bottom: .35rem; }
  .row .track { grid-row: 2; grid-column: 1 / -1; }
  .row .value { text-align: right; }
  .row .failure:last-child:not(.value) { grid-column: 1 / -1; }
  .plot { grid-template-columns: 3.2rem 1fr; }
  dl div { grid-template-columns: 1fr; }
}
@media print { .scroll { overflow: visible; } }
`;
