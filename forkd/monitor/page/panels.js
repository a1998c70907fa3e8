/* SPDX-License-Identifier: MIT */
/* What stands beside the VMs: the figures at a glance, the pager and who waits for whom in it, operations, pools, host. */

const p99Of = (h) => (num(map(h).count) ? fmtTime(num(h.p99_s)) : "–");

function drawTiles(doc) {
        const vms = [...model.vms.values()].filter((v) => !v.ended), alive = vms.filter((v) => ALIVE.has(v.state));
        const longest = vms.reduce((a, v) => (v.waiting > a.waiting ? v : a), { waiting: 0 });
        const store = map(doc.store), pager = map(doc.pager), host = map(doc.host), ops = map(doc.operations);
        const oncpu = vms.reduce((s, v) => s + v.cpu.oncpu, 0), rate = vms.reduce((s, v) => s + v.rate, 0), cpus = num(host.cpus);
        const standby = vms.filter((v) => v.state === "standby").length;
        const seen = looks(doc), unseen = seen ? null : "nobody looks";
        const tiles = [
                ["VMs alive", fmtCount(alive.length), `${fmtCount(standby)} on standby`],
                ["Guests on CPU", seen ? oncpu.toFixed(1) : "?", unseen || (cpus ? `of ${fmtCount(cpus)} CPUs` : "")],
                ["Waits for memory", seen ? `${fmtRate(rate)} / s` : "?", unseen || "answered"],
                ["Longest wait now", !seen ? "?" : longest.waiting ? fmtTime(longest.waiting) : "none", unseen || longest.name || "", longest.waiting > 1 ? "bad" : null],
                ["Snapshots", fmtCount(model.snapshots.size), `${fmtBytes([...model.snapshots.values()].reduce((s, x) => s + num(x.stored_bytes), 0))} stored`],
                ["Fork, p99", p99Of(ops.fork), `${fmtCount(num(map(ops.fork).count))} since start`],
                ["Decoded pages", fmtBytes(num(pager.present_bytes)), num(pager.budget_bytes) ? `budget ${fmtBytes(num(pager.budget_bytes))}` : ""],
                ["Store free", num(store.total) ? fmtBytes(num(store.free)) : "–", num(store.total) ? `of ${fmtBytes(num(store.total))}` : "",
                 num(store.total) && num(store.free) < num(store.total) / 10 ? "bad" : null],
        ];
        fillFacts($("tiles"), tiles);
}

/* ---- the pager ---- */

const ROLES = { fault: "answers faults", fill: "fetches ahead", control: "listens to forkd", other: "other" };
const THREAD_PARTS = [["oncpu", "on CPU"], ["runqueue", "waits for a CPU"], ["lock", "waits for a lock"], ["disk", "waits for the disk"]];

/* Who waits for whom: what the threads that answer faults spend their time with, said in a sentence. */
function pagerSays(p, threads) {
        const fault = threads.filter((t) => str(t.role) === "fault");
        if (p.up === false) return num(p.sessions) > 0 ? "It is down." : "It is not running: nobody needs it now.";
        if (!fault.some((t) => typeof t.oncpu === "number")) return "Its threads are not seen.";
        const [share, key] = THREAD_PARTS.map(([k]) => [Math.max(...fault.map((t) => num(t[k]))), k]).sort((a, b) => b[0] - a[0])[0];
        if (share < 0.3) return "Its threads mostly rest: a slow fault is not its doing now.";
        return { oncpu: `Decoding keeps it busy (${fmtShare(share)} of a thread): that is what slow faults wait for.`,
                 runqueue: `It waits for a CPU (${fmtShare(share)} of a thread): the host has too few for what runs.`,
                 lock: `It waits for locks (${fmtShare(share)} of a thread): many want the same pages.`,
                 disk: `It waits for the disk (${fmtShare(share)} of a thread): that is what slow faults wait for.` }[key];
}

