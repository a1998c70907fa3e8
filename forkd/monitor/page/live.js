/* SPDX-License-Identifier: MIT */
/* The stream from forkd and what is done with it. A picture replaces the one before it, so one that is missed costs nothing.
 * The connection is made again for as long as the page is open; meanwhile the page says how old is what it shows. */

const RETRY_MS = 1000, RETRY_MAX_MS = 10000, QUIET_MS = 5000;
const EVENTS_KEPT = 500, EVENTS_SHOWN = 40;
const live = { source: null, state: "wait", retry: RETRY_MS, timer: 0, since: performance.now(), why: "", events: [], allEvents: false };

function setLink(state, why = "") {
        if (live.state !== state) live.since = performance.now();
        if (state === "lost" && live.state === "live") setText($("announce"), "The connection to forkd is lost.");
        if (state === "live" && live.state === "lost") setText($("announce"), "Connected again.");
        live.state = state;
        live.why = why;
        drawLink();
}

/* Once a second: what is said grows older by itself. */
function drawLink() {
        const age = model.doc ? (performance.now() - model.at) / 1e3 : 0, quiet = live.state === "live" && model.doc && age * 1e3 > QUIET_MS;
        const state = quiet ? "quiet" : live.state;
        setAttr($("link"), "data-link", state);
        setText($("link-text"), { live: "Live", wait: "Connecting …", quiet: `No picture for ${fmtLong(age)}`, lost: `Connection lost ${fmtLong((performance.now() - live.since) / 1e3)} ago` }[state]);
        setHidden($("lost"), state === "live" || state === "wait");
        const old = model.doc ? `What you see is ${fmtLong(age)} old.` : "Nothing has been seen yet.";
        setText($("lost"), state === "quiet" ? `forkd is connected and sends no picture${live.why ? `: ${live.why}` : ""}. ${old}` : `No connection to forkd; it is tried again and again. ${old}`);
        setAttr(document.body, "data-stale", state === "lost" || state === "quiet" ? "yes" : null);
}

function draw() {
        const doc = model.doc, begun = performance.now();
        drawProblems(doc);
        drawTiles(doc);
        drawVms();
        drawHeat();
        drawTree();
        drawPager(doc);
        drawOperations(doc);
        drawPools(doc);
        drawHost(doc);
        setText($("version"), `${str(doc.version)} · up ${fmtLong(num(doc.uptime_ms) / 1e3)}`);
        document.documentElement.dataset.drawMs = (performance.now() - begun).toFixed(1);
        document.documentElement.dataset.pictures = String(num(document.documentElement.dataset.pictures * 1) + 1);
}

function parsed(text) {
        try {
                return map(JSON.parse(text));
        } catch {
                return null;
        }
}

function onPicture(e) {
        const doc = parsed(e.data);
        if (!doc) return;
        ingest(doc);
        setLink("live");
        if (!document.hidden) draw();
}

function onEvents(e) {
        const got = map(parsed(e.data));
        if (got.anew) live.events = [];
        live.events.push(...list(got.events).map(map).map((x) => ({ number: num(x.number), ms: num(x.time_ns) / 1e6, kind: str(x.kind, "?"), name: str(x.name), text: str(x.text) })));
        live.events = live.events.slice(-EVENTS_KEPT);
        drawEvents();
}

function onLately(e) {
        recall(map(parsed(e.data)));
}

function drawEvents() {
        const kind = $("event-kind").value, wanted = live.events.filter((x) => x.kind.startsWith(kind)).reverse();
        const shown = live.allEvents ? wanted : wanted.slice(0, EVENTS_SHOWN);
        keyed($("event-list"), shown, (x) => `${x.number} ${x.ms}`, /* a forkd that began anew counts from 1 again */
              (x) => el("li", { "data-kind": x.kind }, el("time", { datetime: isoTime(x.ms), text: clock(x.ms) }), el("span", { class: "kind", text: x.kind }),
                        el("span", { class: "what" }, x.name ? el("strong", { text: x.name }) : null, x.name ? " " : null, x.text)),
              () => {});
        setHidden($("events-none"), wanted.length > 0);
        setText($("events-none"), live.events.length ? "None of this kind." : "Nothing has happened yet.");
        setHidden($("event-more"), wanted.length <= EVENTS_SHOWN);
        setText($("event-more"), live.allEvents ? `Show the newest ${EVENTS_SHOWN}` : `Show all ${fmtCount(wanted.length)}`);
}

/* The browser's own second try is not waited for: it gives up for good when forkd answers with an error, as when too many listen. */
function connect() {
        clearTimeout(live.timer);
        const source = (live.source = new EventSource("/live"));
        source.addEventListener("open", () => (live.retry = RETRY_MS));
        source.addEventListener("picture", onPicture);
        source.addEventListener("events", onEvents);
        source.addEventListener("lately", onLately);
        source.addEventListener("trouble", (e) => {
                live.why = str(map(parsed(e.data)).error);
                drawLink();
        });
        source.addEventListener("error", () => {
                source.close();
                if (live.source !== source) return;
                setLink("lost");
                live.timer = setTimeout(connect, live.retry);
                live.retry = Math.min(live.retry * 1.5, RETRY_MAX_MS);
        });
}

function main() {
        startVms();
        startTree();
        startHeat();
        for (const f of document.querySelectorAll("form")) f.addEventListener("submit", (e) => e.preventDefault());
        $("event-kind").addEventListener("change", drawEvents);
        $("event-more").addEventListener("click", () => {
                live.allEvents = !live.allEvents;
                drawEvents();
        });
        $("served-more").addEventListener("click", () => {
                servedView.all = !servedView.all;
                if (model.doc) drawPager(model.doc);
        });
        document.addEventListener("visibilitychange", () => !document.hidden && model.doc && draw());
        addEventListener("online", () => live.state === "lost" && connect());
        setInterval(drawLink, 1000);
        connect();
}
main();
