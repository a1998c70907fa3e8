# SPDX-License-Identifier: MIT
"""forkd's page in a real browser: beside a real forkd whose VMs come and go, and with documents that no forkd could show in a minute
(hundreds of VMs, deep chains, hostile names, fields that are not there)."""

import json
import os
import pathlib
import random
import re
import socket
import sys
import time
import unittest
import urllib.error
import urllib.request

import case
from case import Case, main, until

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
import browser  # noqa: E402
from pagereplay import Replay, document, hist, more, snapshot, vm  # noqa: E402

HOSTILE = "<img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script>"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=20) as r:
        return r.read(), r.headers


# How the browser sees each text: its colour on what is behind it (of what is drawn in one colour).
CONTRAST = """
const lum = (c) => { const f = (v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
                     return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
const rgb = (s) => (s.match(/[\\d.]+/g) || []).map(Number);
const behind = (n) => { for (; n; n = n.parentElement) { const c = rgb(getComputedStyle(n).backgroundColor); if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
const bad = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let t; (t = walk.nextNode());) {
  const e = t.parentElement;
  if (!t.data.trim() || !e.getClientRects().length || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(e.tagName) || e.closest(".hidden, .skip, [aria-hidden=true], :disabled")) continue;
  const a = lum(rgb(getComputedStyle(e).color)), b = lum(behind(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${e.tagName}.${e.className}: ${t.data.slice(0, 30)}`);
}
return bad;
"""