function pagerFacts(p) {
        const faults = Object.entries(map(p.faults)).filter(([, n]) => num(n) > 0).sort((a, b) => num(b[1]) - num(a[1]));
        const service = map(p.service), oldest = num(p.oldest_fault_ms) / 1e3;
        return [
                ["State", p.up === false ? "down" : "up", p.pid ? `pid ${num(p.pid)}` : "", p.up === false && num(p.sessions) > 0 ? "bad" : null],
                ["Sessions", fmtCount(num(p.sessions)), plural(num(p.images), "image")],
                ["Decoded pages", fmtBytes(num(p.present_bytes)), num(p.budget_bytes) ? `of ${fmtBytes(num(p.budget_bytes))}` : ""],
                ["Oldest fault", oldest > 0 ? fmtTime(oldest) : "none", "", oldest > 1 ? "bad" : null],
                ["To answer a fault", num(service.count) ? fmtTime(num(service.p50_s)) : "–", num(service.count) ? `p99 ${fmtTime(num(service.p99_s))}, max ${fmtTime(num(service.max_s))}` : ""],
                ["Faults", fmtCount(faults.reduce((s, f) => s + num(f[1]), 0)), faults.slice(0, 6).map(([k, n]) => `${fmtCount(num(n))} ${str(k)}`).join(", ")],
                ["Deaths, hangs", `${fmtCount(num(p.deaths))}, ${fmtCount(num(p.hangs))}`, `${fmtCount(num(p.recovered))} guests recovered, ${fmtCount(num(p.killed))} killed, ${plural(num(p.upgrades), "upgrade")}`],
        ];
}

function drawPager(doc) {
        const p = map(doc.pager), threads = list(p.threads).map(map).slice(0, 256);
        setText($("pager-say"), pagerSays(p, threads));
        fillFacts($("pager-facts"), pagerFacts(p));
        setHidden($("pager-threads").parentNode, !threads.length);
        setHidden($("thread-legend"), !threads.length);
        fillTable($("pager-threads"), [{ name: "Thread" }, { name: "What it does" }, { name: "Last window" }, ...THREAD_PARTS.map(([, n]) => ({ name: n, num: true }))],
                  threads.map((t, i) => ({ key: `${num(t.tid)} ${i}`, cells: [
                          str(t.name, "?"), ROLES[str(t.role)] || ROLES.other, (td) => {
                                  if (!td.firstChild) td.append(bar(THREAD_PARTS.map(([k]) => k)));
                                  setBar(td.firstChild, THREAD_PARTS.map(([k]) => num(t[k])));
                          }, ...THREAD_PARTS.map(([k]) => fmtShare(t[k]))] })));
        if (!$("thread-legend").firstChild) {
                $("thread-legend").append(...THREAD_PARTS.map(([k, n]) => el("span", { class: "key" }, el("span", { class: `swatch part ${k}`, "aria-hidden": "true" }), n)));
        }
        drawServed(list(p.served).map(map));
}

const SERVED_SHOWN = 10;
const servedView = { all: false };
function drawServed(served) {
        const sorted = served.sort((a, b) => num(b.oldest_fault_ms) - num(a.oldest_fault_ms) || num(b.faults) - num(a.faults));
        const shown = servedView.all ? sorted.slice(0, 2000) : sorted.slice(0, SERVED_SHOWN);
        setHidden($("pager-served").parentNode, !served.length);
        fillTable($("pager-served"), [{ name: "VM" }, { name: "Image" }, { name: "Faults", num: true }, { name: "Installed", num: true }, { name: "p99 wait", num: true }, { name: "Oldest fault", num: true }],
                  shown.map((s) => ({ key: `${str(s.vm)} ${str(s.image)}`, cells: [
                          str(s.vm, "?"), imageName(str(s.image)), fmtCount(num(s.faults)), fmtBytes(num(s.pages_installed) * 4096), p99Of(s.wait),
                          num(s.oldest_fault_ms) > 0 ? fmtTime(num(s.oldest_fault_ms) / 1e3) : "–"] })));
        setHidden($("served-more"), served.length <= SERVED_SHOWN);
        setText($("served-more"), servedView.all ? `Show the first ${SERVED_SHOWN}` : `Show all ${fmtCount(served.length)}`);
}
function imageName(id) {
        const snap = model.snapshots.get(id);
        return snap ? snapName(snap, id) : id.slice(0, 16) || "–";
}

/* ---- operations: on a scale from 100 µs to 1000 s, each factor of ten as wide as the next ---- */

const OPERATIONS = [["boot", "boot"], ["standby", "standby"], ["restore", "restore"], ["fork", "fork, each clone"], ["pool_take", "taken from a pool"]];
const opX = (s) => Math.min(100, Math.max(0, ((Math.log10(Math.max(s, 1e-4)) + 4) / 7) * 100));

