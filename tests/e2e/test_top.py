# SPDX-License-Identifier: MIT
"""`forkctl top` on a terminal, and `forkctl stats`, with a real forkd and real VMs."""

import json
import os
import re
import signal
import subprocess
import time

from case import Case, main, sanitized, until
from terminal import Terminal


def row(lines, name):
    """The words of a VM's row."""
    for line in lines:
        words = line.lstrip("> ").split()
        if words and words[0] == name:
            return words
    return []


def cpu(lines, name):
    """Its share of CPUs in per cent; -1: not known."""
    words = row(lines, name)
    return float(words[2].rstrip("%")) if len(words) > 2 and words[2].endswith("%") else -1


class Top(Case):
    # the pager is stopped for a while below: nobody shall take it for hung
    lab_options = {"config": "[monitor]\nwindow_ms = 500\n[pager]\nheartbeat_ms = 60000\n"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "128M", "--vcpus", "2")
        cls.lab.ctl("standby", "base", "--tag", "warm")
        cls.lab.ctl("fork", "warm", "web", "--count", "2")

    def top(self, *args, json_mode=False, **kw):
        return Terminal(self.lab.argv("top", "--interval", "0.2", *args, json_mode=json_mode), **kw)

    def run_ctl(self, *args, env=None):
        return subprocess.run(self.lab.argv(*args, json_mode=False), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=60, env={**self.lab.env, "LC_ALL": "C.UTF-8", **(env or {})})

    def probes(self):
        return self.lab.ctl("stats")["probes"]["ok"]

    # ---- the screen ----

    def test_screen(self):
        with self.top(rows=24, cols=120) as t:
            lines = t.until(lambda lines: row(lines, "web-1") and row(lines, "web-2"))
            self.assertIn("3 VMs: 2 running, 1 standby", lines[0])
            self.assertTrue(lines[1].startswith("probes  "), lines[1])
            self.assertIn("sessions: 2", lines[2])
            self.assertTrue(lines[3].startswith("host    memory ["), lines[3])
            self.assertEqual(lines[4].split()[:2], ["NAME", "HEALTH"])
            self.assertIn("q quit", lines[-1])
            if self.probes():
                self.lab.sh("web-1", "(while :; do :; done) & echo $! > /run/burns", timeout=30)
                t.until(lambda lines: cpu(lines, "web-1") > 10)  # what a busy host leaves it
                t.until(lambda lines: re.search("[▂-█]", "".join(row(lines, "web-1")[3:4])))
                self.lab.sh("web-1", "kill $(cat /run/burns)")
                t.until(lambda lines: 0 <= cpu(lines, "web-1") < 10)
            t.press("q")
            self.assertEqual(t.wait(), 0)

    def test_every_size(self):
        with self.top(rows=24, cols=80) as t:
            t.until("web-2")
            for rows, cols in ((5, 20), (50, 300), (2, 200), (1, 1), (3, 10), (24, 80)):
                t.resize(rows, cols)
                if rows >= 5:
                    lines = t.until(lambda lines: row(lines, "web-1"))
                    self.assertEqual(len(lines), rows)
            t.press("q")
            self.assertEqual(t.wait(), 0)
            self.assertTrue(t.is_as_before())

    def test_keys(self):
        with self.top(rows=24, cols=120) as t:
            t.until("web-2")
            t.press("n")
            t.until("(name)")
            t.until(lambda lines: lines[5].startswith("  base") and lines[6].startswith("  web-1"))
            t.press("r")
            t.until(lambda lines: lines[5].startswith("  web-2"))
            t.press("\x1bOB\x1bOB")  # two down
            t.until(lambda lines: lines[6].startswith("> web-1"))
            t.press("/WEB-1")
            t.until("/WEB-1_")
            t.until(lambda lines: "1 match" in lines[0] and not row(lines, "web-2") and row(lines, "web-1"))
            t.press("\x7f2\r")
            t.until(lambda lines: row(lines, "web-2") and not row(lines, "web-1"))
            t.press("\x1b")
            t.until(lambda lines: row(lines, "web-1") and row(lines, "base"))
            t.press("?")
            t.until("STUCK: a vCPU waits for a page")
            t.press(" ")
            t.until("web-2")
            t.press("/q\r")  # no end: it is a part of a name
            t.until("no VM matches the filter")
            t.press("\x03")
            self.assertEqual(t.wait(), -signal.SIGINT)

    def test_it_leaves_the_terminal_as_it_was(self):
        ends = [("q", 0), ("\x03", -signal.SIGINT), ("\x1c", -signal.SIGQUIT)]
        ends += [(s, -s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        for term in ("xterm", "screen", "linux", "xterm-256color"):
            for how, status in ends if term == "xterm" else ends[:1]:
                with self.subTest(term=term, how=how), self.top(term=term) as t:
                    t.until("web-2")
                    if term == "xterm":
                        self.assertTrue(t.screen.alternate)
                    self.assertFalse(t.screen.cursor)
                    if isinstance(how, str):
                        t.press(how)
                    else:
                        t.p.send_signal(how)
                    self.assertEqual(t.wait(), status)
                    self.assertTrue(t.is_as_before())

    def test_a_terminal_that_goes_away(self):
        t = self.top()
        try:
            t.until("web-2")
        finally:
            os.close(t.master)
            os.close(t.slave)
        try:
            t.p.wait(timeout=30)
        finally:
            t.p.kill()
            t.p.wait()

    def test_a_vm_comes_and_goes(self):
        with self.top(rows=24, cols=120) as t:
            t.until("web-2")
            self.lab.ctl("fork", "warm", "guest")
            t.until(lambda lines: row(lines, "guest"))
            self.lab.ctl("rm", "guest")
            if self.probes():
                t.until(lambda lines: row(lines, "guest")[1:2] == ["ended"])
            else:
                t.until(lambda lines: not row(lines, "guest"))

    def test_forkd_goes_and_comes_back(self):
        with self.top(rows=24, cols=120) as t:
            t.until("web-2")
            self.lab.terminate()
            try:
                lines = t.until("forkd is not there since")
                self.assertTrue(row(lines, "web-1"))  # what was known last
            finally:
                self.lab.start()
            t.until(lambda lines: "3 VMs" in lines[0] and "forkd is not there" not in "".join(lines))
            t.press("q")
            self.assertEqual(t.wait(), 0)
            self.assertTrue(t.is_as_before())

    def test_a_forkd_that_hangs_leaves_the_screen_alive(self):
        with self.top(rows=24, cols=120) as t:
            t.until("web-2")
            self.lab.forkd.send_signal(signal.SIGSTOP)
            try:
                t.until("forkd has not answered for")
                t.press("n")
                t.until("(name)")
            finally:
                self.lab.forkd.send_signal(signal.SIGCONT)
            t.until(lambda lines: "3 VMs" in lines[0])

    def test_a_pager_that_hangs_delays_nobody(self):
        pid = self.lab.ctl("stats")["pager"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            start = time.monotonic()
            doc = self.lab.ctl("stats")
            self.assertLess(time.monotonic() - start, 20)  # far from the heartbeat, which would end it
            self.assertIn("no answer", doc["pager"]["error"])
            self.assertEqual(len([v for v in doc["vms"] if v["state"] == "running"]), 2)
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: self.lab.ctl("stats")["pager"]["error"] is None)

    # ---- no screen ----

    def test_lists(self):
        # ncurses loses a block of memory on a terminal that it does not know, which a sanitizer does not forgive
        for term in ("dumb", *([] if sanitized() else ["no-such-terminal"])):
            with self.subTest(term=term), self.top("--count", "2", cols=120, term=term) as t:
                self.assertEqual(t.wait(), 0)
                self.assertNotIn(b"\x1b", t.raw)
                self.assertEqual(t.raw.count(b"NAME "), 2)
        p = self.run_ctl("top", "--count", "2", "--interval", "0.1")
        self.assertEqual((p.returncode, p.stdout.count("NAME "), p.stderr), (0, 2, ""))
        p = self.run_ctl("top", "--once", env={"LC_ALL": "C"})
        self.assertTrue(p.stdout.isascii())
        self.assertTrue(row(p.stdout.splitlines(), "web-1"))

    def test_json(self):
        p = subprocess.run(self.lab.argv("top", "--count", "3", "--interval", "0.1"), stdin=subprocess.DEVNULL, capture_output=True,
                           timeout=60)
        docs = [json.loads(line) for line in p.stdout.splitlines()]
        self.assertEqual(len(docs), 3)
        self.assertLess(docs[0]["uptime_ms"], docs[2]["uptime_ms"])

    # ---- stats ----

    def test_stats(self):
        before = self.lab.ctl("stats")
        self.lab.ctl("fork", "warm", "one")
        try:
            self.lab.sh("one", "find / -xdev -type f -exec cat {} + > /dev/null 2>&1; true")
            doc = {}

            def told():
                doc.update(self.lab.ctl("stats", "one"))
                waits = doc["vms"][0]["wait"]["count"] > 0 or not self.probes()
                return waits and doc["pager"]["error"] is None and doc["pager"]["served"]

            until(told)  # on a busy host the pager need not answer in time
            vm, = doc["vms"]
            self.assertEqual((vm["name"], vm["session"], vm["state"], len(vm["vcpus"])), ("one", "serving", "running", 2))
            if self.probes():
                self.assertTrue(vm["watched"])
                self.assertEqual(sum(n for _, n in vm["wait"]["buckets"]), vm["wait"]["count"])
                self.assertLessEqual(vm["wait"]["p50_s"], vm["wait"]["p99_s"])
                self.assertLessEqual(vm["wait"]["p99_s"], vm["wait"]["max_s"])
                self.assertGreater(sum(c["oncpu_s"] for c in vm["vcpus"]), 0)
            served, = doc["pager"]["served"]
            self.assertEqual(served["vm"], "one")
            self.assertGreater(served["faults"], 0)
            self.assertEqual(doc["operations"]["fork"]["count"], before["operations"]["fork"]["count"] + 1)
            self.assertGreaterEqual(sum(doc["pager"]["faults"].values()), served["faults"])
            text = self.run_ctl("stats", "one").stdout
            self.assertIn(f"one is running, health: {'ok' if self.probes() else 'unknown'}", text)
            self.assertIn("waits for memory: ", text)
            if self.probes():
                self.assertIn("█", text)
            text = self.run_ctl("stats").stdout
            self.assertTrue(row(text.splitlines(), "one"))
            self.assertIn("metrics at http://127.0.0.1:", text)
        finally:
            self.lab.ctl("rm", "one")
        if self.probes():
            vm, = self.lab.ctl("stats", "one")["vms"]
            self.assertEqual((vm["state"], vm["session"]), ("removed", "none"))
            self.assertGreaterEqual(vm["ended_ms"], 0)
        self.refused("stats", "nobody", code="not-found", says=["nobody"])
        self.assertEqual({s["tag"] for s in self.lab.ctl("stats")["snapshots"]}, {"warm"})

    def test_events_of_one_vm(self):
        self.lab.ctl("fork", "warm", "seen")
        self.lab.ctl("rm", "seen")
        p = subprocess.run(self.lab.argv("events", "seen", "--all", "--no-follow"), capture_output=True, timeout=60)
        events = [json.loads(line) for line in p.stdout.splitlines()]
        self.assertTrue(events)
        self.assertEqual({e["name"] for e in events}, {"seen"})
        p = subprocess.run(self.lab.argv("events", "--all", "--no-follow", "--kind", "pager"), capture_output=True, timeout=60)
        self.assertTrue(all(json.loads(line)["kind"].startswith("pager.") for line in p.stdout.splitlines()))


if __name__ == "__main__":
    main()
