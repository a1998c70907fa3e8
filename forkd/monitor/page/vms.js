/* SPDX-License-Identifier: MIT */
/* The table of VMs: worst first, changed in place, a VM's vCPUs behind its name. */

const VM_COLUMNS = [
        { name: "VM", key: (v) => v.name, text: true },
        { name: "State", key: (v) => v.state, text: true },
        { name: "Health", key: (v) => v.rank },
        { name: "CPU", key: (v) => -v.cpu.oncpu },
        { name: "Waits / s", key: (v) => -v.rate },
        { name: "p99 wait", key: (v) => -v.p99, num: true },
        { name: "Waiting now", key: (v) => -v.waiting, num: true },
        { name: "Memory", key: (v) => -v.mem, num: true },
        { name: "Snapshot", key: (v) => v.snapshot, text: true },
];
const rowsShown = () => (matchMedia("(max-width: 52rem)").matches ? 10 : 25);
const vmView = { sort: 2, back: false, all: false, open: new Set(), order: [], sortedAt: 0 };

const MARKS = { running: "●", paused: "◐", standby: "○", booting: "◔", creating: "◔", stopping: "◕", stopped: "□", failed: "✕" };
const HEALTH_MARKS = { ok: "✓", spinning: "▲", stuck: "■", orphan: "◆", unknown: "?" };

function vmWanted(v) {
        const show = $("vm-show").value, part = $("vm-filter").value.trim().toLowerCase();
        if (part && !v.name.toLowerCase().includes(part) && !v.id.startsWith(part)) return false;
        if (show === "all") return true;
        if (v.ended) return false;
        if (show === "trouble") return v.rank < 4;
        if (show === "running") return ALIVE.has(v.state);
        return show === "standby" ? v.state === "standby" : true;
}

/* An order that jumps each second cannot be read: it is made anew every three, and not while somebody is in the table. */
function vmOrder() {
        const busy = $("vm-table").tBodies.length && $("vm-table").contains(document.activeElement) && document.activeElement.closest("tbody");
        const wanted = [...model.vms.values()].filter(vmWanted), now = performance.now();
        const place = new Map(vmView.order.map((id, i) => [id, i]));
        if (now - vmView.sortedAt < 3000 || busy) {
                wanted.sort((a, b) => (place.get(a.id) ?? 1e9) - (place.get(b.id) ?? 1e9) || a.name.localeCompare(b.name));
        } else {
                const c = VM_COLUMNS[vmView.sort], sign = vmView.back ? -1 : 1;
                const by = c.text ? (a, b) => c.key(a).localeCompare(c.key(b), "en", { numeric: true }) : (a, b) => c.key(a) - c.key(b);
                wanted.sort((a, b) => sign * by(a, b) || a.name.localeCompare(b.name, "en", { numeric: true }));
                vmView.sortedAt = now;
        }
        vmView.order = wanted.map((v) => v.id);
        return wanted;
}

function drawVmHead() {
        $("vm-head").replaceChildren(...VM_COLUMNS.map((c, i) => el("th", {
                scope: "col", role: "columnheader", class: c.num ? "num" : null,
                "aria-sort": vmView.sort === i ? (vmView.back ? "descending" : "ascending") : "none",
        }, el("button", { type: "button", "data-sort": String(i), onclick: () => {
                vmView.back = vmView.sort === i && !vmView.back;
                vmView.sort = i;
                vmView.sortedAt = 0;
                drawVmHead();
                drawVms();
                document.querySelector(`[data-sort="${i}"]`).focus();
        } }, c.name, el("span", { class: "arrow", "aria-hidden": "true", text: vmView.sort === i ? (vmView.back ? "↑" : "↓") : "" })))));
}

