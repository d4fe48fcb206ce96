// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

// pageStyle is the look of every page. Each state has a colour and a pale ground for it, by day, by
// night and on paper; a state is always named in words as well.
const pageStyle markup = `
:root{color-scheme:light dark;--bg:#f7f6f3;--card:#fff;--ink:#1b1d21;--soft:#5a626d;--line:#d9d7d1;
--lost:#b3261e;--lost-g:#fdeceb;--danger:#a84b00;--danger-g:#fff1e2;--warning:#7d6200;--warning-g:#fff9db;
--blind:#6a3d9f;--blind-g:#f4edfb;--waste:#566474;--waste-g:#eef1f4;--note:#566474;--note-g:#eef1f4;
--clean:#23703f;--clean-g:#e9f5ed;--nocheck:#6b7280;--nocheck-g:#f0f0ef}
@media (prefers-color-scheme:dark){:root{--bg:#121418;--card:#1b1e24;--ink:#e9e7e2;--soft:#9ea7b3;--line:#363b45;
--lost:#ff8d84;--lost-g:#3d1a18;--danger:#ffb066;--danger-g:#3a2510;--warning:#f0d264;--warning-g:#332c10;
--blind:#cba6f7;--blind-g:#2d2140;--waste:#a8b5c3;--waste-g:#252b33;--note:#a8b5c3;--note-g:#252b33;
--clean:#7fd39b;--clean-g:#18301f;--nocheck:#a3a9b2;--nocheck-g:#26292f}}
@media print{:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;
--lost:#b3261e;--lost-g:#fdeceb;--danger:#a84b00;--danger-g:#fff1e2;--warning:#7d6200;--warning-g:#fff9db;
--blind:#6a3d9f;--blind-g:#f4edfb;--waste:#566474;--waste-g:#eef1f4;--note:#566474;--note-g:#eef1f4;
--clean:#23703f;--clean-g:#e9f5ed;--nocheck:#6b7280;--nocheck-g:#f0f0ef}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1.25rem 4rem;max-width:84rem;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI","Noto Sans","DejaVu Sans",sans-serif}
h1,h2,h3{line-height:1.25;margin:0}
h2{font-size:1.2rem;margin:2.4rem 0 .8rem}
h3{font-size:1.06rem;font-weight:600;overflow-wrap:anywhere}
code,.mono{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;font-size:.9em;
overflow-wrap:anywhere}
a{color:inherit;text-decoration-color:var(--soft);text-underline-offset:2px}
.lost{--c:var(--lost);--g:var(--lost-g)}.danger{--c:var(--danger);--g:var(--danger-g)}
.warning{--c:var(--warning);--g:var(--warning-g)}.blind{--c:var(--blind);--g:var(--blind-g)}
.waste{--c:var(--waste);--g:var(--waste-g)}.note{--c:var(--note);--g:var(--note-g)}
.clean{--c:var(--clean);--g:var(--clean-g)}.nocheck{--c:var(--nocheck);--g:var(--nocheck-g)}
.hero{background:var(--g);border:1px solid var(--c);border-left-width:10px;border-radius:8px;
padding:1.1rem 1.4rem 1.2rem}
.hero h1{color:var(--c);font-size:1.75rem}
.hero p{margin:.45rem 0 0}.hero .first{font-size:1.12rem;font-weight:600;overflow-wrap:anywhere}
.hero .also{margin:.5rem 0 .8rem;padding-left:1.2rem;overflow-wrap:anywhere}
.meta{color:var(--soft);font-size:.87rem;margin:.7rem 0 0;overflow-wrap:anywhere}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0 0;padding:0;list-style:none}
.tile{background:var(--card);border:1px solid var(--line);border-top:4px solid var(--c);border-radius:6px;
padding:.35rem .9rem .45rem;min-width:6.6rem}
.tile b{display:block;font-size:1.4rem;line-height:1.3;color:var(--c)}.tile span{font-size:.83rem;color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-left:6px solid var(--c);border-radius:8px;
padding:.9rem 1.2rem 1rem;margin:0 0 .9rem;break-inside:avoid-page}
.card p{margin:.35rem 0}.card .card{margin:.8rem 0 0}
.head{display:flex;flex-wrap:wrap;gap:.3rem .7rem;align-items:baseline;margin-bottom:.3rem}
.badge{background:var(--c);color:var(--card);border-radius:4px;padding:.05rem .5rem;font-size:.8rem;
font-weight:700;letter-spacing:.03em;white-space:nowrap}
.rule{color:var(--soft);font-size:.87rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:.6rem 0 0}
dt{color:var(--soft);font-size:.87rem;padding-top:.1rem}dd{margin:0;overflow-wrap:anywhere;min-width:0}
dl.files{grid-template-columns:minmax(0,1fr);gap:0}.files dt{color:inherit;overflow-wrap:anywhere;padding-top:.4rem}
ul.names{margin:0;padding:0;list-style:none}
ul.many{columns:24rem;column-gap:1.5rem}
.next{margin:.8rem 0 0;padding:.5rem .8rem;background:var(--g);border-radius:5px}
.next b{color:var(--c)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th{text-align:left;font-weight:600;color:var(--soft);font-size:.83rem}
th,td{padding:.28rem .8rem .28rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;white-space:nowrap}th.n{text-align:right}
td .badge{font-size:.74rem}
.evidence{width:auto;margin-top:.2rem;font-size:.86rem}.evidence td{border:0;padding:.1rem .9rem .1rem 0}
.evidence td:first-child{white-space:nowrap}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.4rem}
svg{display:block}svg.bar{width:100%;height:18px;margin:.15rem 0 .25rem}
.bar .disk{fill:var(--line)}.bar .hit{fill:var(--c)}
.node rect{fill:var(--g);stroke:var(--c);stroke-width:1.5}
.node.lost rect,.node.danger rect{stroke-width:3}
.node.ghost rect{stroke-dasharray:6 4;fill:var(--card)}
.node.group rect.under{fill:var(--card)}
.node text{fill:var(--ink);font-size:12px;font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
.node .sub{fill:var(--c);font-size:11.5px;font-family:inherit}
.edge{fill:none;stroke:var(--soft);stroke-width:1.4}
.edge.lost{stroke:var(--lost);stroke-width:2.2}.edge.off{stroke-dasharray:5 4}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;color:var(--soft);font-size:.83rem;margin:.5rem 0 0}
.legend i{display:inline-block;width:1.1em;height:.8em;border:2px solid var(--c);background:var(--g);
border-radius:3px;margin-right:.4em}
.legend i.ghost{border-style:dashed;background:none}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--soft)}
details[open]>summary{margin-bottom:.5rem}
.r{white-space:nowrap}
.images th:nth-child(3){width:34%}.images th:nth-child(7){width:26%}.images td:nth-child(2){white-space:nowrap}
.soft{color:var(--soft)}
footer{margin-top:3rem;color:var(--soft);font-size:.83rem}
@media (max-width:40rem){body{padding:.8rem .6rem 3rem}.hero,.card{padding:.7rem .8rem .8rem}
dl{grid-template-columns:minmax(0,1fr);gap:0}dt{padding-top:.4rem}.r{white-space:normal}
.evidence,.evidence tbody{display:block}.evidence tr{display:block;margin:0 0 .4rem}
.evidence td{display:inline;padding:0;margin-right:.7rem}.images{min-width:52rem}}
@media print{html{font-size:11px}.images{min-width:0}body{max-width:none;padding:0;font-size:11px}.scroll{overflow:visible;border:0;padding:0}
svg.tree{max-width:100%;height:auto}details::details-content{content-visibility:visible}
.hero,.badge,.next,.tile,.node,.bar{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
`
