/* SPDX-License-Identifier: MIT */
/* The tree of snapshots, drawn from left to right, with the VMs that stand by in them or live on them.
 *
 * A chain may be hundreds deep and a fan hundreds wide, so what is alike is folded: a run of snapshots with nothing else to tell
 * is one node, children beyond a few are one node, and VMs beyond a few are dots in their snapshot's box. What has a problem is
 * never folded. It is a real tree for keyboards and screen readers: the boxes are its items, only the lines are a drawing. */

const BOX_W = 172, GAP_X = 36, GAP_Y = 14, HEAD_H = 44, CHIP_H = 22, DOT = 11, DOTS_IN_ROW = 14;
const CHIPS = 6, DOTS_MAX = 280, FAN = 6, FAN_SHOWN = 4, RUN = 3, BOXES_MAX = 600;
const treeView = { open: new Set(), must: null, all: false, focus: null };

const snapName = (snap, id) => str(map(snap).tag) || str(id).slice(0, 8);

const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

/* {id → node} with children, and the roots; what names no parent that is there is a root, and so is one of a circle. */
function buildTree() {
        const nodes = new Map(), roots = [];
        for (const [id, s] of model.snapshots) nodes.set(id, { id, snap: s, kids: [], vms: [], parent: null });
        for (const v of model.vms.values()) {
                if (v.ended) continue;
                const id = v.snapshot || "";
                if (!nodes.has(id)) nodes.set(id, { id, snap: null, kids: [], vms: [], parent: null });
                nodes.get(id).vms.push(v);
        }
        for (const n of nodes.values()) {
                const parent = n.snap && str(n.snap.parent) ? nodes.get(str(n.snap.parent)) : null;
                if (parent !== n) n.parent = parent || null;
        }
        for (const n of nodes.values()) {
                const way = new Set();
                let up = n;
                while (up && !up.rooted && !way.has(up)) {
                        way.add(up);
                        up = up.parent;
                }
                if (up && !up.rooted) n.parent = null; /* a circle: no forkd makes one */
                else for (const w of way) w.rooted = true;
                n.rooted = true;
        }
        for (const n of nodes.values()) (n.parent ? n.parent.kids : roots).push(n);
        const created = (n) => (n.snap ? num(n.snap.created) : Infinity);
        for (const n of nodes.values()) n.kids.sort((a, b) => order(created(a), created(b)) || a.id.localeCompare(b.id));
        return { nodes, roots: roots.sort((a, b) => order(created(a), created(b)) || a.id.localeCompare(b.id)) };
}

/* From the leaves up, without recursion, which a chain of thousands would not survive: how much hangs below, and what must show. */
function weigh(tree) {
        const order = [...tree.roots];
        for (let i = 0; i < order.length; i++) order.push(...order[i].kids);
        for (const n of order.reverse()) {
                n.vms.sort((a, b) => a.rank - b.rank || a.name.localeCompare(b.name, "en", { numeric: true }));
                n.below = 1;
                n.vmsBelow = n.vms.length;
                n.high = 1;
                n.loud = n.vms.some((v) => v.rank < 3) || n.id === treeView.must;
                for (const k of n.kids) {
                        n.below += k.below;
                        n.vmsBelow += k.vmsBelow;
                        n.high = Math.max(n.high, k.high + 1);
                        n.loud = n.loud || k.loud;
                }
        }
        return order.length;
}

/* Snapshots with one child each and no VM that lives: where such a run ends that starts at @n. */
function runFrom(n) {
        const run = [];
        while (n.kids.length === 1 && n.vms.every((v) => v.rank >= 5) && n.id !== treeView.must) {
                run.push(n);
                n = n.kids[0];
        }
        return { run, next: n };
}

const vmsIn = (kids) => kids.reduce((s, k) => s + k.vmsBelow, 0);

