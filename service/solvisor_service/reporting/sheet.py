"""The style sheet of the report's page: one column that breathes, quiet colours, light, dark and paper.

Rules: red is for what failed. No image, no font from anywhere.
"""

from __future__ import annotations

from typing import Final

_LIGHT: Final = """
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5b6778; --line: #e1e5eb; --grid: #eceff3; --gap: #eef0f3;
  --bad: #c0322b; --accent: #1f5fbf;
  --cpus: #3b7dd8; --memory: #2a9d8f; --license: #7a5cc4; --run: #5f86b8;
  --server: #c9922e; --solver: #9b7e5a; --dependency: #8fa3b8; --paused: #667180; --backoff: #dcae5a; --order: #c3ccd6;
  --jobs: #8fbbe8;
"""
_DARK: Final = """
  --page: #12161c; --card: #1a2028; --ink: #e6eaf0; --soft: #98a4b3; --line: #2b3440; --grid: #242c36; --gap: #222932;
  --bad: #ff7b72; --accent: #7db2ff;
  --cpus: #5b9bf0; --memory: #3fb8a9; --license: #9d83e6; --run: #7ba2d4;
  --server: #d9a648; --solver: #b89a74; --dependency: #7f93a8; --paused: #8793a3; --backoff: #c79c4c; --order: #566272;
  --jobs: #4f7fb0;
"""

SHEET: Final = f"""
:root {{{_LIGHT}}}
@media (prefers-color-scheme: dark) {{ :root {{{_DARK}}} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }}
main {{ max-width: 1040px; margin: 0 auto; padding: 28px 20px 40px; }}
h1 {{ font-size: 30px; line-height: 1.2; margin: 2px 0 4px; font-weight: 650; letter-spacing: -0.01em; }}
h1 .period {{ font-weight: 400; color: var(--soft); }}
h2 {{ font-size: 18px; margin: 0 0 12px; font-weight: 650; }}
h3 {{ font-size: 15px; margin: 0 0 6px; font-weight: 650; }}
p {{ margin: 0 0 6px; }}
header p {{ color: var(--soft); }}
.brand {{ text-transform: uppercase; letter-spacing: 0.08em; font-size: 12px; color: var(--accent); font-weight: 650; }}
.quiet, footer, .caption {{ color: var(--soft); font-size: 13px; }}
.caption {{ margin: 8px 0 0; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 20px 0; }}
.tile, section {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px; }}
.tile {{ padding: 12px 14px; }}
.tile .what {{ color: var(--soft); font-size: 13px; margin: 0; }}
.tile .value {{ font-size: 27px; font-weight: 650; line-height: 1.25; margin: 0; letter-spacing: -0.01em; }}
.tile .said {{ color: var(--soft); font-size: 12.5px; line-height: 1.4; margin: 2px 0 0; }}
section {{ padding: 18px 20px; margin: 0 0 14px; }}
ol.advice {{ margin: 0; padding-left: 22px; }}
ol.advice li {{ margin: 0 0 14px; padding-left: 4px; }}
ol.advice li:last-child {{ margin-bottom: 0; }}
pre {{ margin: 4px 0 0; padding: 8px 12px; background: var(--page); border: 1px solid var(--line); border-radius: 6px;
  font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-x: auto;
  white-space: pre; }}
figure {{ margin: 0 0 18px; }}
figure:last-child {{ margin-bottom: 6px; }}
figcaption {{ font-size: 13px; color: var(--soft); margin: 0 0 4px; }}
figcaption b {{ color: var(--ink); font-size: 14px; }}
.share {{ display: inline-block; min-width: 3.2em; color: var(--ink); font-weight: 650; }}
.wide {{ overflow-x: auto; }}
svg.plot {{ display: block; width: 100%; height: auto; min-width: 620px; }}
svg.bars {{ min-width: 0; }}
svg.bar {{ display: block; width: 110px; height: 10px; }}
td:has(> svg.bar) {{ width: 122px; }}
figure + h3, div > h3 {{ margin-top: 14px; }}
.label {{ font-size: 11px; fill: var(--soft); }}
.label.small {{ font-size: 11px; }}
.grid {{ stroke: var(--grid); stroke-width: 1; }}
.axis {{ stroke: var(--line); stroke-width: 1; }}
.rule {{ stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4; }}
.gap {{ fill: var(--gap); }}
.hit {{ fill: transparent; }}
.hit:hover {{ fill: var(--ink); fill-opacity: 0.08; }}
.fill-cpus, .why-cpus {{ fill: var(--cpus); background: var(--cpus); }}
.fill-memory, .why-memory {{ fill: var(--memory); background: var(--memory); }}
.fill-license, .why-license {{ fill: var(--license); background: var(--license); }}
.fill-run {{ fill: var(--run); }}
.why-jobs {{ fill: var(--jobs); background: var(--jobs); }}
.why-server {{ fill: var(--server); background: var(--server); }}
.why-solver {{ fill: var(--solver); background: var(--solver); }}
.why-dependency {{ fill: var(--dependency); background: var(--dependency); }}
.why-paused {{ fill: var(--paused); background: var(--paused); }}
.why-backoff {{ fill: var(--backoff); background: var(--backoff); }}
.why-order, .why-hours {{ fill: var(--order); background: var(--order); }}
.why-disk {{ fill: var(--bad); background: var(--bad); }}
ul.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: 4px 16px; padding: 0; margin: 0 0 6px;
  font-size: 13px; color: var(--soft); }}
.legend i {{ display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }}
ul.plain, ul.failures {{ list-style: none; padding: 0; margin: 0; font-size: 13.5px; }}
ul.failures li {{ margin: 0 0 3px; overflow-wrap: anywhere; }}
ul.failures span {{ color: var(--soft); }}
table {{ border-collapse: collapse; width: 100%; min-width: 560px; font-size: 13.5px; }}
th {{ text-align: left; font-weight: 500; color: var(--soft); font-size: 12.5px; vertical-align: bottom; }}
th, td {{ padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); }}
tbody tr:last-child td {{ border-bottom: 0; }}
td {{ overflow-wrap: anywhere; }}
.right {{ text-align: right; white-space: nowrap; }}
td:last-child, th:last-child {{ padding-right: 0; }}
.bad {{ color: var(--bad); font-weight: 650; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 20px 28px;
  margin-top: 20px; }}
article p {{ font-size: 13.5px; }}
footer {{ padding: 8px 4px 0; }}
@page {{ size: A4; margin: 13mm 12mm; }}
@media print {{
  :root {{{_LIGHT} --page: #ffffff; }}
  body {{ font-size: 11px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }}
  main {{ padding: 0; max-width: none; }}
  h1 {{ font-size: 22px; }}
  h2 {{ font-size: 14px; break-after: avoid; }}
  h3, figcaption b {{ font-size: 11px; }}
  figcaption, ul.legend {{ font-size: 10px; }}
  th, td {{ padding: 3px 6px 3px 0; }}
  .tiles {{ grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; margin: 12px 0; }}
  .tile {{ padding: 8px 10px; }}
  .tile .value {{ font-size: 18px; }}
  .tile .said, .quiet, footer, .caption {{ font-size: 9.5px; }}
  table, ul.plain, ul.failures, article p {{ font-size: 10px; }}
  th {{ font-size: 9.5px; }}
  pre {{ font-size: 10px; }}
  section {{ padding: 10px 12px; margin-bottom: 8px; }}
  figure, article, li, tr, .tile {{ break-inside: avoid; }}
  svg.plot, table {{ min-width: 0; }}
  .wide {{ overflow: visible; }}
  .cards {{ grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px 18px; margin-top: 12px; }}
}}
"""
