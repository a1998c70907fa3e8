/* SPDX-License-Identifier: MIT */
/* Waits for memory over five minutes: a column a time, a row a power of two of how long they took, colour how many. A screen
 * reader has the sentence above it, the readout below it, and the table. */

const HEAT_LOW = 13, HEAT_HIGH = 37; /* rows: up to 8 µs (all that is shorter, too), …, more than 69 s */
const HEAT_ROWS = HEAT_HIGH - HEAT_LOW + 1, HEAT_LEFT = 52, HEAT_FOOT = 20, HEAT_STEPS = 6;
const heatView = { columns: [], at: null, colours: null, top: 1 };

const rowIndex = (row) => Math.min(Math.max(row, HEAT_LOW), HEAT_HIGH) - HEAT_LOW;

function heatColours() {
        const style = getComputedStyle(document.documentElement), of = (name) => style.getPropertyValue(name).trim();
        heatView.colours = { ink: of("--soft"), line: of("--line"), empty: of("--sunk"), gap: of("--card"), cursor: of("--ink"),
                             steps: Array.from({ length: HEAT_STEPS }, (_, i) => of(`--heat-${i + 1}`)) };
}

/* Counts grow by powers: each step of colour is the same factor. */
const heatStep = (n) => Math.min(HEAT_STEPS - 1, Math.floor((Math.log(n) / Math.log(Math.max(heatView.top, 2) + 1)) * HEAT_STEPS));

function heatLayout() {
        const canvas = $("heat"), w = canvas.clientWidth || 600, ratio = Math.min(devicePixelRatio || 1, 3);
        const n = Math.max(30, Math.min(150, Math.floor((w - HEAT_LEFT) / 5))), rowH = w < 500 ? 8 : 10, h = HEAT_ROWS * rowH + HEAT_FOOT;
        if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
                canvas.width = Math.round(w * ratio);
                canvas.height = Math.round(h * ratio);
                canvas.style.height = `${h}px`;
        }
        const c = canvas.getContext("2d");
        c.setTransform(ratio, 0, 0, ratio, 0, 0);
        return { c, w, h, n, rowH, colW: (w - HEAT_LEFT) / n, foot: HEAT_ROWS * rowH };
}

function heatAxes(l) {
        const { c } = l, k = heatView.colours;
        c.font = "11px system-ui, sans-serif";
        c.fillStyle = k.ink;
        c.textAlign = "right";
        c.textBaseline = "middle";
        for (const [row, text] of [[14, "16 µs"], [17, "128 µs"], [20, "1 ms"], [23, "8 ms"], [27, "130 ms"], [30, "1 s"], [34, "17 s"]]) {
                const y = l.foot - (row - HEAT_LOW + 1) * l.rowH;
                c.fillText(text, HEAT_LEFT - 8, y);
                c.fillRect(HEAT_LEFT - 5, Math.round(y), 4, 1);
        }
        c.textBaseline = "alphabetic";
        for (let m = 5; m >= 0; m--) {
                const x = HEAT_LEFT + ((5 - m) / 5) * (l.w - HEAT_LEFT);
                c.textAlign = m === 0 ? "right" : m === 5 ? "left" : "center";
                c.fillText(m === 0 ? "now" : `−${m} min`, x, l.foot + 15);
        }
}

function heatCells(l) {
        const { c } = l, k = heatView.colours;
        heatView.columns.forEach((col, i) => {
                const x = HEAT_LEFT + i * l.colW, w = Math.max(1, l.colW - 1);
                c.fillStyle = col.seen ? k.empty : k.gap;
                c.fillRect(x, 0, w, l.foot);
                if (!col.seen) { /* nobody looked: a line through it, so that it is not taken for quiet */
                        c.fillStyle = k.line;
                        c.fillRect(x, l.foot / 2, l.colW, 1);
                }
                const cells = new Map();
                for (const [row, n] of col.rows) cells.set(rowIndex(row), (cells.get(rowIndex(row)) || 0) + n);
                for (const [r, n] of cells) {
                        c.fillStyle = k.steps[heatStep(n)];
                        c.fillRect(x, l.foot - (r + 1) * l.rowH, w, l.rowH - 1);
                }
        });
        if (heatView.at) {
                c.strokeStyle = k.cursor;
                c.lineWidth = 2;
                c.strokeRect(HEAT_LEFT + heatView.at.col * l.colW - 1, l.foot - (heatView.at.row + 1) * l.rowH - 1, l.colW + 1, l.rowH + 1);
        }
}

function heatWords() {
        const rows = new Map();
        let seen = 0;
        for (const c of heatView.columns) {
                seen += c.seen;
                for (const [row, n] of c.rows) rows.set(row, (rows.get(row) || 0) + n);
        }
        const s = summary(rows), whose = $("heat-vm").value ? `${$("heat-vm").value}: ` : "", minutes = Math.round((seen / heatView.columns.length) * HEAT_SECONDS);
        if (!seen) return looks(model.doc || {}) ? "Counted from now on." : "Nobody looks: what needs you, above, tells why.";
        if (!s.total) return `${whose}no wait for memory in the ${fmtLong(minutes)} seen.`;
        return `${whose}${plural(s.total, "wait")} in the ${fmtLong(minutes)} seen: half ${rowEnd(s.p50)}, 99 % ${rowEnd(s.p99)}, the longest ${rowEnd(s.max)}.`;
}