/* The boxes in the order they are read, each with its column and the box it hangs on. */
function boxesOf(tree) {
        const boxes = [];
        const todo = [{ kids: tree.roots, under: null, level: 0, of: "" }];
        const add = (box) => {
                box.level = box.under ? box.under.level + 1 : 0;
                boxes.push(box);
                return box;
        };
        const visit = (n, under) => {
                const { run, next } = runFrom(n);
                if (under && run.length >= RUN && !treeView.all) {
                        const key = `run ${run[0].id}`, open = treeView.open.has(key);
                        const vms = run.reduce((s, r) => s + r.vms.length, 0);
                        under = add({ key, under, fold: open, text: plural(run.length, "snapshot"), more: vms ? `in a row, ${plural(vms, "VM")}` : "in a row" });
                        if (!open) n = next;
                        else {
                                for (const r of run) under = add({ key: `snap ${r.id}`, under, node: r });
                                n = next;
                        }
                }
                return [n, add({ key: `snap ${n.id}`, under, node: n })];
        };
        /* depth first: what is to come next is at the end */
        while (todo.length && boxes.length < BOXES_MAX) {
                const t = todo.pop();
                const wide = t.kids.length > FAN && !treeView.all, key = `fan ${t.of}`, open = treeView.open.has(key);
                if (t.node) {
                        const [n, box] = visit(t.node, t.under);
                        todo.push({ kids: n.kids, under: box, of: n.id });
                        continue;
                }
                if (t.rest) {
                        add({ key: t.key, under: t.under, fold: t.open, text: `${fmtCount(t.rest.length)} more`,
                              more: vmsIn(t.rest) ? `${plural(vmsIn(t.rest), "VM")} below` : "no VMs below" });
                        continue;
                }
                const first = wide ? [...t.kids].sort((a, b) => (b.loud ? 1 : 0) - (a.loud ? 1 : 0) || b.high - a.high || b.vmsBelow - a.vmsBelow) : t.kids;
                const shown = wide ? Math.max(FAN_SHOWN, first.filter((k) => k.loud).length) : first.length;
                const items = first.slice(0, shown).map((node) => ({ node, under: t.under, kids: [] }));
                if (shown < first.length) {
                        items.push({ rest: first.slice(shown), under: t.under, key, open, kids: [] });
                        if (open) items.push(...first.slice(shown).map((node) => ({ node, under: t.under, kids: [] })));
                }
                todo.push(...items.reverse());
        }
        return { boxes, left: todo.length };
}

function chipsOf(n) {
        const loud = n.vms.filter((v) => v.rank < 3).length, chips = n.vms.length <= CHIPS ? n.vms.length : Math.min(Math.max(loud, 3), 12);
        const dots = Math.min(n.vms.length - chips, DOTS_MAX);
        return { chips: n.vms.slice(0, chips), dots: n.vms.slice(chips, chips + dots), rest: n.vms.length - chips - dots };
}
function heightOf(box) {
        if (!box.node) return HEAD_H;
        const { chips, dots, rest } = (box.vms = chipsOf(box.node));
        return HEAD_H + chips.length * CHIP_H + (dots.length ? Math.ceil(dots.length / DOTS_IN_ROW) * DOT + 24 : 0) + (rest > 0 ? 18 : 0) + (box.node.vms.length ? 8 : 0);
}

/* A box stands level with its first child, so that a chain is a straight line. Each further child begins below what the columns that
 * its own subtree needs hold by then: a short branch fits under a long chain. */
function place(boxes) {
        const kids = new Map(), bottom = [];
        for (const b of boxes) {
                b.h = heightOf(b);
                b.reach = b.level;
                if (b.under) kids.get(b.under) ? kids.get(b.under).push(b) : kids.set(b.under, [b]);
        }
        for (const b of [...boxes].reverse()) if (b.under) b.under.reach = Math.max(b.under.reach, b.reach);
        for (const b of boxes) { /* in reading order: parents before children */
                const first = b.under && kids.get(b.under)[0] === b;
                b.x = b.level * (BOX_W + GAP_X);
                b.y = first ? b.under.y : Math.max(b.under ? b.under.y : 0, ...bottom.slice(b.level, b.reach + 1).map((y) => (y === undefined ? 0 : y + GAP_Y)));
                for (let l = b.level; l <= b.reach; l++) bottom[l] = Math.max(bottom[l] || 0, b.y + (l === b.level ? b.h : HEAD_H));
        }
        for (const l of kids.values()) l.forEach((b, i) => ([b.pos, b.setsize] = [i + 1, l.length]));
        return { width: Math.max(0, ...boxes.map((b) => b.x + BOX_W)), height: Math.max(0, ...bottom.map((y) => y || 0)) };
}

