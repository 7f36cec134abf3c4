"""What a report adds to the house style of pages."""

REPORT_STYLE = """
html { scroll-behavior: smooth; }
nav { margin: .75rem 0 0; font-size: .9rem; } nav a { margin-right: 1rem; color: var(--note); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
.verdict { border-left: .4rem solid currentColor; background: var(--card); border-radius: .25rem; padding: .8rem 1rem;
  margin: 1rem 0; } .verdict p { margin: 0; color: var(--ink); } .verdict b { display: block; text-transform: uppercase;
  letter-spacing: .03em; font-size: 1.05rem; margin-bottom: .2rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); gap: .75rem;
  margin: 1rem 0; }
.card { background: var(--card); border-radius: .4rem; padding: .6rem .9rem; } .card p { margin: 0; }
.card .big { font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.ci { display: block; color: var(--faint); font-size: .86em; }
tr.winner th, tr.winner td { font-weight: 600; } tr.winner th[scope=row]::before { content: "★ "; }
td.estimate { font-style: italic; }
.scroll th[scope=row] { position: sticky; left: 0; background: var(--paper); white-space: normal; min-width: 6.5rem; }
.scroll:focus { outline: 2px solid var(--note); }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { background: var(--card); padding: .75rem; border-radius: .4rem; font-size: .8rem; line-height: 1.4;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-size: .85em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1rem; margin: .5rem 0; }
dt { color: var(--faint); } dd { margin: 0; }
.badge { font-size: .75rem; font-weight: 600; border: 1px solid currentColor; border-radius: 1rem; padding: 0 .55rem;
  white-space: nowrap; }
svg g[id*="on-dark"] text { fill: #fff !important; } svg g[id*="on-bright"] text { fill: #111 !important; }
svg [id*="curve"] path, svg [id*="line"] path { pointer-events: stroke; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
  ul.advice li { flex-direction: column; gap: .1rem; } ul.advice b { flex-basis: auto; } }
@media print { nav { display: none; } .verdict, .card { border: 1px solid var(--line); }
  .verdict { border-left: .4rem solid currentColor; } .cards { grid-template-columns: repeat(3, 1fr); }
  .faint, figcaption { font-size: 8pt; }
  .scroll th[scope=row] { position: static; } h3 { break-after: avoid; } pre { font-size: 7pt; }
  .printed::details-content { content-visibility: visible; block-size: auto; } @page { margin: 14mm; } }
"""
