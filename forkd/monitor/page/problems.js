/* SPDX-License-Identifier: MIT */
/* What needs a person: found in a document, each with what it means and what can be done. */

const HEALTH_SAYS = {
        spinning: ["is spinning", "It burns a core and gets nowhere.", (n) => `\`forkctl logs ${n}\` shows its console; \`forkctl stop ${n}\`, or \`forkctl rm ${n}\`, gives the core back.`],
        stuck: ["waits for memory and gets none", "A vCPU has been waiting for its pager for longer than a window.", () => "The pager's part below says what it is waiting for; `forkctl pager upgrade` puts another one in its place."],
        orphan: ["has lost its pager", "Nobody answers its memory's faults.", (n) => `If it does not recover by itself: \`forkctl rm ${n}\`, then fork it again from its snapshot.`],
};

function vmProblems(found) {
        for (const vm of model.vms.values()) {
                if (vm.ended) continue;
                const h = HEALTH_SAYS[vm.health];
                if (h) {
                        const cpus = vm.vcpus.filter((c) => c.spinning || c.stuck).map((c) => num(c.vcpu));
                        const which = cpus.length ? `, vCPU ${cpus.slice(0, 8).join(", ")}` : "";
                        found.push({ key: `vm ${vm.id}`, level: "bad", title: `${vm.name}${which} ${h[0]}`, why: vm.why || h[1], todo: h[2](vm.name) });
                } else if (vm.session === "lost" && ALIVE.has(vm.state)) {
                        found.push({ key: `vm ${vm.id}`, level: "bad", title: `${vm.name} has lost its pager`, why: vm.why, todo: HEALTH_SAYS.orphan[2](vm.name) });
                } else if (vm.state === "failed") {
                        found.push({ key: `vm ${vm.id}`, level: "warn", title: `${vm.name} has failed`, why: vm.reason, todo: `\`forkctl logs ${vm.name}\` shows its console; \`forkctl rm ${vm.name}\` clears it away.` });
                }
        }
}

function hostProblems(doc, found) {
        const pager = map(doc.pager), probes = map(doc.probes), host = map(doc.host), store = map(doc.store);
        const total = num(store.total), free = num(store.free), mem = num(host.mem_total_bytes), left = num(host.mem_available_bytes, mem);
        if (pager.up === false && num(pager.sessions) > 0) {
                found.push({ key: "pager", level: "bad", title: "The pager is down", why: "Guests that miss memory wait.", todo: "forkd brings it back by itself; `forkctl events` tells why it went." });
        }
        if (str(pager.error)) {
                found.push({ key: "pager", level: "warn", title: "The pager does not answer", why: str(pager.error), todo: "forkd looks after it; `forkctl events` tells what it does." });
        }
        if (probes.ok === false) {
                found.push({ key: "probes", level: "warn", title: "Waits and vCPUs are not seen", why: str(probes.reason), todo: str(probes.hint) });
        }
        if (num(probes.unwatched_vms) > 0) {
                found.push({ key: "unwatched", level: "warn", title: `${plural(num(probes.unwatched_vms), "VM")} without a place in the probes`, why: "More processes than are watched.", todo: "What is shown of the others is right." });
        }
        if (total > 0 && free < total / 10) {
                found.push({ key: "store", level: free < total / 20 ? "bad" : "warn", title: "The store is nearly full", why: `${fmtBytes(free)} of ${fmtBytes(total)} are free.`, todo: "`forkctl snapshot rm` removes snapshots that nobody needs." });
        }
        if (mem > 0 && left < mem / 20) {
                found.push({ key: "memory", level: "warn", title: "The host is short of memory", why: `${fmtBytes(left)} of ${fmtBytes(mem)} are available.`, todo: "`forkctl standby` takes a VM that nobody uses out of memory." });
        }
        if (str(doc.metrics_error)) {
                found.push({ key: "metrics", level: "warn", title: "The metrics' address could not be taken", why: str(doc.metrics_error), todo: "`[metrics] listen` sets another one." });
        }
}

function findProblems(doc) {
        const found = [];
        vmProblems(found);
        hostProblems(doc, found);
        return found.sort((a, b) => (a.level === b.level ? 0 : a.level === "bad" ? -1 : 1));
}

/* The words a screen reader hears: when something begins or ends, never at each picture. */
const told = { keys: null };
function announce(problems) {
        const now = new Map(problems.map((p) => [p.key, p.title])), before = told.keys;
        told.keys = now;
        if (!before) return;
        const begun = [...now].filter(([k, t]) => before.get(k) !== t).map(([, t]) => t);
        const over = [...before].filter(([k]) => !now.has(k)).map(([, t]) => t);
        const words = [];
        if (begun.length) words.push(begun.length > 3 ? `${begun.length} new problems, the first: ${begun[0]}` : begun.join("; "));
        if (over.length) words.push(over.length > 3 ? `${over.length} problems are over` : `over: ${over.join("; ")}`);
        if (words.length) setText($("announce"), words.join(". "));
}

const PROBLEMS_SHOWN = 8;

function drawProblems(doc) {
        const found = findProblems(doc), shown = found.slice(0, PROBLEMS_SHOWN), rest = found.length - shown.length;
        announce(found);
        if (rest > 0) shown.push({ key: "rest", level: "warn", title: `${plural(rest, "more problem")}`, why: "", todo: "Under VMs, “with a problem” shows them." });
        keyed($("problems"), shown, (p) => p.key,
              () => el("li", {}, el("strong"), el("span", { class: "why" }), el("span", { class: "todo" })), (li, p) => {
                      setAttr(li, "data-level", p.level);
                      setText(li.children[0], p.title);
                      setText(li.children[1], sentence(p.why.replace(/^vCPU \d+: /, "")));
                      setRich(li.children[2], sentence(p.todo));
              });
        setHidden($("calm"), found.length > 0);
        setText($("calm-text"), "Nothing: no vCPU spins or is stuck, and nobody waits in vain.");
        if (map(doc.probes).ok === false) setText($("calm-text"), "Nothing that is known.");
        const name = found.length ? `(${found.length}) forkd` : "forkd";
        if (document.title !== name) document.title = name;
}
