#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""/metrics and /healthz of a real forkd: numbers that move as they should and agree with what forkctl says, on any address,
whatever happens to forkd, its pager and its clients meanwhile."""

import http.client
import os
import pathlib
import signal
import socket
import sys
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
import promtools  # noqa: E402
from case import Case, main, until  # noqa: E402
from forkdlab import Lab, parse_metrics  # noqa: E402


def one(metrics, name, **labels):
    return metrics[name][frozenset((k, str(v)) for k, v in labels.items())]


def series_of(metrics, vm):
    return {name for name, samples in metrics.items() for labels in samples if ("vm", vm) in labels}


def counters(metrics):
    """Whatever may not fall."""
    for name, samples in metrics.items():
        if name.endswith(("_total", "_count", "_bucket", "_sum")):
            for labels, value in samples.items():
                yield (name, labels), value


class Numbers(Case):
    """One VM boots; the others are its clones."""
    lab_options = {"config": "[monitor]\nkeep_ended_seconds = 5\nwindow_ms = 1000\n[pager]\nidle_image_seconds = 1\nheartbeat_ms = 4000\n"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.empty = cls.lab.metrics()
        cls.booted = cls.lab.ctl("run", "a")
        cls.stood_by = cls.lab.ctl("standby", "a", "--tag", "warm")
        cls.first = cls.lab.metrics()

    def grown(self, before, after):
        """No counter has fallen; returns the new scrape."""
        now = dict(counters(after))
        self.assertEqual([(k, v, now[k]) for k, v in counters(before) if k in now and now[k] < v], [])
        return after

    def fresh(self):
        """A scrape that the pager has answered in time, as it need not on a busy host."""
        found = []

        def answered():
            found[:] = [self.lab.metrics()]
            return one(found[0], "forkd_pager_status_age_seconds") < 0.2

        until(answered)
        return found[0]

    def took(self, name, ms, before, after):
        """Between two scrapes these were counted, and nothing else."""
        (n0, s0), (n1, s1) = ((one(m, f"forkd_{name}_seconds_count"), one(m, f"forkd_{name}_seconds_sum")) for m in (before, after))
        self.assertEqual(n1 - n0, len(ms), name)
        self.assertAlmostEqual(s1 - s0, sum(ms) / 1000, delta=0.001, msg=name)
        self.assertEqual(one(after, f"forkd_{name}_seconds_bucket", le="+Inf"), n1)

    def test_operations(self):
        self.grown(self.empty, self.first)
        self.took("boot", [self.booted["boot_ms"]], self.empty, self.first)
        self.took("standby", [self.stood_by["total_ms"]], self.empty, self.first)
        self.assertEqual((one(self.empty, "forkd_vms", state="standby"), one(self.first, "forkd_vms", state="standby")), (0, 1))
        start = self.grown(self.first, self.lab.metrics())
        restored = self.lab.ctl("restore", "a")
        forked = self.lab.ctl("fork", "warm", "c", "--count", "3")
        m = self.grown(start, self.fresh())
        self.took("restore", [restored["total_ms"]], start, m)
        self.took("fork", [c["total_ms"] for c in forked["clones"]], start, m)
        self.assertEqual(one(m, "forkd_vms", state="running"), 4)
        self.assertEqual(one(m, "forkd_pager_sessions"), 4)
        self.assertEqual(one(m, "forkd_pool_take_seconds_count"), 0)
        self.assertEqual(one(m, "forkd_snapshots"), len(self.lab.ctl("snapshot", "ls")))
        self.assertEqual(one(m, "forkd_admission_vcpus", kind="held"), 4)
        # what the guests waited for, and what the pager did about it: most of what they need to wake up is there before
        self.lab.sh("a", "cat /bin/* /lib/modules/* > /dev/null 2>&1; find / -xdev > /dev/null")
        status = self.lab.ctl("pager", "status")["totals"]
        m = self.grown(m, self.fresh())
        for kind, n in status["faults"].items():
            self.assertGreaterEqual(one(m, "forkd_pager_faults_total", kind=kind), n, kind)
        self.assertGreaterEqual(one(m, "forkd_pager_service_seconds_count"), status["service"]["count"])
        if one(m, "forkd_probes_up") == 1:
            for vm in ("a", "c-1", "c-2", "c-3"):
                self.assertGreater(one(m, "forkd_vcpu_oncpu_seconds_total", vm=vm, vcpu=0), 0)
            self.assertGreater(sum(m["forkd_uffd_wait_seconds_count"].values()), 0)
            self.assertGreater(one(m, "forkd_pager_thread_seconds_total", role="fault", state="oncpu"), 0)
        self.lab.ctl("rm", "a", "c-1", "c-2", "c-3")

    def test_promtool_has_no_complaint(self):
        promtools.or_skip("promtool")
        self.lab.ctl("fork", "warm", "p.r-o_m")
        text = self.lab.get()[1]
        self.assertIn('vm="p.r-o_m"', text)
        self.assertEqual(promtools.check_metrics(text), "")
        self.lab.ctl("rm", "p.r-o_m")

    def test_counters_survive_pagers(self):
        """One that is upgraded, one that is killed: nothing falls, and of an upgrade nothing is lost."""
        self.lab.ctl("fork", "warm", "u", "--count", "2", "--on-pager-loss", "recover")
        before = self.lab.metrics()
        pid = self.lab.ctl("pager", "status")["pid"]
        self.lab.ctl("pager", "upgrade")
        m = self.grown(before, self.lab.metrics())
        self.assertNotEqual(self.lab.ctl("pager", "status")["pid"], pid)
        self.assertEqual(one(m, "forkd_pager_upgrades_total"), one(before, "forkd_pager_upgrades_total") + 1)
        self.assertGreaterEqual(sum(m["forkd_pager_faults_total"].values()), sum(before["forkd_pager_faults_total"].values()))
        self.lab.text("u-1", "head -c 4000000 /dev/zero | sha256sum; find / -xdev | wc -l")
        m = self.grown(m, self.lab.metrics())
        os.kill(self.lab.ctl("pager", "status")["pid"], signal.SIGKILL)
        until(lambda: one(self.lab.metrics(), "forkd_pager_recoveries_total") >= one(m, "forkd_pager_recoveries_total") + 2)
        m = self.grown(m, self.lab.metrics())
        self.assertEqual(one(m, "forkd_pager_deaths_total"), one(before, "forkd_pager_deaths_total") + 1)
        self.assertEqual(one(m, "forkd_events_total", kind="vm.recovered"), one(m, "forkd_pager_recoveries_total"))
        self.assertEqual(m["forkd_guests_killed_total"], before["forkd_guests_killed_total"])
        self.lab.ctl("rm", "u-1", "u-2")

    def test_killed_guests_are_counted(self):
        self.lab.ctl("fork", "warm", "doomed")
        before = self.lab.metrics()
        os.kill(self.lab.ctl("pager", "status")["pid"], signal.SIGKILL)
        until(lambda: self.state("doomed") == "failed")
        m = self.grown(before, self.lab.metrics())
        lost = one(before, "forkd_guests_killed_total", reason="pager-lost")
        self.assertEqual(one(m, "forkd_guests_killed_total", reason="pager-lost"), lost + 1)
        self.assertNotIn("forkd_pager_up", m)  # none is needed, for nobody can be saved: no alarm
        self.assertEqual(self.lab.get("/healthz"), (200, "ok\n"))
        self.lab.ctl("rm", "doomed")

    def test_a_failure_is_counted_and_a_refusal_is_not(self):
        self.lab.ctl("fork", "warm", "f")
        self.lab.ctl("standby", "f", "--tag", "broken")
        before = self.lab.metrics()
        self.refused("run", "f")
        self.refused("fork", "nothing")
        self.refused("fork", "broken", "f")
        self.assertEqual(self.lab.metrics()["forkd_operations_failed_total"], before["forkd_operations_failed_total"])
        path = pathlib.Path(self.lab.ctl("snapshot", "show", "broken")["path"])
        (path / "vmstate").write_bytes(b"nothing of a VM")
        for args, operation in ((["fork", "broken", "g", "--count", "2"], "fork"), (["restore", "f"], "restore")):
            self.refused(*args)
            m = self.lab.metrics()
            failed = one(before, "forkd_operations_failed_total", operation=operation)
            self.assertEqual(one(m, "forkd_operations_failed_total", operation=operation), failed + 1, operation)
            self.assertEqual(one(m, f"forkd_{operation}_seconds_count"), one(before, f"forkd_{operation}_seconds_count"))
        self.lab.ctl("rm", "f")

    def test_an_ended_vm_is_told_of_for_a_while(self):
        self.lab.ctl("fork", "warm", "short")
        before = self.lab.metrics()
        if one(before, "forkd_probes_up") == 0:
            self.skipTest("no probes")
        self.assertIn("forkd_vcpu_oncpu_seconds_total", series_of(before, "short"))
        self.lab.ctl("rm", "short")
        m = self.grown(before, self.lab.metrics())
        self.assertEqual(series_of(m, "short"), series_of(before, "short") - {"forkd_vm_private_bytes"}) # it has no memory now
        until(lambda: not series_of(self.lab.metrics(), "short"), timeout=30)

    def test_a_pager_that_hangs_holds_no_scrape(self):
        """Stopped, it answers nothing: the scrape tells what was known, and how old it is."""
        self.lab.ctl("fork", "warm", "h", "--on-pager-loss", "recover")
        before = self.lab.metrics()
        pid = self.lab.ctl("pager", "status")["pid"]
        os.kill(pid, signal.SIGSTOP)
        m = self.grown(before, self.lab.metrics())
        # it did not wait for the hang's end: that is counted when the pager has missed its beat
        self.assertEqual(one(m, "forkd_pager_hangs_total"), one(before, "forkd_pager_hangs_total"))
        self.assertGreater(one(m, "forkd_pager_status_age_seconds"), 0.1)
        until(lambda: one(self.lab.metrics(), "forkd_pager_hangs_total") == one(before, "forkd_pager_hangs_total") + 1)
        until(lambda: self.lab.get("/healthz")[0] == 200)
        self.lab.ctl("rm", "h")

    def test_restart(self):
        """Whoever scrapes while forkd is restarted gets whole answers or none."""
        self.lab.ctl("fork", "warm", "r")
        answers, stop = {"whole": 0, "none": 0, "health": set()}, threading.Event()
        wrong = []

        def scrape():
            while not stop.is_set():
                try:
                    status, text = self.lab.get()
                    if status != 200 or "forkd_scrape_seconds" not in parse_metrics(text):
                        wrong.append((status, text[-300:]))
                    answers["whole"] += 1
                    answers["health"].add(self.lab.get("/healthz")[0])
                except (OSError, http.client.HTTPException):
                    answers["none"] += 1

        scraper = threading.Thread(target=scrape)
        scraper.start()
        try:
            for _ in range(3):
                self.lab.terminate()
                self.lab.start()
                n = answers["whole"]
                until(lambda n=n: answers["whole"] > n + 3)
        finally:
            stop.set()
            scraper.join()
        self.assertEqual(wrong, [])
        self.assertLessEqual(answers["health"], {200, 503})
        self.assertGreater(answers["whole"], 3)
        self.assertEqual(self.lab.get("/healthz"), (200, "ok\n"))
        self.assertEqual(one(self.lab.metrics(), "forkd_vms", state="running"), 1)
        self.lab.ctl("rm", "r")

    def test_hundreds_of_clients(self):
        """One after the other, of every kind: afterwards nothing is left of them, and the next one is answered."""
        def descriptors():
            return len(os.listdir(f"/proc/{self.lab.forkd.pid}/fd"))

        host, port = self.lab.metrics_address().split(":")
        before = descriptors()
        for i in range(800):
            with socket.create_connection((host, int(port)), timeout=20) as s:
                if i % 4 == 1:
                    s.sendall(b"GET /metrics HTT")
                elif i % 4 == 2:
                    s.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
                elif i % 4 == 3:
                    s.sendall(os.urandom(64))
        self.assertEqual(self.lab.get("/healthz"), (200, "ok\n"))
        until(lambda: descriptors() <= before + 4)

    def test_many_idle_clients(self):
        host, port = self.lab.metrics_address().split(":")
        idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(400)]
        try:
            self.assertEqual(self.lab.get("/healthz"), (200, "ok\n"))
            self.assertLess(one(self.lab.metrics(), "process_open_fds"), 300)
        finally:
            for s in idle:
                s.close()

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


class Addresses(unittest.TestCase):
    """A forkd without VMs, on each kind of address."""

    def lab(self, listen, extra=""):
        config = f"[metrics]\nlisten = {listen}\n" if listen else "[metrics]\nmax_vms = 7\n"
        return Lab(config=config + extra, setup=False)

    def setUp(self):
        if os.geteuid() != 0 and os.environ.get("FORKD_TEST_NO_SKIP") != "1":
            print("SKIPPED: not root")
            self.skipTest("not root")

    def said(self, lab):
        return lab.ctl("stats")

    def test_a_free_port(self):
        with self.lab("127.0.0.1:0") as a, self.lab("[::1]:0") as b:
            self.assertEqual(self.said(a)["metrics_address"], a.metrics_address())
            self.assertTrue(self.said(b)["metrics_address"].startswith("[::1]:"))
            for lab in (a, b):
                self.assertEqual(lab.get("/healthz"), (200, "ok\n"))

    def test_off(self):
        with self.lab("off") as lab:
            self.assertIsNone(self.said(lab)["metrics_address"])
            self.assertIsNone(self.said(lab)["metrics_error"])

    def test_an_address_that_others_reach_is_refused(self):
        for listen in ("0.0.0.0:9464", "192.0.2.1:80", "example.org:80", "9464"):
            with self.assertRaisesRegex(RuntimeError, r"line 2: \[metrics\] listen is"), self.lab(listen):
                pass

    def test_a_port_that_is_taken(self):
        """It is waited for; forkd does everything else meanwhile."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with self.lab(f"127.0.0.1:{port}") as lab:
                said = self.said(lab)
                self.assertIsNone(said["metrics_address"])
                self.assertIn("in use", said["metrics_error"])
                self.assertEqual(lab.ctl("ps"), [])
                other.close()
                until(lambda: self.said(lab)["metrics_address"], timeout=30)
                self.assertEqual(lab.get("/healthz"), (200, "ok\n"))
                self.assertIsNone(self.said(lab)["metrics_error"])

    def test_the_default_gives_way(self):
        try:
            other = socket.create_server(("127.0.0.1", 9464))
        except OSError:
            other = None  # another forkd of this host
        try:
            with self.lab(None) as lab:
                said = self.said(lab)
                self.assertRegex(said["metrics_address"], r"^127\.0\.0\.1:\d+$")
                self.assertNotIn(":9464", said["metrics_address"])
                self.assertIn("a free port is used", said["metrics_error"])
                self.assertEqual(lab.get("/healthz"), (200, "ok\n"))
        finally:
            if other:
                other.close()

    def test_a_unix_socket(self):
        with self.lab("unix:/nowhere/at/all/m.sock") as lab:  # nothing comes of it, but forkd
            self.assertEqual(lab.ctl("ps"), [])
            path = str(lab.dir / "m.sock")
            lab.conf.write_text(f"[metrics]\nlisten = unix:{path}\n")
            lab.terminate()
            lab.start()
            self.assertEqual(self.said(lab)["metrics_address"], f"unix:{path}")
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(20)
                s.connect(path)
                s.sendall(b"GET /metrics HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n\r\n")
                answer = http.client.HTTPResponse(s)
                answer.begin()
                self.assertEqual(answer.status, 200)
                self.assertIn("forkd_build_info", parse_metrics(answer.read().decode()))
            lab.terminate()
            self.assertFalse(os.path.exists(path))