function vmRow(v) {
        const panel = `vm-${v.id}`;
        const td = (label, cls, ...inside) => el("td", { role: "cell", "data-label": label, class: cls }, ...inside);
        const name = el("button", { type: "button", class: "name", "aria-expanded": "false", "aria-controls": panel, onclick: () => {
                vmView.open.has(v.id) ? vmView.open.delete(v.id) : vmView.open.add(v.id);
                drawVms();
        } }, el("span", { class: "fold", "aria-hidden": "true" }), el("span"));
        return el("tbody", { role: "rowgroup" },
                  el("tr", { role: "row" },
                     el("th", { scope: "row", role: "rowheader" }, name),
                     td("State", "state", el("span", { class: "mark", "aria-hidden": "true" }), el("span")),
                     td("Health", "health", el("span", { class: "mark", "aria-hidden": "true" }), el("span")),
                     td("CPU", "cpu", bar(["oncpu", "runqueue", "memory"]), spark(), el("span")),
                     td("Waits / s", "rate", spark(), el("span")),
                     td("p99 wait", "num"),
                     td("Waiting now", "num"),
                     td("Memory", "num"),
                     td("Snapshot", "snap", el("button", { type: "button", class: "plain", onclick: () => showInTree(model.vms.get(v.id)) }))),
                  el("tr", { role: "row", hidden: true, class: "inside", id: panel }, el("td", { role: "cell", colspan: String(VM_COLUMNS.length) })));
}

function cpuText(v) {
        if (!ALIVE.has(v.state) || v.ended) return "–";
        if (!v.vcpus.some((c) => typeof c.oncpu === "number")) return "?";
        const more = v.cpu.runqueue >= 0.05 ? `, ${fmtShare(v.cpu.runqueue)} queued` : "";
        return `${fmtShare(v.cpu.oncpu)}${v.cpus > 1 ? ` of ${v.cpus}` : ""}${more}`;
}

function updateRow(body, v) {
        const tr = body.rows[0], c = tr.cells, open = vmView.open.has(v.id), alive = ALIVE.has(v.state) && !v.ended;
        const name = c[0].firstChild, snap = model.snapshots.get(v.snapshot);
        setText(name.lastChild, v.name);
        setAttr(name, "aria-expanded", String(open));
        setAttr(body, "data-health", v.ended ? "ended" : v.health);
        setText(c[1].firstChild, v.ended ? "·" : MARKS[v.state] || "·");
        setText(c[1].lastChild, v.ended ? `ended ${fmtLong(num(v.raw.ended_ms) / 1e3)} ago` : v.state);
        setAttr(c[1], "data-state", v.ended ? "ended" : v.state);
        setText(c[2].firstChild, alive ? HEALTH_MARKS[v.health] || "?" : "");
        setText(c[2].lastChild, alive ? v.health : "–");
        setSpark(c[3].children[1], v.cpuHistory, v.cpus);
        setBar(c[3].children[0], [v.cpu.oncpu / v.cpus, v.cpu.runqueue / v.cpus, v.cpu.memory / v.cpus]);
        setText(c[3].lastChild, cpuText(v));
        setSpark(c[4].firstChild, v.rateHistory, 1);
        setText(c[4].lastChild, !alive ? "–" : v.watched ? fmtRate(v.rate) : "?");
        setText(c[5], v.count ? fmtTime(v.p99) : "–");
        setText(c[6], v.waiting > 0 ? fmtTime(v.waiting) : alive && !v.watched ? "?" : "–");
        setAttr(c[6], "data-level", v.waiting > 1 ? "bad" : null);
        setText(c[7], v.mem ? fmtBytes(v.mem) : "–");
        setText(c[8].firstChild, v.snapshot ? snapName(snap, v.snapshot) : "–");
        if (c[8].firstChild.disabled !== !v.snapshot) c[8].firstChild.disabled = !v.snapshot;
        setAttr(c[8].firstChild, "aria-label", v.snapshot ? `snapshot ${snapName(snap, v.snapshot)}: show in the lineage` : "no snapshot");
        setHidden(body.rows[1], !open);
        if (open) drawInside(body.rows[1].cells[0], v);
}

