/* SPDX-License-Identifier: MIT */
/* The style of the page: colours as forkd's own page has them (forkd/monitor/page/page.css), in light and dark. */
#pragma once

#define REPORT_STYLE                                                                                                            \
        ":root{color-scheme:light dark;--bg:#f6f6f3;--card:#fff;--ink:#1c1e22;--soft:#5a6069;--line:#dfdfd9;--bad:#b02318;"     \
        "--bad-bg:#fdf0ee;--ok:#1d7440;--s1:#2b58c4;--s2:#b8327f;--s3:#2b8a83;--s4:#a06c00}\n"                                  \
        "@media(prefers-color-scheme:dark){:root{--bg:#111316;--card:#191c20;--ink:#e8eaec;--soft:#a0a7b1;--line:#2d3238;"      \
        "--bad:#ff8f83;--bad-bg:#2e1a19;--ok:#6fce94;--s1:#6f9bff;--s2:#ea6fb1;--s3:#4fc0b6;--s4:#e0a93a}}\n"                   \
        "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"    \
        "\"Segoe UI\",Roboto,\"Noto Sans\",sans-serif;font-variant-numeric:tabular-nums}\n"                                     \
        "header,main,footer{max-width:1240px;margin:0 auto;padding:1.25rem}header{padding-bottom:0}main{display:grid;"          \
        "grid-template-columns:minmax(0,1fr);gap:1.7rem}footer{font-size:.85rem;color:var(--soft)}\n"                           \
        "h1,h2,h3,p,ul,dl,dd,figure{margin:0;padding:0}h1{font-size:1.5rem;letter-spacing:-.02em}h2{font-size:1.05rem;"         \
        "margin-bottom:.55rem}h3{font-size:.95rem}.soft{color:var(--soft);font-size:.85rem}ul{list-style:none}\n"               \
        ".card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.1rem;min-width:0}"        \
        ".plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1rem}\n"                    \
        ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.55rem}.tiles>div{background:var(--"   \
        "card);"                                                                                                                \
        "border:1px solid var(--line);border-radius:.6rem;padding:.6rem .85rem}.tiles dt{font-size:.82rem;color:var(--soft)}"   \
        ".tiles dd{font-size:1.35rem;font-weight:620;letter-spacing:-.02em}.tiles dd+dd{font-size:.82rem;font-weight:400;"      \
        "letter-spacing:0;color:var(--soft)}\n"                                                                                 \
        ".bad{color:var(--bad)}.ok{color:var(--ok)}.banner{border:1px solid "                                                   \
        "var(--bad);border-radius:.6rem;background:var(--bad-bg);"                                                              \
        "padding:.7rem 1.1rem;overflow-wrap:anywhere}.banner strong{color:var(--bad)}\n"                                        \
        "figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:.2rem 1rem;margin-bottom:.4rem}"              \
        ".legend{display:flex;flex-wrap:wrap;gap:.1rem .9rem;font-size:.82rem;color:var(--soft)}.legend "                       \
        "svg{width:22px;height:10px;"                                                                                           \
        "margin-right:.3rem}.plot{width:100%;height:auto;display:block}\n"                                                      \
        ".grid{stroke:var(--line);fill:none}.tick{fill:var(--soft);font-size:12px}.line{fill:none;stroke-width:2.2;"            \
        "stroke-linejoin:round}.dashed{stroke-dasharray:5 4}circle{stroke:var(--card);stroke-width:1}\n"                        \
        ".s1{stroke:var(--s1)}.s2{stroke:var(--s2)}.s3{stroke:var(--s3)}.s4{stroke:var(--s4)}circle.s1,rect.s1{fill:var(--s1)}" \
        "circle.s2,rect.s2{fill:var(--s2)}circle.s3,rect.s3{fill:var(--s3)}circle.s4,rect.s4{fill:var(--s4)}rect{stroke:none}"  \
        "circle{stroke:var(--card)!important;stroke-dasharray:none}\n"                                                          \
        ".wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}th,td{text-align:right;"               \
        "padding:.34rem 0 .34rem .9rem;font-weight:400;white-space:nowrap}th:first-child,td:first-child{text-align:left;"       \
        "padding-left:0}thead th{font-size:.8rem;color:var(--soft);border-bottom:1px solid var(--line)}tbody tr+tr>*{"          \
        "border-top:1px solid "                                                                                                 \
        "var(--line)}.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,11rem),1fr));"                  \
        "gap:.7rem 1.4rem;font-size:.92rem}.facts dt{font-size:.8rem;color:var(--soft)}.facts dd{overflow-wrap:anywhere}\n"     \
        "@media print{body{background:#fff}.card,.tiles>div{break-inside:avoid}}\n"