function opRange(td, h) {
        if (!td.firstChild) {
                td.append(svg("svg", { class: "range", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" },
                              ...[1, 2, 3, 4, 5, 6].map((i) => svg("path", { class: "grid", d: `M${(i * 100) / 7} 0V12` })),
                              svg("path", { class: "whole" }), svg("path", { class: "most" }), svg("path", { class: "half" })));
        }
        const g = td.firstChild, n = num(h.count), [whole, most, half] = [...g.children].slice(-3), x = (k) => opX(num(h[k])).toFixed(1);
        setAttr(whole, "d", n ? `M${x("p50_s")} 6H${x("max_s")}` : "M0 0");
        setAttr(most, "d", n ? `M${x("p50_s")} 6H${x("p99_s")}` : "M0 0");
        setAttr(half, "d", n ? `M${x("p50_s")} 1V11` : "M0 0");
}

function drawOperations(doc) {
        const ops = map(doc.operations), failed = map(doc.failed);
        fillTable($("ops"), [{ name: "Operation" }, { name: "Done", num: true }, { name: "Failed", num: true }, { name: "p50", num: true }, { name: "p90", num: true }, { name: "p99", num: true }, { name: "Max", num: true }, { name: "From p50 to max: 0.1 ms … 1000 s" }],
                  OPERATIONS.map(([key, name]) => {
                          const h = map(ops[key]), t = (k) => (num(h.count) ? fmtTime(num(h[k])) : "–");
                          return { key, cells: [name, fmtCount(num(h.count)), fmtCount(num(failed[key])), t("p50_s"), t("p90_s"), t("p99_s"), t("max_s"), (td) => opRange(td, h)] };
                  }));
}

/* ---- pools, host ---- */

function drawPools(doc) {
        const pools = list(doc.pools).map(map).slice(0, 1000);
        setHidden($("pools-none"), pools.length > 0);
        setHidden($("pool-table"), !pools.length);
        fillTable($("pool-table"), [{ name: "Pool" }, { name: "Warm" , num: true }, { name: "Wanted", num: true }, { name: "From" }],
                  pools.map((p) => ({ key: str(p.name), cells: [str(p.name, "?"), fmtCount(num(p.warm)), fmtCount(num(p.wanted, num(p.size))), snapName(model.snapshots.get(str(p.from)), p.from) || "–"] })));
}

const METHODS = { fentry: "fentry", kprobe: "kprobe", sched_switch: "the scheduler's switch" };

function drawHost(doc) {
        const h = map(doc.host), s = map(doc.store), p = map(doc.probes), total = num(h.mem_total_bytes);
        const used = Object.entries(s).filter(([k]) => k !== "total" && k !== "free").map(([k, n]) => `${str(k)} ${fmtBytes(num(n))}`).slice(0, 6).join(", ");
        const lost = [["overflows", "threads without a place"], ["recycled", "pids used again"], ["missed", "events missed"]].filter(([k]) => num(p[k]) > 0).map(([k, n]) => `${fmtCount(num(p[k]))} ${n}`);
        fillFacts($("host-facts"), [
                ["CPUs", h.cpus === undefined ? "–" : fmtCount(num(h.cpus))],
                ["Memory available", total ? fmtBytes(num(h.mem_available_bytes)) : "–", total ? `of ${fmtBytes(total)}` : ""],
                ["Store", num(s.total) ? `${fmtBytes(num(s.free))} free` : "–", [num(s.total) ? `of ${fmtBytes(num(s.total))}` : "", used].filter((x) => x).join("; ")],
                ["Waits are seen by", p.ok === false ? "nobody" : METHODS[str(p.method)] || str(p.method, "–"), [p.kvm ? "with KVM's own counts" : "", str(p.reason)].filter((x) => x).join("; ")],
                ["Watched", `${fmtCount(num(p.processes))} processes`, `${fmtCount(num(p.threads))} threads of at most ${fmtCount(num(p.max_threads))}`],
                ["Lost", lost.length ? lost.join(", ") : "nothing", "", lost.length ? "bad" : null],
                ["Metrics", str(doc.metrics_address, "–")],
        ]);
}
