/* SPDX-License-Identifier: MIT */
/* Elements, numbers for people, and lists that change in place. What forkd sends is text for us and never markup: it goes in by
 * textContent, and nothing here knows another way. */

const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

/* What is not seen, or turns the direction of what stands beside it: a reason could read like another. */
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/* What comes from the wire is what it says, or a default: a page must not die of a field. */
const num = (x, otherwise = 0) => (typeof x === "number" && Number.isFinite(x) ? x : otherwise);
const str = (x, otherwise = "") => (typeof x === "string" ? x.slice(0, 300).replace(UNSEEN, "\ufffd") : otherwise);
const list = (x) => (Array.isArray(x) ? x : []);
const map = (x) => (x !== null && typeof x === "object" && !Array.isArray(x) ? x : {});

function put(node, attrs, children) {
        for (const [name, value] of Object.entries(attrs || {})) {
                if (name === "text") node.textContent = value;
                else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
                else if (value === true) node.setAttribute(name, "");
                else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
        }
        node.append(...children.filter((c) => c !== null && c !== undefined));
        return node;
}
const el = (tag, attrs, ...children) => put(document.createElement(tag), attrs, children);
const svg = (tag, attrs, ...children) => put(document.createElementNS(SVG, tag), attrs, children);

/* What is already so is left alone: no layout, and no screen reader that hears it again. */
function setText(node, text) {
        if (node.textContent !== text) node.textContent = text;
}
function setAttr(node, name, value) {
        if (value === null) node.removeAttribute(name);
        else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}
function setHidden(node, hidden) {
        if (node.hidden !== hidden) node.hidden = hidden;
}

/* A text whose parts between backquotes are commands. */
function setRich(node, text) {
        if (node.rich === text) return;
        node.rich = text;
        node.replaceChildren(...text.split("`").map((part, i) => (i % 2 ? el("code", { text: part }) : part)).filter((part) => part));
}
function sentence(text) {
        const first = text.startsWith("vCPU") ? "v" : text.slice(0, 1).toUpperCase();
        return text && `${first}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/* Children of @parent, behind its @fixed first ones, become one per item, by key, in order; nodes that stay are kept, and moved only if they must
 * be: a node that moves loses the focus. */
function keyed(parent, items, keyOf, create, update, fixed = 0) {
        const old = parent.nodesByKey || new Map(), now = new Map();
        for (const item of items) now.set(keyOf(item), item);
        for (const [key, node] of old) {
                if (!now.has(key)) node.remove();
        }
        let at = parent.childNodes[fixed] || null;
        for (const [key, item] of now) {
                const node = old.get(key) || create(item);
                update(node, item);
                if (node === at) at = at.nextSibling;
                else parent.insertBefore(node, at);
                now.set(key, node);
        }
        parent.nodesByKey = now;
}

/* A text once a cell: rows of a table as [text | node, …]. */
function fillTable(table, heads, rows) {
        if (!table.tHead) {
                table.append(el("thead", {}, el("tr", {}, ...heads.map((h) => el("th", { scope: "col", class: h.num ? "num" : null, text: h.name })))),
                             el("tbody"));
        }
        keyed(table.tBodies[0], rows, (r) => r.key,
              () => el("tr", {}, ...heads.map((h, i) => el(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: h.num ? "num" : null }))),
              (tr, r) => r.cells.forEach((c, i) => (typeof c === "string" ? setText(tr.cells[i], c) : c(tr.cells[i]))));
}

/* Term and definition, each in a group. */
function fillFacts(dl, facts) {
        keyed(dl, facts, (f) => f[0], (f) => el("div", {}, el("dt", { text: f[0] }), el("dd"), el("dd", { class: "soft" })), (div, f) => {
                setText(div.children[1], f[1]);
                setText(div.children[2], f[2] || "");
                setHidden(div.children[2], !f[2]);
                setAttr(div, "data-level", f[3] || null);
        });
}

function fmtTime(s) {
        if (s <= 0) return "0";
        if (s < 1e-3) return `${(s * 1e6).toFixed(0)} µs`;
        if (s < 0.1) return `${(s * 1e3).toFixed(s < 0.01 ? 1 : 0)} ms`;
        if (s < 1) return `${(s * 1e3).toFixed(0)} ms`;
        if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
        return fmtLong(s);
}
function fmtLong(s) {
        const d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
        if (s < 60) return `${Math.floor(s)} s`;
        if (s < 3600) return `${m} min${s < 600 ? ` ${Math.floor(s % 60)} s` : ""}`;
        return d > 0 ? `${d} d ${h} h` : `${h} h ${m} min`;
}
function fmtBytes(n) {
        const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let i = 0;
        while (n >= 1024 && i < units.length - 1) {
                n /= 1024;
                i++;
        }
        return `${n.toFixed(i > 0 && n < 10 ? 1 : 0)} ${units[i]}`;
}
const fmtShare = (x) => (typeof x === "number" ? `${Math.round(num(x) * 100)} %` : "–"); /* not known: nobody looks */
const fmtRate = (x) => (x === 0 ? "0" : x < 10 ? x.toFixed(1) : Math.round(x).toLocaleString("en"));
const fmtKnown = (n) => (typeof n === "number" ? fmtCount(num(n)) : "–");
const fmtCount = (n) => Math.round(n).toLocaleString("en");
const plural = (n, one, many) => `${fmtCount(n)} ${n === 1 ? one : many || `${one}s`}`;
const clock = (ms) => {
        const t = new Date(ms);
        return Number.isNaN(t.getTime()) ? "?" : t.toTimeString().slice(0, 8);
};
const isoTime = (ms) => {
        const t = new Date(ms);
        return Number.isNaN(t.getTime()) ? null : t.toISOString();
};

/* A bar of shares of a whole. Parts tell themselves apart by colour, by pattern, and in the text beside. */
function bar(parts) {
        return el("span", { class: "bar", "aria-hidden": "true" }, ...parts.map((p) => el("span", { class: `part ${p}` })));
}
function setBar(node, shares) {
        shares.forEach((s, i) => {
                const width = `${(Math.min(Math.max(s, 0), 1) * 100).toFixed(1)}%`;
                if (node.children[i].style.width !== width) node.children[i].style.width = width;
        });
}

function spark() {
        return svg("svg", { class: "spark", viewBox: "0 0 60 16", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path"));
}
function setSpark(node, values, top) {
        const n = values.length, scale = Math.max(top, ...values);
        const points = values.map((v, i) => `${(60 - n + i + 0.5).toFixed(1)} ${(15 - (v / (scale || 1)) * 14).toFixed(1)}`);
        setAttr(node.firstChild, "d", n > 1 ? `M${points.join("L")}` : "M0 15H60");
}