class WithBrowser(Case):
    """One forkd and one browser for a class."""
    with_vms = True

    @classmethod
    def setUpClass(cls):
        reason = browser.why_not()
        if reason and os.environ.get("FORKD_TEST_NO_SKIP") != "1":
            print(f"SKIPPED: {reason}")
            raise unittest.SkipTest(reason)
        cls.port = free_port()
        cls.lab_options = {"config": f"[metrics]\nlisten = 127.0.0.1:{cls.port}\n", "setup": cls.with_vms}
        super().setUpClass()
        cls.url = f"http://127.0.0.1:{cls.port}/"
        cls.b = cls.enterClassContext_(browser.Browser(1280, 900))

    def setUp(self):
        self.b.resize(1280, 900)
        self.b.media(prefers_color_scheme="light", prefers_reduced_motion="no-preference")

    def quiet(self, but=()):
        """The page has logged nothing: no error, nothing that its policy has kept out."""
        said = [m for level, m in self.b.console() if not any(b in m for b in but)]
        self.assertEqual(said, [])

    def at(self, id):
        return self.b.js("const n = document.getElementById(arguments[0]); return n && !n.hidden && n.getClientRects().length ? n.innerText : ''", id)

    def rows(self):
        return self.b.js("return [...document.querySelectorAll('#vm-table tbody')].map((t) => t.rows[0].innerText.replace(/\\s+/g, ' ').trim())")

    def focused(self, what="return document.activeElement.id || document.activeElement.innerText.trim().split('\\n')[0]"):
        return self.b.js(what)

    def press(self, key):
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}[key]
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.b.cdp("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


class Replayed(WithBrowser):
    """forkd's page, and documents made up for it."""
    with_vms = False

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        page, headers = get(cls.url)
        cls.replay = cls.enterClassContext_(Replay(page, headers["Content-Security-Policy"]))

    def open(self, *docs, events=()):
        """The page with these documents, a second apart."""
        self.b.driver.get("about:blank")
        self.replay.hang_up()
        self.replay.refuse, self.replay.first = False, []
        until(lambda: not self.replay.listeners)
        self.b.console(), self.b.requests()
        self.replay.send({"anew": True, "missed": 0, "events": list(events)}, "events")
        self.b.driver.get(self.replay.url)
        self.replay.wait_for_listener()
        self.clock = 1.7e12
        self.drawn = 0
        for d in docs:
            self.show(d)

    def show(self, d):
        self.clock += 1000
        self.drawn += 1
        self.replay.send({**d, "now_ms": self.clock, "uptime_ms": self.clock - 1.69e12} if isinstance(d, dict) else d)
        until(lambda: int(self.b.js("return document.documentElement.dataset.pictures || 0")) >= self.drawn)

    def crowd(self):
        """300 VMs, a chain of 40, a fan of 100 snapshots."""
        r = random.Random(5)
        snaps = [snapshot(1, None, "base"), snapshot(2, 1, "warm", 1)]
        snaps += [snapshot(10 + i, 9 + i if i else 1, None, i + 1) for i in range(40)]
        snaps += [snapshot(100 + i, 2, f"fan-{i}", 2) for i in range(100)]
        vms = [vm(r, i, f"web-{i}", 2) for i in range(120)] + [vm(r, 200 + i, f"deep-{i}", 49) for i in range(3)]
        vms += [vm(r, 300 + i, f"sleeps-{i}", 100 + i % 100, "standby") for i in range(170)] + [vm(r, 600 + i, f"new-{i}", vcpus=4) for i in range(7)]
        return document(vms, snaps), vms, snaps

    def test_crowd_is_drawn_at_once_and_folded(self):
        d, vms, snaps = self.crowd()
        self.open(d, d)
        took = []
        r = random.Random(6)
        for _ in range(5):
            for v in vms[:123]:
                v["wait"] = more(v["wait"], r, 3, 18)
            self.show(document(vms, snaps))
            took.append(float(self.b.js("return document.documentElement.dataset.drawMs")))
        print(f"a picture of 300 VMs is drawn in {min(took):.0f} to {max(took):.0f} ms", file=sys.stderr)
        self.assertLess(min(took), 200)  # what others take from it on a busy host is not the page's
        self.assertEqual(len(self.rows()), 25)
        self.assertIn("Show all 300", self.at("vm-more"))
        boxes = self.b.js("return [...document.querySelectorAll('#tree [role=treeitem]')].map((n) => n.getAttribute('aria-label'))")
        self.assertLess(len(boxes), 30)
        self.assertTrue(any("snapshots in a row, folded" in x for x in boxes), boxes)
        self.assertTrue(any(x.startswith("96 more") for x in boxes), boxes)
        self.assertTrue(any("120 VMs: 120 running" in x for x in boxes), boxes)
        self.assertIn("142 snapshots, the longest chain has 41", self.at("tree-say"))
        self.assertIn("waits in the", self.at("heat-say"))
        self.b.js("document.getElementById('vm-more').click(); document.getElementById('tree-all').click()")
        self.assertEqual(len(self.rows()), 300)
        self.show(document(vms, snaps))
        self.b.js("document.getElementById('vm-more').click(); document.getElementById('tree-all').click()")
        self.quiet()

    def test_fits_a_phone(self):
        d, _, _ = self.crowd()
        d["vms"][3].update(health="spinning", why="its agent does not answer", name="a" * 63)
        d["snapshots"][2]["tag"] = "t" * 63
        for width in (320, 375, 768):
            self.b.resize(width, 640, mobile=width < 700)
            self.open(d, d)
            self.b.js("document.querySelector('#vm-table .name').click(); document.getElementById('heat-more').open = true")
            with self.subTest(width=width):
                self.assertLessEqual(self.b.js("return document.documentElement.scrollWidth"), width)
        self.quiet()

    def test_hostile_names_stay_text(self):
        r = random.Random(1)
        snaps = [dict(snapshot(1), tag=HOSTILE), dict(snapshot(2, 1), tag="javascript:alert(1)"), dict(snapshot(3, 1), parent=snapshot(3)["id"])]
        bad = vm(r, 1, HOSTILE, 1, health="spinning", why=HOSTILE, reason=HOSTILE, vmm=HOSTILE, on_pager_loss=HOSTILE)
        circle = [dict(snapshot(5, 6)), dict(snapshot(6, 5))]
        served = [{"vm": HOSTILE, "image": HOSTILE, "faults": 1, "pages_installed": 1, "oldest_fault_ms": 0, "wait": hist(r, 3, 18)}]
        pager = dict(document()["pager"], served=served, faults={HOSTILE: 3, "__proto__": 1}, threads=[{"name": HOSTILE, "role": HOSTILE}])
        d = document([bad, vm(r, 2, "failed", 1, "failed", reason="txt.\u202eexe\u200b"), vm(r, 3, "__proto__", 2)], snaps + circle, pager=pager,
                     probes={"ok": False, "reason": HOSTILE, "hint": HOSTILE, "method": HOSTILE}, pools=[{"name": HOSTILE, "size": 4, "warm": 2, "from": HOSTILE}],
                     metrics_error=HOSTILE, version=HOSTILE, store={HOSTILE: 4, "total": 10, "free": 1})
        events = [{"number": 1, "time_ns": 1e30, "kind": HOSTILE, "name": HOSTILE, "id": "", "text": HOSTILE}]
        self.open(d, d, events=events)
        self.b.js("document.querySelector('#vm-table .name').click()")
        self.assertIsNone(self.b.js("return window.pwned"))
        self.assertEqual(self.b.js("return document.querySelectorAll('main img, main script, main a[href^=javascript]').length"), 0)
        self.assertIn("<img src=x", self.at("problems"))
        self.assertIn("<img src=x", self.at("event-list"))
        self.assertIn("Txt.\ufffdexe\ufffd", self.at("problems"))
        self.assertEqual(self.b.js("return document.querySelectorAll('#tree [role=treeitem]').length"), 5)
        self.assertEqual([u for u in self.b.requests() if not u.startswith((self.replay.url, "data:", "about:", "chrome:"))], [])
        self.quiet()

    def test_odd_documents_do_no_harm(self):
        r = random.Random(1)
        whole = document([vm(r, 1, "one", 1, vcpus=2)], [snapshot(1)])
        self.open(whole)
        odd = [{}, {"vms": None, "pager": 3, "snapshots": "x"}, {**whole, "vms": [None, 3, {}, {"name": 5}, whole["vms"][0]]}]
        odd += [{**whole, k: v} for k in whole for v in (None, [], "x", -1, {"a": None})]
        odd += [{**whole, "vms": [{**whole["vms"][0], k: v}]} for k in whole["vms"][0] for v in (None, [[]], "x", -1e300)]
        for d in odd:
            self.show(d)
        self.replay.send([], "picture")
        with self.replay.lock:
            for q in self.replay.listeners:
                q.put(b"event: picture\ndata: {not json\n\n")
        self.show(whole)
        self.assertTrue(any("one" in row for row in self.rows()), self.rows())
        self.quiet()

    def test_counters_that_go_back_are_no_flood(self):
        r = random.Random(1)
        v = vm(r, 1, "one", 1)
        v["wait"] = hist(r, 100000, 18)
        self.open(document([v]), document([v]))
        self.assertIn("no wait for memory", self.at("heat-say"))
        v["wait"] = more({"buckets": []}, r, 7, 18)
        self.show(document([v]))
        self.assertRegex(self.at("heat-say"), r"^7 waits")
        # minutes without the page: nobody knows when what was counted meanwhile happened
        v["wait"] = more(v["wait"], r, 500, 18)
        self.clock += 120000
        self.show(document([v]))
        self.assertRegex(self.at("heat-say"), r"^7 waits")
        self.quiet()

    def test_what_forkd_remembers(self):
        r = random.Random(1)
        v = vm(r, 1, "one", 1)
        self.open()
        self.replay.send({"now_ms": self.clock + 900, "known_s": 200, "seconds": [[150, [[2 ** 20 / 1e9, 9], [None, 1]]], [0, [[2 ** 14 / 1e9, 5]]], [7, "x"], None]}, "lately")
        self.show(document([v]))
        self.assertRegex(self.at("heat-say"), r"^10 waits in the 3 min (1\d|20) s seen: .* the longest more than 69 s")
        v["wait"] = more(v["wait"], r, 3, 18)
        self.show(document([v]))
        self.assertRegex(self.at("heat-say"), r"^13 waits")
        # of one VM nothing was remembered: not seen, which is not the same as none
        self.b.js("const s = document.getElementById('heat-vm'); s.value = 'one'; s.dispatchEvent(new Event('change'))")
        self.assertRegex(self.at("heat-say"), r"^one: 3 waits in the \d s seen")
        # told again after the connection was lost: what was seen here stays
        self.b.js("const s = document.getElementById('heat-vm'); s.value = ''; s.dispatchEvent(new Event('change'))")
        self.replay.send({"now_ms": self.clock, "known_s": 300, "seconds": [[0, [[2 ** 20 / 1e9, 3]]], [250, [[2 ** 20 / 1e9, 4]]]]}, "lately")
        self.show(document([v]))
        self.assertRegex(self.at("heat-say"), r"^17 waits in the (4 min 5\d s|5 min 0 s) seen")
        self.quiet()

    def test_nobody_looks(self):
        r = random.Random(1)
        v = vm(r, 1, "one", 1, watched=False, wait=hist(r, 0, 18), health="unknown")
        v["vcpus"][0].update(oncpu=None, runqueue=None, memory=None, exits=None, halts=None)
        d = document([v], probes={"ok": False, "method": "none", "kvm": False, "reason": "bpf(2) is not permitted", "hint": "give forkd CAP_BPF"})
        for t in d["pager"]["threads"]:
            t.update(oncpu=None, runqueue=None, lock=None, disk=None)
        self.open(d, d, d)
        self.assertEqual(self.rows(), ["one ●running ?unknown ? ? – ? 256 MiB " + v["snapshot"][:8]])
        self.assertIn("Bpf(2) is not permitted", self.at("problems"))
        self.assertIn("Nobody looks", self.at("heat-say"))
        self.assertIn("Longest wait now\n?\nnobody looks", self.at("tiles"))
        self.assertEqual(self.at("pager-say"), "Its threads are not seen.")
        self.b.js("document.querySelector('#vm-table .name').click()")
        self.assertRegex(self.b.js("return document.querySelector('.inside tbody').innerText"), r"(idle|oncpu)\s+–\s+–\s+–\s+–")
        self.quiet()

    def test_spinning_is_told_once(self):
        r = random.Random(1)
        v = [vm(r, i, f"web-{i}", 1) for i in range(3)]
        self.open(document(v), document(v))
        self.assertIn("Nothing: no vCPU spins", self.at("calm"))
        v[1].update(health="spinning", why="its agent does not answer")
        v[1]["vcpus"][0]["spinning"] = True
        self.b.js("""window.heard = []; new MutationObserver(() => window.heard.push(document.getElementById('announce').textContent))
                     .observe(document.getElementById('announce'), {childList: true, characterData: true, subtree: true})""")
        for _ in range(4):
            self.show(document(v))
        self.assertIn("web-1, vCPU 0 is spinning", self.at("problems"))
        self.assertIn("forkctl logs web-1", self.at("problems"))
        self.assertTrue(self.b.js("return document.querySelector('#tree [data-loud]').getAttribute('aria-label')").count("web-1 spinning"))
        self.assertEqual(self.b.js("return window.heard"), ["web-1, vCPU 0 is spinning"])
        self.assertEqual(self.b.driver.title, "(1) forkd")
        until(lambda: self.show(document(v)) or "web-1" in self.rows()[0])  # worst first, in an order that is made every few seconds
        v[1].update(health="ok", why=None)
        v[1]["vcpus"][0]["spinning"] = False
        self.show(document(v))
        self.assertEqual(self.b.js("return window.heard.at(-1)"), "over: web-1, vCPU 0 is spinning")
        self.quiet()

    def test_connection_lost_and_back(self):
        r = random.Random(1)
        d = document([vm(r, 1, "one", 1)], [snapshot(1)])
        event = {"number": 1, "time_ns": 1e18, "kind": "vm.state", "name": "one", "id": "", "text": "of the first forkd"}
        self.open(d, events=[event])
        self.assertEqual(self.at("link-text"), "Live")
        self.assertIn("of the first forkd", self.at("event-list"))
        self.replay.refuse = True
        self.replay.hang_up()
        until(lambda: "Connection lost" in self.at("link-text"))
        self.assertIn("old", self.at("lost"))
        self.assertEqual(self.at("announce") or self.b.js("return document.getElementById('announce').textContent"), "The connection to forkd is lost.")
        self.assertIn("one", self.rows()[0])
        # the next one numbers its events from 1 again
        self.replay.first = []
        self.replay.send({"anew": True, "missed": 0, "events": [{**event, "time_ns": 2e18, "text": "of the second"}]}, "events")
        self.replay.send({**d, "now_ms": self.clock + 1000, "uptime_ms": 1})
        self.replay.refuse = False
        until(lambda: self.at("link-text") == "Live")
        self.assertEqual(self.at("lost"), "")
        self.assertIn("of the second", self.at("event-list"))
        self.assertNotIn("of the first forkd", self.at("event-list"))
        self.quiet(but=["/live"])

    def test_keyboard(self):
        d, _, _ = self.crowd()
        self.open(d, d)
        seen, bare = [], []
        for _ in range(150):
            self.press("Tab")
            where, outline, seen_box = self.b.js("""const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
                return [e.id || e.getAttribute('role') || e.className || e.tagName, s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2, r.width * r.height > 0]""")
            if where in ("BODY", "HTML"):
                break
            seen.append(where)
            if not outline or not seen_box:
                bare.append(where)
        self.assertEqual(bare, [])
        for what in ("skip", "vm-filter", "vm-show", "name", "plain", "vm-more", "heat-vm", "heat", "tree-all", "treeitem", "event-kind"):
            self.assertIn(what, seen)
        self.assertEqual(seen.count("treeitem"), 1)  # the tree is one stop, arrows go on inside
        # the skip link, the tree, a fold, the heat map
        self.b.js("document.querySelector('.skip').focus()")
        self.press("Enter")
        self.assertEqual(self.focused(), "main")
        self.b.js("document.querySelector('#tree [tabindex=\"0\"]').focus()")
        before = self.b.js("return document.querySelectorAll('#tree [role=treeitem]').length")
        for _ in range(60):
            if "folded" in self.focused("return document.activeElement.getAttribute('aria-label')"):
                break
            self.press("ArrowDown")
        self.press("ArrowRight")
        self.assertEqual(self.focused("return document.activeElement.getAttribute('aria-expanded')"), "true")
        self.assertGreater(self.b.js("return document.querySelectorAll('#tree [role=treeitem]').length"), before)
        self.show(d)  # a picture takes no focus away
        self.assertEqual(self.focused("return document.activeElement.getAttribute('aria-expanded')"), "true")
        self.b.js("document.getElementById('heat').focus()")
        self.press("ArrowLeft")
        self.assertRegex(self.at("heat-read"), r"\d\d:\d\d:\d\d, up to .*: (\d+ waits?|not seen)")
        # a row unfolds and stays where it is while somebody is in it
        self.b.js("document.querySelector('#vm-table .name').focus()")
        name = self.focused()
        self.press("Enter")
        self.assertEqual(self.focused("return document.activeElement.getAttribute('aria-expanded')"), "true")
        for _ in range(5):
            self.show(d)
        self.assertEqual(self.focused(), name)
        self.quiet()

    def test_what_a_screen_reader_has(self):
        d, _, _ = self.crowd()
        d["pools"] = [{"name": "warm", "size": 4, "warm": 3, "from": d["snapshots"][1]["id"]}]
        self.open(d, d)
        self.b.js("document.querySelector('#vm-table .name').click()")
        self.b.cdp("Accessibility.enable")
        nodes = [n for n in self.b.cdp("Accessibility.getFullAXTree")["nodes"] if not n.get("ignored")]
        of = lambda n: (n["role"]["value"], n.get("name", {}).get("value", ""))  # noqa: E731
        roles = {}
        for role, name in map(of, nodes):
            roles.setdefault(role, []).append(name)
        for role in ("button", "link", "searchbox", "combobox", "treeitem", "tree", "table", "region", "navigation", "image", "columnheader"):
            self.assertIn(role, roles)
        nameless = [(role, i) for role in ("button", "link", "searchbox", "combobox", "treeitem", "tree", "navigation", "image", "columnheader", "rowheader", "form", "search")
                    for i, name in enumerate(roles.get(role, [])) if not name.strip()]
        self.assertEqual(nameless, [])
        self.assertEqual(len(roles["main"]), 1)
        self.assertIn("banner", roles)
        self.assertIn("contentinfo", roles)
        headings = [name for role, name in map(of, nodes) if role == "heading"]
        self.assertEqual(headings[:2], ["forkd", "What needs you"])
        ids = self.b.js("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
        self.assertEqual(len(ids), len(set(ids)))
        broken = self.b.js("""return ['aria-labelledby', 'aria-describedby', 'aria-controls'].flatMap((a) => [...document.querySelectorAll(`[${a}]`)]
                              .flatMap((e) => e.getAttribute(a).split(' ').filter((id) => !document.getElementById(id))))""")
        self.assertEqual(broken, [])
        # what is said by itself: two places, and the figures are in neither
        self.assertEqual(self.b.js("return [...document.querySelectorAll('[aria-live], [role=status], [role=alert]')].map((e) => e.id)"), ["announce", "heat-read"])
        self.b.cdp("Accessibility.disable")
        # on a phone the table is drawn as cards, and still is a table
        self.b.resize(320, 640, mobile=True)
        nodes = [n for n in self.b.cdp("Accessibility.getFullAXTree")["nodes"] if not n.get("ignored")]
        found = [n["role"]["value"] for n in nodes]
        for role, least in (("table", 1), ("columnheader", 9), ("rowheader", 10), ("row", 11), ("cell", 80)):
            self.assertGreaterEqual(found.count(role), least, role)

    def test_colours(self):
        d, _, _ = self.crowd()
        d["vms"][3].update(health="spinning", why="its agent does not answer")
        d["vms"][4].update(state="failed")
        d["probes"].update(ok=False, reason="not permitted")
        for scheme in ("light", "dark"):
            self.b.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
            self.open(d, d)
            with self.subTest(scheme=scheme):
                self.assertEqual(self.b.js(CONTRAST), [])
                moves = self.b.js("""return [...document.querySelectorAll('*')].filter((e) => { const s = getComputedStyle(e);
                    return s.transitionDuration !== '0s' || s.animationName !== 'none' || s.scrollBehavior !== 'auto'; }).map((e) => e.className)""")
                self.assertEqual(moves, [])


class Real(WithBrowser):
    """A real forkd, whose VMs come and go below the page."""

    def test_1_headers(self):
        page, headers = get(self.url)
        policy = headers["Content-Security-Policy"]
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("unsafe", policy)
        self.assertNotIn("*", policy)
        self.assertTrue(headers["Content-Type"].startswith("text/html"))
        self.assertNotRegex(page.decode(), r"(?i)(src|href)=[\"']?(https?:)?//")

    def test_2_follows_what_happens(self):
        self.b.driver.get(self.url)
        until(lambda: self.at("link-text") == "Live")
        self.assertIn("No VMs yet", self.at("vm-count"))
        self.assertIn("There are no pools", self.at("pools-none"))
        self.lab.ctl("run", "first", "--mem", "128M")
        until(lambda: any("first ●running" in row for row in self.rows()))
        snap = self.lab.ctl("standby", "first", "--tag", "warm")["snapshot"]
        until(lambda: any("first ○standby" in row and "warm" in row for row in self.rows()))
        self.lab.ctl("fork", "warm", "clone", "--count", "3")
        until(lambda: sum("●running" in row for row in self.rows()) == 3)
        label = "return [...document.querySelectorAll('#tree [role=treeitem]')].map((n) => n.getAttribute('aria-label')).join(' | ')"
        until(lambda: "clone-2 running" in self.b.js(label))
        self.assertIn(f"id {snap}", self.b.js(label))
        until(lambda: "vm.state" in self.at("event-list") and "clone-1" in self.at("event-list"))
        until(lambda: re.search(r"fork, each clone\s+3\s+0", self.b.js("return document.getElementById('ops').innerText")))
        until(lambda: "clone-1" in self.b.js("return document.getElementById('pager-served').innerText"))
        self.lab.ctl("rm", "clone-1")
        until(lambda: not any("clone-1" in row for row in self.rows()))
        self.quiet()

    def test_3_waits_are_seen(self):
        probes = self.b.js("return document.getElementById('host-facts').innerText")
        if "nobody" in probes:
            self.skipTest(f"no probes here: {probes}")
        self.lab.ctl("fork", "warm", "busy")
        self.lab.sh("busy", "find / -xdev -type f 2>/dev/null | head -200 | xargs cat > /dev/null")
        until(lambda: "wait" in self.at("heat-say") and "no wait" not in self.at("heat-say"))
        self.lab.ctl("rm", "busy")
        # whoever comes later is told of it, too
        self.b.driver.get("about:blank")
        self.b.driver.get(self.url)
        until(lambda: re.match(r"\d+ waits? in the", self.at("heat-say")))
        self.quiet()

    def test_4_comes_back_with_forkd(self):
        self.lab.terminate()
        until(lambda: "Connection lost" in self.at("link-text"))
        self.lab.start()
        until(lambda: self.at("link-text") == "Live", timeout=30)
        until(lambda: any("clone-2 ●running" in row for row in self.rows()))
        self.quiet(but=["/live"])

    def test_5_asks_nobody_else(self):
        self.b.driver.get(self.url)
        until(lambda: self.at("link-text") == "Live")
        asked = self.b.requests()
        self.assertIn(f"{self.url}live", asked)
        self.assertEqual([u for u in asked if not u.startswith((self.url, "data:", "about:", "chrome:"))], [])

    def test_6_only_so_many_listen(self):
        held = []
        self.b.driver.get("about:blank")
        try:
            codes = []
            for _ in range(20):
                s = socket.create_connection(("127.0.0.1", self.port), timeout=20)
                held.append(s)
                s.sendall(f"GET /live HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
                codes.append(s.recv(12).decode())
            self.assertLessEqual(codes.count("HTTP/1.1 200"), 16)
            self.assertGreaterEqual(codes.count("HTTP/1.1 503"), 4)
        finally:
            for s in held:
                s.close()
        self.b.driver.get(self.url)
        until(lambda: self.at("link-text") == "Live")

    def test_7_the_document_is_json(self):
        with urllib.request.urlopen(self.url + "live", timeout=20) as r:
            self.assertEqual(r.headers["Content-Type"], "text/event-stream")
            kind = None
            while kind != "picture":
                line = r.readline().decode()
                if line.startswith("event: "):
                    kind = line[7:].strip()
            doc = json.loads(r.readline().decode()[6:])
        self.assertEqual({v["name"] for v in doc["vms"] if v["ended_ms"] is None}, {v["name"] for v in self.lab.ctl("ps")})


if __name__ == "__main__":
    main()
