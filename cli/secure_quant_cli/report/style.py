"""The page's style sheet: system fonts, readable without colour, fit to print."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #dde2e8; --wash: #f5f7fa;
  --good: #0b6e4f; --bad: #a61b1b; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 68rem; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .3rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
p { margin: .3rem 0 1rem; max-width: 46rem; color: var(--soft); }
code { font: .85em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
.verdict { border-left: .5rem solid var(--bad); background: var(--wash); padding: 1.2rem 1.5rem;
  margin-bottom: 1.5rem; border-radius: .2rem; }
.verdict.exact { border-color: var(--good); }
.verdict strong { display: block; font-size: 1.45rem; line-height: 1.25; color: var(--bad); }
.verdict.exact strong { color: var(--good); }
.verdict p { margin: .4rem 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .8rem;
  margin: 0 0 1.5rem; }
.cards div { border: 1px solid var(--line); border-radius: .3rem; padding: .7rem .9rem; }
.cards dt { font-size: .8rem; color: var(--soft); }
.cards dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
figure { margin: .5rem 0 1rem; }
figure svg { width: 100%; height: auto; display: block; }
figure.narrow { max-width: 48rem; }
.pair { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .82rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; color: var(--soft); font-weight: 600;
  border-bottom: 2px solid var(--ink); }
tbody th { font-weight: 500; }
.text { text-align: left; }
tbody tr:hover { background: var(--wash); }
tr.differs td, tr.differs th { font-weight: 700; color: var(--bad); }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } }
"""