function insideFacts(v) {
        const r = v.raw;
        return [
                ["Why", v.why || v.reason || "–"],
                ["Id", v.id],
                ["Process", r.pid ? String(num(r.pid)) : "–"],
                ["Runs on", `${str(r.vmm)} · ${str(r.accel)}`],
                ["Generation", String(num(r.generation))],
                ["Pager session", v.session],
                ["If the pager goes", str(r.on_pager_loss, "–")],
                ["Waits so far", fmtCount(v.count), v.count ? `p50 ${fmtTime(v.p50)}, p90 ${fmtTime(v.p90)}, p99 ${fmtTime(v.p99)}, max ${fmtTime(v.max)}` : ""],
        ];
}

const VCPU_HEADS = [{ name: "vCPU" }, { name: "State" }, { name: "Last window" }, { name: "On CPU", num: true }, { name: "Queued", num: true },
                    { name: "Memory", num: true }, { name: "Exits", num: true }, { name: "Idle exits", num: true }, { name: "Preempted", num: true }, { name: "Waiting now", num: true }];

function drawInside(cell, v) {
        if (!cell.firstChild) {
                cell.append(el("dl", { class: "facts" }), el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `vCPUs of ${v.name}` }, el("table", {}, el("caption", { text: "vCPUs" }))));
        }
        fillFacts(cell.children[0], insideFacts(v));
        const rows = v.vcpus.slice(0, 256).map((c, i) => ({
                key: i, cells: [
                        String(num(c.vcpu, i)), c.stuck ? "■ stuck" : c.spinning ? "▲ spinning" : str(c.state, "?"),
                        (td) => {
                                if (!td.firstChild) td.append(bar(["oncpu", "runqueue", "memory"]));
                                setBar(td.firstChild, [num(c.oncpu), num(c.runqueue), num(c.memory)]);
                        },
                        fmtShare(c.oncpu), fmtShare(c.runqueue), fmtShare(c.memory), fmtKnown(c.exits), fmtKnown(c.halts),
                        fmtCount(num(c.preempted)), num(c.waiting_ms) > 0 ? fmtTime(num(c.waiting_ms) / 1e3) : "–"],
        }));
        fillTable(cell.querySelector("table"), VCPU_HEADS, rows);
}

function drawVms() {
        const table = $("vm-table"), order = vmOrder(), few = rowsShown(), shown = vmView.all ? order : order.slice(0, few);
        const counts = new Map();
        keyed(table, shown, (v) => v.id, vmRow, updateRow, 2); /* a body each: the row, and what unfolds below it */
        for (const v of model.vms.values()) if (!v.ended) counts.set(v.state, (counts.get(v.state) || 0) + 1);
        const live = [...counts].map(([s, n]) => `${fmtCount(n)} ${s}`).join(", ");
        setText($("vm-count"), live ? `${live}${order.length !== [...counts.values()].reduce((a, b) => a + b, 0) ? `; ${fmtCount(order.length)} shown` : ""}.` : "No VMs yet: forkctl run NAME boots one.");
        if (num(model.doc.vms_left_out) > 0) setText($("vm-count"), `${$("vm-count").textContent} ${plural(num(model.doc.vms_left_out), "more VM does", "more VMs do")} not fit into the picture.`);
        setHidden($("vm-more"), order.length <= few);
        setText($("vm-more"), vmView.all ? `Show the first ${few}` : `Show all ${fmtCount(order.length)}`);
}

function startVms() {
        drawVmHead();
        const again = () => {
                vmView.sortedAt = 0;
                drawVms();
        };
        $("vm-filter").addEventListener("input", again);
        $("vm-show").addEventListener("change", again);
        $("vm-controls").addEventListener("submit", (e) => e.preventDefault());
        $("vm-more").addEventListener("click", () => {
                vmView.all = !vmView.all;
                again();
        });
}
