/* SPDX-License-Identifier: MIT */
/* From documents to what is drawn: each document holds totals since ever, and what happened in a second is the difference of
 * two. Nothing here touches the page. */

const HISTORY = 60;        /* values of a sparkline */
const HEAT_SECONDS = 300;
const HEAT_GAP_MS = 5000;  /* documents farther apart: nobody knows when what they count happened */

/* {le: n}, of a histogram as it comes; the key of the last bucket, which has no end, is Infinity. */
function bucketsOf(hist) {
        const found = new Map();
        for (const b of list(map(hist).buckets)) {
                const le = list(b)[0] === null ? Infinity : num(list(b)[0], -1), n = num(list(b)[1]);
                if (le > 0 && n > 0) found.set(le, (found.get(le) || 0) + n);
        }
        return found;
}

const model = { vms: new Map(), snapshots: new Map(), doc: null, at: 0, columns: [] };

/* What is between two counts of the same thing; one that went back began anew. */
const since = (now, before) => (before === undefined ? 0 : now >= before ? now - before : now);

/* The last bucket that a wait belongs to, in power of two of nanoseconds: row of the heat map. */
const rowOf = (le) => (le === Infinity ? 37 : Math.round(Math.log2(le * 1e9)));
const rowEnd = (row) => (row > 36 ? "more than 69 s" : `up to ${fmtTime(2 ** row / 1e9)}`);

function vmOf(raw, kept, dt) {
        const v = map(raw), wait = map(v.wait), count = num(wait.count);
        const vm = {
                raw: v, name: str(v.name, "?"), id: str(v.id, str(v.name, "?")), state: str(v.state, "?"), health: str(v.health, "unknown"),
                why: str(v.why), reason: str(v.reason), snapshot: str(v.snapshot), ended: v.ended_ms !== null && v.ended_ms !== undefined,
                vcpus: list(v.vcpus).map(map), waiting: num(v.waiting_ms) / 1e3, session: str(v.session, "none"),
                p50: num(wait.p50_s), p90: num(wait.p90_s), p99: num(wait.p99_s), max: num(wait.max_s), count, buckets: bucketsOf(wait), mem: num(v.mem_bytes),
        };
        vm.cpu = { oncpu: 0, runqueue: 0, memory: 0 };
        for (const c of vm.vcpus) for (const k of Object.keys(vm.cpu)) vm.cpu[k] += Math.min(Math.max(num(c[k]), 0), 1);
        vm.watched = v.watched !== false;
        vm.cpus = Math.max(vm.vcpus.length, 1);
        vm.fresh = !kept; /* what it has counted before we knew it did not happen now */
        vm.waitsNow = kept ? since(count, kept.count) : 0;
        vm.rate = dt > 0 ? vm.waitsNow / dt : 0;
        vm.cpuHistory = [...(kept ? kept.cpuHistory : []), vm.cpu.oncpu].slice(-HISTORY);
        vm.rateHistory = [...(kept ? kept.rateHistory : []), vm.rate].slice(-HISTORY);
        vm.rank = rankOf(vm);
        return vm;
}

const ALIVE = new Set(["creating", "booting", "running", "paused", "stopping"]);
const HEALTH = ["stuck", "spinning", "orphan"];

/* Worst first: what burns or hangs, what failed, what lives, what sleeps, what is over. */
function rankOf(vm) {
        if (vm.ended) return 9;
        if (HEALTH.includes(vm.health)) return 0;
        if (vm.session === "lost" && ALIVE.has(vm.state)) return 1;
        if (vm.state === "failed") return 2;
        if (vm.waiting > 1) return 3;
        return ALIVE.has(vm.state) ? 4 : 5;
}

/* Waits that ended between the two documents, into the second they were reported in. */
function addColumn(doc, dt, known) {
        const second = Math.floor(num(doc.now_ms, Date.now()) / 1000);
        const last = model.columns[model.columns.length - 1];
        const column = last && last.second === second ? last : { second, seen: known, all: new Map(), of: new Map() };
        if (column !== last) model.columns.push(column);
        while (model.columns.length && model.columns[0].second <= second - HEAT_SECONDS) model.columns.shift();
        return column;
}
function countInto(column, vm, before) {
        let mine = column.of.get(vm.name);
        for (const [le, n] of vm.buckets) {
                const more = since(n, before.buckets.get(le) || 0), row = rowOf(le);
                if (more <= 0) continue;
                if (!mine) column.of.set(vm.name, (mine = new Map()));
                mine.set(row, (mine.get(row) || 0) + more);
                column.all.set(row, (column.all.get(row) || 0) + more);
        }
}