function vmCounts(vms) {
        const counts = new Map();
        for (const v of vms) {
                const word = HEALTH.includes(v.health) ? v.health : v.state;
                counts.set(word, (counts.get(word) || 0) + 1);
        }
        return [...counts].map(([w, n]) => `${fmtCount(n)} ${w}`).join(", ");
}

function boxLabel(b) {
        if (!b.node) return `${b.text} ${b.more}, ${b.fold ? "unfolded" : "folded"}`;
        const n = b.node, s = map(n.snap), words = [boxTitle(n), boxLine(n)];
        if (n.kids.length) words.push(plural(n.kids.length, "child", "children"));
        if (n.vms.length) words.push(n.vms.length <= CHIPS ? n.vms.map((v) => `${v.name} ${HEALTH.includes(v.health) ? v.health : v.state}`).join(", ") : `${plural(n.vms.length, "VM")}: ${vmCounts(n.vms)}`);
        if (s.tag) words.push(`id ${n.id}`);
        return words.filter((w) => w).join("; ");
}
const boxTitle = (n) => (n.snap ? snapName(n.snap, n.id) : n.id ? `${n.id.slice(0, 8)} (removed)` : "No snapshot yet");
function boxLine(n) {
        if (!n.snap) return n.id ? "its VMs live on" : "booted, never on standby";
        return `depth ${fmtCount(num(n.snap.depth))} · ${fmtBytes(num(n.snap.stored_bytes))}`;
}

const stateOf = (v) => (HEALTH.includes(v.health) ? v.health : v.state);
const markOf = (v) => (HEALTH.includes(v.health) ? HEALTH_MARKS[v.health] : MARKS[v.state] || "·");

function newBox(b) {
        return el("div", { class: b.node ? "box" : "box fold", role: "treeitem", tabindex: "-1" },
                  el("strong", { class: "cut" }), el("span", { class: "soft cut" }),
                  el("div", { class: "chips" }), el("div", { class: "dots" }), el("span", { class: "soft rest cut" }));
}
function updateBox(div, b) {
        const vms = b.vms || { chips: [], dots: [], rest: 0 }, [title, line, chips, dots, rest] = div.children;
        div.box = b;
        div.style.transform = `translate(${b.x}px, ${b.y}px)`;
        div.style.height = `${b.h}px`;
        setAttr(div, "aria-level", String(b.level + 1));
        setAttr(div, "aria-label", boxLabel(b));
        setAttr(div, "aria-posinset", b.pos ? String(b.pos) : null);
        setAttr(div, "aria-setsize", b.setsize ? String(b.setsize) : null);
        setAttr(div, "aria-expanded", b.node ? null : String(b.fold));
        setAttr(div, "data-loud", b.node && b.node.vms.some((v) => v.rank < 3) ? "yes" : null);
        setAttr(div, "data-kind", b.node && !b.node.snap ? "none" : null);
        setText(title, b.node ? boxTitle(b.node) : `${b.fold ? "▾" : "▸"} ${b.text}`);
        setText(line, b.node ? boxLine(b.node) : b.more);
        keyed(chips, vms.chips, (v) => v.id, () => el("span", { class: "chip cut" }, el("span", { class: "mark" }), el("span")), (s, v) => {
                setAttr(s, "data-state", stateOf(v));
                setText(s.firstChild, markOf(v));
                setText(s.lastChild, v.name);
        });
        keyed(dots, vms.dots, (v) => v.id, () => el("span"), (s, v) => setAttr(s, "data-state", stateOf(v)));
        setText(rest, vms.dots.length ? `${vms.chips.length ? "and " : ""}${vmCounts(b.node.vms.slice(vms.chips.length))}` : "");
        setHidden(rest, !vms.dots.length);
        setHidden(dots, !vms.dots.length);
}

