"""The page's style sheet: system fonts, readable without colour, fit to print."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #52606d; --line: #dde2e8;
  --wash: #f5f7fa; --paper: #fefefe; --good: #0b6e4f; --bad: #a61b1b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #aab4bf; --line: #38424d;
  --wash: #1f262e; --paper: #171c22; --good: #5fcf9f; --bad: #ff8f87; --blue: #6fb1d6;
  --orange: #e39a64; --grey: #7b8794; --grid: #38424d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
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
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr));
  gap: .8rem; margin: 0 0 1.5rem; }
.cards div { border: 1px solid var(--line); border-radius: .3rem; padding: .7rem .9rem; }
.cards dt { font-size: .8rem; color: var(--soft); }
.cards dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.cards small { display: block; font-size: .75rem; color: var(--soft); }
figure { margin: .5rem 0 1rem; max-width: 46rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .8rem; color: var(--soft); overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
.small { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
.small figure { margin: 0; }
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
@media (max-width: 40rem) { body { padding: 1.2rem 1rem 3rem; } h2 { margin-top: 2rem; }
  .cards { grid-template-columns: 1fr 1fr; } .cards dd { font-size: 1.1rem; }
  th[scope=row], thead th:first-child { position: sticky; left: 0; background: var(--paper);
    max-width: 9rem; overflow: hidden; text-overflow: ellipsis; } }
@media print { :root { color-scheme: light; } body { max-width: none; padding: 0; }
  h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