function drawLegend() {
        const n = Math.max(heatView.top, 1), edge = (i) => Math.ceil((Math.max(n, 2) + 1) ** (i / HEAT_STEPS));
        const edges = [...Array(HEAT_STEPS).keys()].map((i) => Math.max(1, edge(i)));
        const parts = edges.map((e, i) => ({ i, text: i === 0 ? "1" : `≥ ${fmtCount(e)}` })).filter((p, i) => i === 0 || edges[i] > edges[i - 1]);
        keyed($("heat-legend"), [{ i: -1, text: "waits in a field:" }, ...parts, { i: 99, text: "not seen" }], (p) => p.i,
              (p) => el("span", { class: "key" }, p.i >= 0 ? el("span", { class: p.i === 99 ? "swatch gap" : `swatch heat-${p.i + 1}`, "aria-hidden": "true" }) : null, el("span")),
              (s, p) => setText(s.lastChild, p.text));
}

function drawHeatTable() {
        if (!$("heat-more").open) return;
        const columns = heatColumns(20, $("heat-vm").value).reverse();
        if (!$("heat-table").firstChild) $("heat-table").append(el("table", {}, el("caption", { class: "hidden", text: "Waits for memory in steps of 15 seconds, the newest first" })));
        fillTable($("heat-table").firstChild, [{ name: "From" }, { name: "Waits", num: true }, { name: "Half of them", num: true }, { name: "99 % of them", num: true }, { name: "The longest", num: true }],
                  columns.map((c, i) => {
                          const s = summary(c.rows), say = (row) => (s.total ? rowEnd(row) : "–");
                          return { key: i, cells: [clock(c.from * 1000), c.seen ? fmtCount(s.total) : "not seen", say(s.p50), say(s.p99), say(s.max)] };
                  }));
}

function drawHeat() {
        if (!heatView.colours) heatColours();
        const l = heatLayout();
        heatView.columns = heatColumns(l.n, $("heat-vm").value);
        heatView.top = Math.max(1, ...heatView.columns.flatMap((c) => [...c.rows.values()]));
        l.c.clearRect(0, 0, l.w, l.h);
        heatCells(l);
        heatAxes(l);
        setText($("heat-say"), heatWords());
        drawLegend();
        drawHeatTable();
        drawHeatNames();
}

/* The choice of VMs: those that have waited at all, the busiest hundred. Not while somebody is choosing. */
function drawHeatNames() {
        const select = $("heat-vm");
        if (document.activeElement === select) return;
        const names = [...model.vms.values()].filter((v) => v.count > 0).sort((a, b) => b.count - a.count).slice(0, 100).map((v) => v.name);
        if (select.value && !names.includes(select.value)) names.push(select.value);
        names.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
        if (names.join("\n") === select.dataset.names) return;
        const chosen = select.value;
        select.dataset.names = names.join("\n");
        select.replaceChildren(el("option", { value: "", text: "all VMs" }), ...names.map((n) => el("option", { value: n, text: n })));
        select.value = chosen;
}

function readHeat() {
        const at = heatView.at, col = at && heatView.columns[at.col];
        if (!col) return setText($("heat-read"), "");
        let n = 0;
        for (const [row, count] of col.rows) if (rowIndex(row) === at.row) n += count;
        setText($("heat-read"), `${clock(col.from * 1000)}, ${rowEnd(at.row + HEAT_LOW)}: ${col.seen ? plural(n, "wait") : "not seen"}`);
}

function heatPoint(e) {
        const box = $("heat").getBoundingClientRect(), l = heatLayout();
        const col = Math.floor((e.clientX - box.left - HEAT_LEFT) / l.colW), row = Math.floor((l.foot - (e.clientY - box.top)) / l.rowH);
        heatView.at = col >= 0 && col < l.n && row >= 0 && row < HEAT_ROWS ? { col, row } : null;
        drawHeat();
        readHeat();
}

function heatKey(e) {
        const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[e.key], n = heatView.columns.length;
        if (!step && e.key !== "Escape") return;
        e.preventDefault();
        const at = heatView.at || { col: n - 1 - (step ? step[0] : 0), row: 8 };
        heatView.at = step ? { col: Math.min(Math.max(at.col + step[0], 0), n - 1), row: Math.min(Math.max(at.row + step[1], 0), HEAT_ROWS - 1) } : null;
        drawHeat();
        readHeat();
}

function startHeat() {
        $("heat").addEventListener("pointermove", heatPoint);
        $("heat").addEventListener("pointerleave", () => {
                heatView.at = null;
                drawHeat();
                readHeat();
        });
        $("heat").addEventListener("keydown", heatKey);
        $("heat-vm").addEventListener("change", drawHeat);
        $("heat-more").addEventListener("toggle", drawHeatTable);
        new ResizeObserver(drawHeat).observe($("heat").parentNode);
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
                heatView.colours = null;
                drawHeat();
        });
}
