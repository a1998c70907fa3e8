#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Real guests that burn a core for nothing or wait for their memory for ever are named within two windows; healthy ones that are as
busy never are. Without probes, which the host may not have, there is nothing to test."""

import contextlib
import ctypes
import os
import pathlib
import select
import shutil
import signal
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from case import Case  # noqa: E402
from forkdlab import bin_dir  # noqa: E402
import spinlab  # noqa: E402

WINDOW = 2.0  # a busy host has its delays, which are parts of a shorter one
CONFIG = f"[monitor]\nwindow_ms = {WINDOW * 1000:.0f}\n"
BAD_PAGER = pathlib.Path(__file__).resolve().parents[1] / "lib" / "badpager.py"
SYS_PIDFD_GETFD = 438  # the same on all of Linux' architectures


class Spinning(Case):
    config, data_mib = CONFIG, 0

    @classmethod
    def setUpClass(cls):
        cls.lab_options = {"config": cls.config}
        super().setUpClass()
        events = spinlab.Events(cls.lab)
        events.start()
        cls.addClassCleanup(events.__exit__, None, None, None)
        cls.events = events
        reason = events.why_no_probes()
        if reason and os.environ.get("FORKD_TEST_NO_SKIP") != "1":
            print(f"SKIPPED: {reason}")
            raise unittest.SkipTest(reason)
        cls.data_digest = spinlab.template(cls.lab, "t", data_mib=cls.data_mib)

    def setUp(self):
        self.before = time.time()

    def fork(self, *names, **options):
        more = [a for k, v in options.items() for a in (f"--{k.replace('_', '-')}", v)]
        for n in names:
            self.lab.ctl("fork", "t", n, *more)
            self.addCleanup(self.lab.ctl, "rm", n)

    def found(self, kind, name):
        return self.events.find(kind, name, self.before)

    def metric(self, metric, vm, vcpu="0"):
        return self.lab.metrics()[metric].get(frozenset({("vm", vm), ("vcpu", vcpu)}))

    def spins(self, name, how):
        command = spinlab.begin(self.lab, name, how)
        self.addCleanup(spinlab.end, command)
        e = self.events.wait("vcpu.spinning", name, since=self.before)
        windows = (e["time_ns"] / 1e9 - spinlab.began(self.lab, name)) / WINDOW
        print(f"{how}: named after {windows:.2f} windows: {e['text']}", flush=True)
        self.assertLessEqual(windows, 2)
        self.assertIn("vCPU 0 ", e["text"])
        self.assertIn("agent", e["text"])
        self.assertEqual(self.metric("forkd_vcpu_spinning", name), 1)


class Alone(Spinning):
    def test_a_panic(self):
        self.fork("a", "bystander")
        self.spins("a", "panic")
        self.assertEqual(self.metric("forkd_vcpu_spinning", "bystander"), 0)
        self.lab.ctl("pause", "a")  # the burning stops, and so does the verdict
        self.events.wait("vcpu.ok", "a", since=self.before)
        self.assertEqual(len(self.found("vcpu.spinning", "a")), 1, "told once")
        self.assertEqual(self.found("vcpu.spinning", "bystander"), [])

    def test_b_a_process_that_lets_nothing_else_run(self):
        self.fork("b")
        self.spins("b", "realtime")

    def test_c_busy_and_healthy(self):
        """Two on two cores, and others that come and go beside them."""
        self.fork("c1", "c2")
        self.lab.sh("c1", spinlab.JOBS["crowd"])
        self.lab.sh("c2", spinlab.JOBS["loop"])
        end = time.monotonic() + 8 * WINDOW
        while time.monotonic() < end:
            self.lab.ctl("fork", "t", "storm", "--count", "4")
            self.lab.ctl("rm", "storm-1", "storm-2", "storm-3", "storm-4")
        self.assertEqual([e for e in self.events.all if e["kind"].startswith("vcpu.") and e["time_ns"] / 1e9 >= self.before], [])
        busy = [self.metric("forkd_vcpu_oncpu_seconds_total", n) + self.metric("forkd_vcpu_runqueue_seconds_total", n) for n in ("c1", "c2")]
        self.assertGreater(min(busy), 6 * WINDOW, "they were not busy at all: nothing was tested")

    def test_d_two_at_once(self):
        self.fork("d1", "d2", "d3")
        self.lab.sh("d3", spinlab.JOBS["hash"])
        self.spins("d1", "panic")
        self.spins("d2", "realtime")
        self.assertEqual(self.found("vcpu.spinning", "d3"), [])

    def test_e_forkd_comes_back(self):
        """Below a guest that spins: the next forkd finds that, too."""
        self.fork("e")
        self.spins("e", "realtime")
        self.lab.terminate()
        self.lab.start()
        since = time.time()
        e = self.events.wait("vcpu.spinning", "e", since=since, seconds=60)
        self.assertIn("its agent is not connected", e["text"])


class BadPagers(Spinning):
    """A copy of the programs, so that the pager on disk can be another for a while."""

    data_mib = 20

    @classmethod
    def setUpClass(cls):
        cls.programs = pathlib.Path(tempfile.mkdtemp(prefix="forkd-bin-"))
        cls.addClassCleanup(shutil.rmtree, cls.programs, True)
        source, before = bin_dir(), os.environ.get("FORKD_BIN_DIR")
        for part in ("bin", "lib", "fault"):
            shutil.copytree(source.parent / part, cls.programs / part)
        os.environ["FORKD_BIN_DIR"] = str(cls.programs / "bin")
        cls.addClassCleanup(lambda: os.environ.__setitem__("FORKD_BIN_DIR", before) if before else os.environ.pop("FORKD_BIN_DIR"))
        super().setUpClass()

    @contextlib.contextmanager
    def pager_program(self, script):
        program = self.programs / "bin" / "uffd-pager"
        good = program.rename(program.with_suffix(".good"))
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        try:
            yield
        finally:
            good.rename(program)


class WithoutPager(BadPagers):
    """It does not come up, for a while."""

    config = CONFIG + "[pager]\nheartbeat_ms = 60000\nrecover_ms = 20000\n"

    def until_quiet(self, name):
        """It has waited for no page for two windows."""
        before, since, end = None, 0, time.monotonic() + 60
        while before is None or time.monotonic() - since < 2 * WINDOW:
            waits = self.lab.metrics()["forkd_uffd_wait_seconds_count"][frozenset({("vm", name)})]
            if waits != before:
                before, since = waits, time.monotonic()
            self.assertLess(time.monotonic(), end, f"{name} waits for pages again and again")
            time.sleep(WINDOW / 10)

    def test_orphan(self):
        self.fork("o", on_pager_loss="recover")
        self.lab.sh("o", spinlab.JOBS["loop"])
        self.until_quiet("o")  # all that it needs is mapped: it does not notice that its pager is gone
        pager = self.lab.ctl("pager", "status")["pid"]
        with self.pager_program("exit 3"):
            os.kill(pager, signal.SIGKILL)
            lost = self.events.wait("pager.lost", since=self.before)
            e = self.events.wait("vcpu.spinning", "o", since=self.before)
        windows = (e["time_ns"] - lost["time_ns"]) / 1e9 / WINDOW
        print(f"orphan: named after {windows:.2f} windows: {e['text']}", flush=True)
        self.assertLessEqual(windows, 1)
        self.assertIn("its pager session is gone", e["text"])
        self.events.wait("vm.recovered", "o", since=self.before)
        self.events.wait("vcpu.ok", "o", since=self.before)
        self.assertEqual(self.lab.text("o", "echo alive"), "alive")

    def test_stuck(self):
        """Its pager stands still, and is given much time."""
        self.fork("s")
        pager = self.lab.ctl("pager", "status")["pid"]
        self.lab.sh("s", "(sleep 0.3; cat /run/data) > /dev/null 2>&1 &")
        os.kill(pager, signal.SIGSTOP)
        try:
            stopped = time.time()
            e = self.events.wait("vcpu.stuck", "s", since=self.before)
            self.assertEqual(self.metric("forkd_vcpu_stuck", "s"), 1)
        finally:
            os.kill(pager, signal.SIGCONT)
        windows = (e["time_ns"] / 1e9 - stopped) / WINDOW
        print(f"stuck: named after {windows:.2f} windows: {e['text']}", flush=True)
        self.assertLessEqual(windows, 2)
        self.events.wait("vcpu.ok", "s", since=self.before)
        self.assertEqual(self.lab.text("s", "echo alive"), "alive")
        self.assertEqual(self.found("vcpu.spinning", "s"), [])


class LostFault(BadPagers):
    """The pager knows nothing of a fault, and forkd sees the guest wait."""

    # The budget is less than the data: reading all of it always faults.
    config = CONFIG + "[pager]\nheartbeat_ms = 2000\nrecover_ms = 20000\nmemory_budget = 8M\n"
    job = "(sleep 0.3; sha256sum /run/data > /run/sum; echo done > /run/done) > /dev/null 2>&1 &"

    def job_is_right(self, name):
        """What it reads of its memory in the end is right."""
        self.assertEqual(self.lab.text(name, "while [ ! -e /run/done ]; do sleep 0.1; done; cat /run/sum").split()[0], self.data_digest)

    def userfaultfd(self):
        """forkd's own descriptor of the only session's."""
        libc = ctypes.CDLL(None, use_errno=True)
        pidfd = os.pidfd_open(self.lab.forkd.pid)
        self.addCleanup(os.close, pidfd)
        for fd in pathlib.Path(f"/proc/{self.lab.forkd.pid}/fd").iterdir():
            if os.readlink(fd) == "anon_inode:[userfaultfd]":
                mine = libc.syscall(SYS_PIDFD_GETFD, pidfd, int(fd.name), 0)
                self.assertGreaterEqual(mine, 0, os.strerror(ctypes.get_errno()))
                self.addCleanup(os.close, mine)
                return mine
        raise AssertionError("forkd holds no userfaultfd")

    def test_1_woken(self):
        """Somebody has taken it away: the pager gets it again, and nothing else happens."""
        self.fork("l")
        uffd, pager = self.userfaultfd(), self.lab.ctl("pager", "status")["pid"]
        self.lab.sh("l", self.job)
        os.kill(pager, signal.SIGSTOP)
        try:
            self.assertTrue(select.select([uffd], [], [], 1)[0], "no fault")
            os.read(uffd, 32)
        finally:
            os.kill(pager, signal.SIGCONT)
        stolen = time.time()
        e = self.events.wait("vm.woken", "l", since=self.before)
        print(f"lost fault: noticed after {e['time_ns'] / 1e9 - stolen:.2f} s: {e['text']}", flush=True)
        self.job_is_right("l")
        self.assertEqual(self.lab.ctl("pager", "status")["pid"], pager)
        self.assertEqual(self.lab.ctl("pager", "status")["watchdog"]["hangs"], 0)
        self.assertEqual(self.lab.vm("l")["state"], "running")

    def test_2_a_pager_that_forgets_everything(self):
        """Its heart beats, and it owes nobody anything, it says. It is found out by its guests, and replaced."""
        self.fork("m", on_pager_loss="recover")
        pager = self.lab.ctl("pager", "status")["pid"]
        self.lab.sh("m", self.job)
        with self.pager_program(f"exec {BAD_PAGER} forget"):
            os.kill(pager, signal.SIGKILL)
            bad = self.events.wait("vm.recovered", "m", since=self.before)
        self.events.wait("vm.woken", "m", since=self.before)
        hangs = self.events.wait("pager.hangs", since=self.before)
        print(f"a pager that forgets: found out after {(hangs['time_ns'] - bad['time_ns']) / 1e9:.2f} s: {hangs['text']}", flush=True)
        self.job_is_right("m")
        self.assertEqual(len(self.found("vm.recovered", "m")), 2)
        self.assertEqual(self.lab.ctl("pager", "status")["watchdog"]["hangs"], 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