function drawEdges(boxes, size) {
        const tree = $("tree");
        if (!tree.lines) tree.prepend((tree.lines = svg("svg", { "aria-hidden": "true" }, svg("path"))));
        const d = boxes.filter((b) => b.under).map((b) => {
                const x1 = b.under.x + BOX_W, y1 = b.under.y + HEAD_H / 2, y2 = b.y + HEAD_H / 2, mid = x1 + GAP_X / 2;
                return y1 === y2 ? `M${x1} ${y1}H${b.x}` : `M${x1} ${y1}H${mid - 8}Q${mid} ${y1} ${mid} ${y1 + 8}V${y2 - 8}Q${mid} ${y2} ${mid + 8} ${y2}H${b.x}`;
        }).join("");
        setAttr(tree.lines, "width", String(size.width));
        setAttr(tree.lines, "height", String(size.height));
        setAttr(tree.lines.firstChild, "d", d || "M0 0");
        tree.style.width = `${size.width}px`;
        tree.style.height = `${size.height}px`;
}

function drawTree() {
        const tree = buildTree(), total = weigh(tree), { boxes, left } = boxesOf(tree), size = place(boxes), node = $("tree");
        const deepest = Math.max(0, ...tree.roots.map((r) => r.high)), at = [...tree.nodes.values()].filter((n) => n.snap && n.vms.length).length;
        drawEdges(boxes, size);
        setAttr(node, "role", total ? "tree" : null);
        setAttr(node, "aria-label", total ? "Snapshots and the VMs on them" : null);
        keyed(node, boxes, (b) => b.key, newBox, updateBox, 1);
        if (!boxes.some((b) => b.key === treeView.focus)) treeView.focus = boxes.length ? boxes[0].key : null;
        for (const [key, div] of node.nodesByKey) setAttr(div, "tabindex", key === treeView.focus ? "0" : "-1");
        setText($("tree-say"), !model.snapshots.size ? "No snapshots yet: forkctl standby NAME makes one of a VM."
                : `${plural(model.snapshots.size, "snapshot")}, the longest chain has ${fmtCount(deepest)}; VMs are on ${fmtCount(at)} of them.${left || num(model.doc.snapshots_left_out) ? " Not all fit: the rest is left out." : ""}`);
        setAttr($("tree-all"), "aria-pressed", String(treeView.all));
}

function focusBox(div) {
        if (!div) return;
        treeView.focus = div.box.key;
        for (const d of $("tree").nodesByKey.values()) setAttr(d, "tabindex", d === div ? "0" : "-1");
        div.focus({ preventScroll: false });
        div.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function fold(b) {
        treeView.open.has(b.key) ? treeView.open.delete(b.key) : treeView.open.add(b.key);
        drawTree();
        focusBox($("tree").nodesByKey.get(b.key));
}

function treeKey(e) {
        const div = e.target.closest("[role=treeitem]"), all = [...$("tree").nodesByKey.values()], b = div && div.box, i = all.indexOf(div);
        if (!b || e.altKey || e.ctrlKey || e.metaKey) return;
        const to = {
                ArrowDown: () => all[i + 1], ArrowUp: () => all[i - 1], Home: () => all[0], End: () => all[all.length - 1],
                ArrowLeft: () => (b.fold ? fold(b) : b.under && all.find((d) => d.box === b.under)),
                ArrowRight: () => (!b.node && !b.fold ? fold(b) : all.find((d) => d.box.under === b)),
                Enter: () => !b.node && fold(b), " ": () => !b.node && fold(b),
        }[e.key];
        if (!to) return;
        e.preventDefault();
        focusBox(to());
}

/* From a VM's row to its snapshot's box, unfolded if need be. */
function showInTree(vm) {
        if (!vm) return;
        treeView.must = vm.snapshot;
        drawTree();
        const div = $("tree").nodesByKey.get(`snap ${vm.snapshot}`);
        $("lineage").scrollIntoView({ block: "nearest" });
        focusBox(div);
}

function startTree() {
        $("tree").addEventListener("keydown", treeKey);
        $("tree").addEventListener("click", (e) => {
                const div = e.target.closest("[role=treeitem]");
                if (div && !div.box.node) fold(div.box);
                else focusBox(div);
        });
        $("tree-all").addEventListener("click", () => {
                treeView.all = !treeView.all;
                drawTree();
        });
}
