"""How the page looks: readable in light and dark, wide tables scroll by themselves."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --ink: #1b1f24; --faint: #5c6570; --line: #d5dae0; --raised: #f5f7f9;
  --better: #0b6b3a; --worse: #a3241c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --ink: #e4e8ec; --faint: #9aa5b1; --line: #363d45; --raised: #1d2228;
    --better: #5fd39a; --worse: #ff9285;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .3rem; }
h4 { font-size: .95rem; margin: .8rem 0 .2rem; }
p { margin: .3rem 0; max-width: 60rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; }
a { color: inherit; }
.wide { overflow-x: auto; margin: .6rem 0 1rem; }
.wide:focus-visible { outline: 2px solid var(--faint); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding: .2rem 0; }
th, td {
  border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; text-align: left;
  vertical-align: top;
}
td { min-width: 3.5rem; overflow-wrap: break-word; max-width: 48rem; }
thead th { color: var(--faint); font-weight: 600; }
tbody th { font-weight: 500; white-space: nowrap; }
small { display: block; color: var(--faint); font-size: .78rem; white-space: nowrap; }
.better { color: var(--better); font-weight: 600; }
.worse { color: var(--worse); font-weight: 600; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: .4rem 0; max-width: 100%; overflow-x: auto; }
svg { max-width: 100%; height: auto; color: var(--ink); }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: 0 .8rem; }
summary { cursor: pointer; padding: .4rem 0; }
.sample { border-top: 1px solid var(--line); padding: .3rem 0; }
.recipe, .note { color: var(--faint); font-size: .85rem; }
pre, code { font: .85rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
pre {
  margin: 0; white-space: pre-wrap; background: var(--raised); padding: .3rem .5rem;
  max-height: 16rem; overflow-y: auto; unicode-bidi: isolate;
}
"""