class Bounds(Case):
    lab_options = {"config": "[metrics]\nlisten = 127.0.0.1:0\nmax_vms = 2\n"}

    def test_no_more_series_than_allowed(self):
        self.lab.ctl("run", "n", "--mem", "96M")
        self.lab.ctl("fork", "n", "--count", "2")
        m = self.lab.metrics()
        if one(m, "forkd_probes_up") == 1:
            self.assertEqual({dict(k)["vm"] for k in m["forkd_uffd_wait_seconds_count"]}, {"n", "n-1"})
        self.assertEqual(one(m, "forkd_metrics_unlisted_vms"), 1)
        self.assertEqual(one(m, "forkd_vms", state="running"), 3)
        self.lab.ctl("rm", "--all")


class Unwatched(Case):
    lab_options = {"config": "[monitor]\nprobes = off\n"}

    def test_zeros_are_not_told_for_measured(self):
        self.lab.ctl("run", "dark", "--mem", "96M")
        m = self.lab.metrics()
        self.assertEqual(one(m, "forkd_probes_up"), 0)
        self.assertEqual(one(m, "forkd_vms_unwatched"), 1)
        self.assertEqual(one(m, "forkd_probes_info", method="none", kvm="no"), 1)
        self.assertEqual(series_of(m, "dark"), {"forkd_vm_private_bytes"}) # which needs no probes
        self.assertNotIn("forkd_pager_thread_seconds_total", m)
        self.lab.ctl("rm", "--all")


if __name__ == "__main__":
    main()