/* What forkd remembers of the time before: of all VMs together. What was seen here is better known. The last moments are left out, for
 * a wait in them may be counted by the next picture again; nobody has seen them then. */
const RECALL_FROM = 2;
function recall(lately) {
        const newest = Math.floor(num(lately.now_ms) / 1000), have = new Map(model.columns.map((c) => [c.second, c]));
        for (let ago = Math.min(num(lately.known_s), HEAT_SECONDS - 1); ago >= RECALL_FROM; ago--) {
                const old = have.get(newest - ago);
                if (!old || !old.seen) have.set(newest - ago, { second: newest - ago, seen: true, past: true, all: new Map(), of: new Map() });
        }
        for (const s of list(lately.seconds)) {
                const column = have.get(newest - num(list(s)[0]));
                if (!column || !column.past) continue;
                for (const [le, n] of bucketsOf({ buckets: list(s)[1] })) column.all.set(rowOf(le), n);
        }
        model.columns = [...have.values()].filter((c) => c.second > newest - HEAT_SECONDS).sort((a, b) => a.second - b.second);
}

/* Does anything look at guests? If not, zeros are no figures. */
const looks = (doc) => map(doc.probes).ok !== false;

/* Takes a document in. A forkd that began anew (another uptime) is another one: its totals are compared with nothing. */
function ingest(doc) {
        const before = model.doc, elapsed = before ? num(doc.now_ms) - num(before.now_ms) : 0;
        const anew = !before || num(doc.uptime_ms) < num(before.uptime_ms) || elapsed <= 0;
        const dt = anew ? 0 : elapsed / 1e3, known = !anew && elapsed <= HEAT_GAP_MS && looks(doc);
        const old = anew ? new Map() : model.vms, column = addColumn(doc, dt, known);
        model.vms = new Map();
        for (const raw of list(doc.vms)) {
                const kept = old.get(str(map(raw).id)), vm = vmOf(raw, kept, dt);
                /* A VM that was not there a second ago has done all that it has counted since then. */
                if (known) countInto(column, vm, kept || { buckets: new Map() });
                model.vms.set(vm.id, vm);
        }
        model.snapshots = new Map(list(doc.snapshots).map(map).filter((x) => str(x.id)).map((x) => [x.id, x]));
        model.doc = doc;
        model.at = performance.now();
}

/* The heat map's cells: @n columns of equal length, the newest last: [{from, seen, rows: Map(row → n)}]. */
function heatColumns(n, vm) {
        const step = HEAT_SECONDS / n, newest = model.columns.length ? model.columns[model.columns.length - 1].second : 0;
        const first = newest - HEAT_SECONDS + 1;
        const out = Array.from({ length: n }, (_, i) => ({ from: first + Math.round(i * step), seen: false, rows: new Map() }));
        for (const c of model.columns) {
                const o = out[Math.min(n - 1, Math.max(0, Math.floor((c.second - first) / step)))];
                const rows = vm ? c.of.get(vm) : c.all;
                o.seen = o.seen || (c.seen && !(vm && c.past));
                for (const [row, count] of rows || []) o.rows.set(row, (o.rows.get(row) || 0) + count);
        }
        return out;
}

/* Rows summed: how many, and below which bound half, 99 % and all of them were. */
function summary(rows) {
        const sorted = [...rows].sort((a, b) => a[0] - b[0]), total = sorted.reduce((s, r) => s + r[1], 0);
        const at = (q) => {
                let seen = 0;
                for (const [row, n] of sorted) if ((seen += n) >= q * total) return row;
                return 0;
        };
        return { total, p50: at(0.5), p99: at(0.99), max: total ? sorted[sorted.length - 1][0] : 0 };
}
