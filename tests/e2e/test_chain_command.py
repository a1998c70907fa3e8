# SPDX-License-Identifier: MIT
"""forkctl chain: what it measures and verifies, what it does when a step fails, a clone holds what it should not, somebody interrupts
it or forkd dies; and that nothing of it is left behind."""

import json
import os
import signal
import subprocess

from case import Case, MIB, main, until

STEPS = ("standby", "pause", "source_pause", "fork", "load", "ack", "first_exec")
SMALL = ("--mem", "128M", "--dirty", "256K", "--warmup", "0")
# Whatever wakes up from a snapshot overwrites what the chain has written.
VANDAL = """#!/bin/sh
[ "$FORKD_KIND" = restore ] && [ -e /run/forkctl-chain/1 ] && echo vandal > /run/forkctl-chain/1
exit 0
"""


class ChainCommand(Case):
    def chain(self, *args, code=0):
        """Runs it to its end; the document."""
        p = subprocess.run(self.lab.argv("chain", *SMALL, *args), stdin=subprocess.DEVNULL, capture_output=True, timeout=200)
        self.assertEqual(p.returncode, code, (p.stdout[-3000:], p.stderr))
        self.assertEqual(p.stderr, b"")
        return json.loads(p.stdout)

    def begin(self, *args):
        """Starts a long one, and waits until its second link is under way."""
        p = subprocess.Popen(self.lab.argv("chain", *SMALL, "--depth", "100", *args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        self.lab.children.append(p)
        until(lambda: p.poll() is not None or any("-d2-" in vm["name"] for vm in self.lab.ctl("ps")), 60)
        self.assertIsNone(p.poll())
        return p

    def nothing_left(self, vms=(), snapshots=()):
        self.assertEqual({vm["name"] for vm in self.lab.ctl("ps")}, set(vms))
        self.assertEqual({s["id"] for s in self.lab.ctl("snapshot", "ls")}, set(snapshots))
        self.assertEqual(list(self.lab.dir.glob("forkctl-chain-*")), [])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        os.environ["TMPDIR"] = str(cls.lab.dir)  # where it makes the guest's disk

    def times(self, t, n, known=True):
        self.assertEqual(set(t), {"p50", "p95", "p99", "max", "n"})
        self.assertEqual(t["n"], n)
        if n:
            self.assertTrue(0 < t["p50"] <= t["p95"] <= t["p99"] <= t["max"], t)
        else:
            self.assertIsNone(t["p50"])

    def test_1_standby(self):
        page = self.lab.dir / "report.html"
        doc = self.chain("--depth", "3", "--fanout", "2", "--html", page, "--fail-over", "fork_p99_ms=60000,failures=0")
        self.assertEqual(doc["failures"], [])
        self.assertEqual([d["depth"] for d in doc["depths"]], [1, 2, 3])
        for d in doc["depths"]:
            n = 0 if d["depth"] == 1 else 1
            for step in ("fork", "load", "ack", "first_exec"):
                self.times(d[f"{step}_ms"], 2)
                self.times(d["reference"][f"{step}_ms"], 2 * n)
            for step in ("standby", "pause"):
                self.times(d[f"{step}_ms"], 1)
                self.times(d["reference"][f"{step}_ms"], n)
            self.times(d["source_pause_ms"], 0)
            self.assertGreater(d["dirty_bytes"], 256 << 10)
            self.assertLess(d["dirty_bytes"], 32 * MIB)
            self.assertTrue(0 < d["stored_bytes"] < d["dirty_bytes"], d)
            self.assertTrue(0 < d["private_bytes"] < 64 * MIB, d)
            self.assertEqual(d["verified"], 2)
            self.assertGreater(sum(d["faults"].values()), 0)
        self.assertEqual(doc["overall"]["verified"], 6)
        self.assertEqual(doc["overall"]["fork_ms"]["n"], 6)
        self.assertGreater(doc["overall"]["fork_slope"], 0)
        self.assertLess(doc["overall"]["disk_ratio"], 0.5)
        self.assertTrue(all(f["ok"] for f in doc["fail_over"]))
        for key in ("kernel", "cpu", "forkd", "vmm", "vmm_version", "accel"):
            self.assertTrue(doc["host"][key], key)
        html = page.read_text()
        self.assertIn("<svg", html)
        for outside in ("http:", "https:", "src=", "href=", "url(", "<script"):
            self.assertNotIn(outside, html)
        self.nothing_left()
        ChainCommand.doc = doc

    def test_2_live(self):
        doc = self.chain("--depth", "2", "--fanout", "2", "--live", "--fail-over", "source_pause_p50_ms=0.000001,slope=1000", code=1)
        self.assertEqual(doc["failures"], [])
        for d in doc["depths"]:
            self.times(d["source_pause_ms"], 2)
            self.times(d["standby_ms"], 0)
            self.assertGreater(d["held_bytes"], 0)
            self.assertEqual(d["verified"], 2)
        self.assertEqual([(f["key"], f["ok"]) for f in doc["fail_over"]], [("source_pause_p50_ms", False), ("slope", True)])
        self.nothing_left()

    def test_3_comparison(self):
        a, b = self.lab.dir / "a.json", self.lab.dir / "b.json"
        a.write_text(json.dumps(self.doc))
        for d in self.doc["depths"]:
            d["fork_ms"]["p50"] *= 2
        b.write_text(json.dumps(self.doc))
        cmp = self.lab.ctl("chain", "--compare", a, b)
        row = next(r for r in cmp["rows"] if r["name"] == "fork_ms")
        self.assertAlmostEqual(row["ratio"], 2)
        self.assertEqual(row["verdict"], "too few")
        self.assertEqual(cmp["notes"], [])
        p = subprocess.run(self.lab.argv("chain", "--compare", a, b, "--fail-over", "fork_p50_ms=0.001", json_mode=False), capture_output=True)
        self.assertEqual(p.returncode, 1, p.stderr)
        self.assertIn(b"OVER: fork_p50_ms of B", p.stdout)
        self.refused("chain", "--compare", a, self.lab.conf, says=["no JSON"])

    def test_4_wrong_usage(self):
        for args in (["--depth", "0"], ["--depth", "513"], ["--fanout", "65"], ["--mem", "1M"], ["--dirty", "4K"], ["--mem", "64M", "--dirty", "17M"],
                     ["--fail-over", "fork_p98_ms=1"], ["--fail-over", ""], ["--live", "--no-sync"], ["--from", "a/b"],
                     ["--from", "x", "--mem", "128M"], ["--compare", "a.json"], ["--compare", "a.json", "b.json", "--depth", "3"], ["b.json"]):
            p = subprocess.run(self.lab.argv("chain", *args), capture_output=True)
            self.assertEqual(p.returncode, 2, (args, p.stdout))
            self.assertEqual(json.loads(p.stdout)["error"]["code"], "usage")
        self.refused("chain", "--from", "nobody", code="not-found")
        self.refused("chain", "--html", "/proc/nowhere/x.html")
        self.refused("chain", "--mem", "1000G", says=["1000"])
        self.nothing_left()

    def test_5_another_guest_and_one_that_forgets(self):
        self.lab.ctl("run", "mine", "--mem", "128M")
        self.lab.sh("mine", "echo keep > /run/mark")
        doc = self.chain_from("mine", "--depth", "1", "--fanout", "2")
        self.assertEqual(doc["failures"], [])
        self.assertFalse(doc["plan"]["disk"])
        self.assertEqual(self.lab.text("mine", "cat /run/mark"), "keep")
        self.assertNotIn("forkctl-chain", self.lab.text("mine", "ls /run"))
        self.nothing_left(["mine"])
        # each clone of this one has lost a part of its memory when it wakes up; which is seen, told, and the chain goes on
        self.lab.sh("mine", "mkdir -p /etc/forkd/resume.d; cat > /etc/forkd/resume.d/vandal; chmod +x /etc/forkd/resume.d/vandal",
                    stdin=VANDAL.encode())
        self.lab.ctl("standby", "mine", "--tag", "spoiled")
        kept = [s["id"] for s in self.lab.ctl("snapshot", "ls")]
        doc = self.chain_from("spoiled", "--depth", "2", "--fanout", "2", code=1)
        self.assertEqual([(f["depth"], f["step"]) for f in doc["failures"]], [(1, "verify")] * 2 + [(2, "verify")] * 2)
        self.assertIn("memory of slot 1", doc["failures"][0]["reason"])
        self.assertEqual(doc["overall"]["verified"], 0)
        self.assertEqual(doc["overall"]["fork_ms"]["n"], 4)
        self.nothing_left(["mine"], kept)
        self.lab.ctl("rm", "mine")
        self.lab.ctl("snapshot", "rm", "spoiled")

    def chain_from(self, source, *args, code=0):
        p = subprocess.run(self.lab.argv("chain", "--from", source, "--dirty", "256K", "--warmup", "0", *args), capture_output=True, timeout=200)
        self.assertEqual(p.returncode, code, (p.stdout[-3000:], p.stderr))
        return json.loads(p.stdout)

    def test_6_a_clone_dies(self):
        p = self.begin("--fanout", "1")
        # The chain goes on from it: if not its check, the next link's first step fails.
        victims = []
        until(lambda: victims.extend(vm["pid"] for vm in self.lab.ctl("ps") if "-d2-" in vm["name"] and vm["pid"]) or victims, 60)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        until(lambda: any("-d3-" in vm["name"] or "-d4-" in vm["name"] for vm in self.lab.ctl("ps")), 60)
        p.send_signal(signal.SIGTERM)
        out, _ = p.communicate(timeout=60)
        self.assertEqual(p.returncode, -signal.SIGTERM)
        doc = json.loads(out)
        self.assertTrue(doc["interrupted"])
        self.assertGreaterEqual(len(doc["failures"]), 1)
        self.assertTrue({f["depth"] for f in doc["failures"]} <= {2, 3}, doc["failures"])
        self.assertGreaterEqual(len(doc["depths"]), 2)
        self.nothing_left()

    def test_7_interrupted(self):
        for args, times in (("--live",), 1), ((), 2):
            p = self.begin("--fanout", "1", *args)
            for _ in range(times):
                p.send_signal(signal.SIGINT)
            out, _ = p.communicate(timeout=60)
            self.assertEqual(p.returncode, -signal.SIGINT)
            doc = json.loads(out)
            self.assertTrue(doc["interrupted"])
            self.assertEqual(doc["depths"][0]["verified"], 1)
            self.nothing_left()

    def test_8_forkd_dies(self):
        p = self.begin("--fanout", "1")
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        out, _ = p.communicate(timeout=60)
        self.assertEqual(p.returncode, 3)
        failures = json.loads(out)["failures"]
        self.assertEqual(failures[-1]["step"], "clean_up")
        self.assertIn("may be left behind", failures[-1]["reason"])
        self.lab.start()
        self.lab.ctl("rm", "--all")
        for s in self.lab.ctl("snapshot", "ls"):
            self.lab.ctl("snapshot", "rm", s["id"])
        self.nothing_left()

    def test_9_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
