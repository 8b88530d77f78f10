"""The look of a run's page and the few lines that draw its figures."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5c646e; --line: #dde1e6; --paper: #fbfbfa; --card: #fff;
  --blue: #1a6fae }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a3abb5; --line: #343a41; --paper: #14171a;
  --card: #1b1f23; --blue: #6bb2e6 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere }
main { max-width: 1000px; margin: 0 auto; padding: 40px 24px 64px }
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 6px; font-weight: 650 }
h2 { font-size: 1.25rem; margin: 52px 0 4px; font-weight: 650 }
h3 { font-size: 1rem; margin: 0; font-weight: 600 }
p { margin: 8px 0; max-width: 46em }
.soft, figcaption { color: var(--soft) }
.state { color: var(--blue); font-weight: 600 }
.scores { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px; margin: 26px 0 22px;
  background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; padding: 0 }
.scores > div { background: var(--card); padding: 14px 16px 12px; display: flex; flex-direction: column-reverse;
  justify-content: flex-end }
.scores dt { color: var(--soft); font-size: .85rem; line-height: 1.35 }
.scores dd { margin: 0; font-size: 1.6rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums;
  white-space: nowrap }
.scores .first dd { color: var(--blue) }
.scores small { display: block; font-size: .9rem; font-weight: 400; color: var(--soft) }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 20px; margin: 0; font-size: .93rem }
.facts dt { color: var(--soft) }
.facts dd { margin: 0 }
code span { white-space: nowrap }
code, td { font: .86rem/1.5 ui-monospace, monospace }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 34px 36px; margin-top: 18px }
figure { margin: 0; min-width: 0; grid-column: span 2 }
figure.half { grid-column: span 1 }
figcaption { font-size: .9rem; line-height: 1.45; max-width: 52em; margin-top: 8px }
.plot { width: 100%; min-width: 0 }
details { margin-top: 14px; border-top: 1px solid var(--line); padding-top: 12px }
summary { cursor: pointer; font-weight: 600 }
table { border-collapse: collapse; margin: 10px 0 22px; width: 100%; table-layout: fixed }
caption { text-align: left; font-weight: 600; padding: 6px 0 }
td { border-top: 1px solid var(--line); padding: 3px 12px 3px 0; vertical-align: top }
td:first-child { color: var(--soft); width: 46% }
footer { margin-top: 48px; font-size: .85rem; color: var(--soft) }
.plot .infolayer text, .plot .xtick text, .plot .ytick text, .plot .hoverlayer text { fill: var(--ink) !important }
.plot .hoverlayer .legend .bg, .plot .hovertext path, .plot .axistext path {
  fill: var(--card) !important; stroke: var(--line) !important }
.plot .spikeline { stroke: var(--soft) !important; stroke-width: 1px !important }
@media (max-width: 720px) { main { padding: 24px 16px 48px } figure.half { grid-column: span 2 }
  .facts { grid-template-columns: minmax(0, 1fr); gap: 0 } .facts dd { margin-bottom: 8px }
  .scores { grid-template-columns: repeat(2, minmax(0, 1fr)) } .scores .first { grid-column: span 2 }
  .scores dd { font-size: 1.4rem } }
@media print { .figures, figure { break-inside: avoid } }
"""

SCRIPT = """
const touch = matchMedia("(pointer: coarse)").matches;
for (const [name, { data, layout }] of Object.entries(figures)) {
  if (touch) layout.dragmode = false;
  Plotly.newPlot(name, data, layout, { responsive: true, displayModeBar: false });
}
"""
