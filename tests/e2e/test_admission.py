# SPDX-License-Identifier: MIT
"""What a VMM holds stays its own until it has ended; what the host has to give is asked for before anything starts."""

import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

from case import Case, main
from mprpc import Client, Error, open_fds

# A debugger that lets go of nothing: a thread of a killed process stays until its tracer has heard of its end.
TRACER = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(0x4206, int(sys.argv[1]), None, None) != 0:  # PTRACE_SEIZE
    sys.exit(os.strerror(ctypes.get_errno()))
print("holding", flush=True)
sys.stdin.read()
"""


class Holding:
    """A VMM that cannot end: one of its threads is traced by a process that never looks."""

    def __init__(self, pid):
        thread = max(int(t) for t in os.listdir(f"/proc/{pid}/task"))
        self.child = subprocess.Popen([sys.executable, "-c", TRACER, str(thread)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.child.stdout.readline() != b"holding\n":
            self.let_go()
            raise AssertionError("the thread cannot be traced")

    def let_go(self):
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()


def until(what, timeout=20):
    """Polls for what no event tells a test: a state that forkd comes to by itself."""
    end = time.monotonic() + timeout
    while not what():
        if time.monotonic() > end:
            raise AssertionError("it did not come to pass")
        time.sleep(0.02)


class Ends(Case):
    lab_options = {"store": "1G"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "128M")
        cls.lab.ctl("standby", "base", "--tag", "warm")

    def hold(self, name):
        pid = self.lab.vm(name)["pid"]
        held = Holding(pid)
        self.addCleanup(held.let_go)
        return pid, held

    def names(self):
        return [v["name"] for v in self.lab.ctl("ps")]

    def test_a_removed_vm_keeps_its_name_until_its_vmm_has_ended(self):
        self.lab.ctl("fork", "warm", "stuck")
        pid, held = self.hold("stuck")
        self.refused("rm", "stuck", code="busy", says=[f"pid {pid}", "has not ended"])
        self.refused("fork", "warm", "stuck", code="exists", says=[f"pid {pid}", "'stuck'", "removed VM"])
        # Others are served as ever, and whoever looks is told.
        self.lab.ctl("fork", "warm", "other")
        self.lab.ctl("rm", "other")
        self.assertIn(f"pid {pid}", self.lab.vm("stuck")["reason"])
        self.refused("rm", "--all", code="busy", says=[f"pid {pid}"])
        self.assertEqual(self.names(), ["stuck"])
        held.let_go()
        until(lambda: self.names() == [])
        self.lab.ctl("fork", "warm", "stuck")
        self.lab.ctl("rm", "stuck")

    def test_a_vm_on_standby_is_not_restored_beside_its_own_vmm(self):
        self.lab.ctl("fork", "warm", "sleeper")
        pid, held = self.hold("sleeper")
        self.lab.ctl("standby", "sleeper", "--tag", "asleep")
        self.refused("restore", "sleeper", code="busy", says=[f"pid {pid}"])
        # The next forkd comes to the same.
        self.lab.terminate()
        self.lab.start()
        self.assertEqual(self.state("sleeper"), "standby")
        self.refused("restore", "sleeper", code="busy", says=[f"pid {pid}"])
        held.let_go()
        until(lambda: self.lab.vm("sleeper")["pid"] is None)
        self.lab.ctl("restore", "sleeper")
        self.assertEqual(self.lab.text("sleeper", "echo back"), "back")
        self.lab.ctl("rm", "sleeper")
        self.lab.ctl("snapshot", "rm", "asleep")

    def test_a_stop_tells_what_is_left(self):
        self.lab.ctl("fork", "warm", "stopped")
        pid, held = self.hold("stopped")
        self.refused("stop", "stopped", code="busy", says=[f"pid {pid}"])
        self.assertEqual(self.state("stopped"), "stopped")
        held.let_go()
        until(lambda: self.lab.vm("stopped")["pid"] is None)
        self.assertFalse(self.lab.vm("stopped")["reason"])
        self.lab.ctl("rm", "stopped")


class Room(Case):
    lab_options = {"store": "1G", "config": "[forkd]\nparallel_starts = 1\n[limits]\nvcpus = 6\nmemory = 1G\nmemory_overcommit = 2\n"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "128M")
        cls.lab.ctl("standby", "base", "--tag", "warm")
        cls.lab.ctl("rm", "base")

    def tearDown(self):
        self.lab.ctl("rm", "--all")
        a = self.admission()
        for what in ("memory", "vcpus", "pids", "descriptors"):
            self.assertEqual((a[what]["held"], a[what]["reserved"]), (0, 0), a)
        self.assertEqual((a["memory"]["promised"], a["disk"]["reserved"]), (0, 0), a)

    def admission(self):
        with Client(self.lab.socket) as c:
            return c.call("info")["admission"]

    def restart(self):
        self.lab.terminate()
        self.lab.start()

    def test_vcpus(self):
        self.refused("fork", "warm", "v", "--count", 7, code="limit", says=["7 clones of 'warm'", "7 needed", "6 of 6 left"])
        self.assertEqual(self.lab.ctl("ps"), [])
        self.lab.ctl("fork", "warm", "v", "--count", 4)
        self.assertEqual(self.admission()["vcpus"], {"limit": 6, "held": 4, "reserved": 0})
        self.refused("fork", "warm", "w", "--count", 3, code="limit", says=["3 needed", "2 of 6 left", "'v-1'", "and 1 other"])
        # What lives is claimed for by the next forkd, too; what is on standby is not.
        self.restart()
        self.assertEqual(self.admission()["vcpus"]["held"], 4)
        self.lab.ctl("standby", "v-1", "--tag", "v1")
        self.assertEqual(self.admission()["vcpus"]["held"], 3)
        self.lab.ctl("fork", "v1", "w", "--count", 3)
        self.refused("restore", "v-1", code="limit", says=["1 needed", "0 of 6 left"])
        self.assertEqual(self.state("v-1"), "standby")
        self.lab.ctl("rm", "w-1")
        self.lab.ctl("restore", "v-1")

    def test_doctor_tells(self):
        self.lab.ctl("fork", "warm", "d")
        check = [c for c in self.lab.ctl("doctor", "--state-dir", str(self.lab.state))["checks"] if c["name"] == "room"][0]
        self.assertIn("vCPUs: 1 of 6", check["detail"])
        self.assertIn("160 MiB promised", check["detail"])

    def test_memory(self):
        self.refused("run", "big", "--mem", "3G", code="no-space", says=["'big'", "3.0 GiB needed", "of 2 GiB are not promised"])
        have = self.admission()["memory"]["available"]
        self.assertGreater(have, 0)
        self.assertEqual(self.lab.ctl("ps"), [])

    def test_a_thousand_requests_over_the_limit(self):
        fds, memory = open_fds(self.lab.forkd.pid), None
        for _ in range(2):
            with Client(self.lab.socket) as c:
                begin = time.monotonic()
                ids = [c.send("vm.fork", {"source": "warm", "name": f"x{i}", "count": 7}) for i in range(1000)]
                for i in ids:
                    with self.assertRaises(Error) as caught:
                        c.wait(i)
                    self.assertEqual(caught.exception.code, "limit")
                self.assertLess(time.monotonic() - begin, 10)
            rss = int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{self.lab.forkd.pid}/status").read())[1])
            memory = memory or rss
        self.assertLess(rss, memory + 4096)
        self.assertEqual(self.lab.ctl("ps"), [])
        until(lambda: open_fds(self.lab.forkd.pid) <= fds)

    def test_one_clients_many_let_anothers_one_pass(self):
        with Client(self.lab.socket) as many, Client(self.lab.socket) as one:
            ids = [many.send("vm.fork", {"source": "warm", "name": f"m{i}"}) for i in range(5)]
            until(lambda: self.admission()["starts"]["waiting"] == 4)
            one.call("vm.fork", {"source": "warm", "name": "o"})
            left = self.admission()["starts"]
            for i in ids:
                many.wait(i)
        self.assertGreaterEqual(left["running"] + left["waiting"], 2, left)

    def test_nobody_waits_for_who_went_away(self):
        with Client(self.lab.socket) as c:
            c.send("vm.fork", {"source": "warm", "name": "gone", "count": 6})
            until(lambda: self.admission()["starts"]["waiting"] >= 3)
        until(lambda: self.lab.ctl("ps") == [])
        self.assertEqual(self.admission()["starts"], {"limit": 1, "running": 0, "waiting": 0})

    def test_nobody_waits_for_a_forkd_that_ends(self):
        with Client(self.lab.socket) as c:
            i = c.send("vm.fork", {"source": "warm", "name": "late", "count": 6})
            until(lambda: self.admission()["starts"]["waiting"] >= 3)
            self.lab.forkd.send_signal(signal.SIGTERM)
            with self.assertRaises(Error) as caught:
                c.wait(i)
            self.assertEqual(caught.exception.code, "canceled")
        self.lab.expect_clean(self.lab.forkd.wait(timeout=60))
        self.lab.start()
        self.assertEqual(self.lab.ctl("ps"), [])

    def test_descriptors(self):
        self.lab.preexec = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (420, 420))
        try:
            self.restart()
            room = self.admission()["descriptors"]["limit"]
            self.assertLess(room, 100)
            self.refused("fork", "warm", "d", "--count", 6, code="limit", says=["descriptors", f"of {room} left", "LimitNOFILE"])
            self.lab.ctl("fork", "warm", "d", "--count", 2)
            self.assertEqual(self.lab.text("d-2", "echo here"), "here")
        finally:
            self.lab.preexec = None
            self.lab.ctl("rm", "--all")
            self.restart()

    def test_processes(self):
        base = pathlib.Path("/sys/fs/cgroup/pids")
        if not (base / "cgroup.procs").exists():
            self.skipTest("no pids controller of cgroup v1")
        group = base / f"forkd-test-{os.getpid()}"
        group.mkdir()
        self.lab.preexec = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            self.restart()
            (group / "pids.max").write_text(str(int((group / "pids.current").read_text()) + 30))
            self.refused("fork", "warm", "p", "--count", 6, code="limit", says=["processes and threads", "36 needed", "pids.max"])
            (group / "pids.max").write_text("max")
            self.lab.ctl("fork", "warm", "p", "--count", 6)
        finally:
            self.lab.preexec = None
            self.lab.ctl("rm", "--all")
            self.lab.ctl("shutdown", "--all")
            self.lab.expect_clean(self.lab.forkd.wait(timeout=60))
            until(lambda: not (group / "cgroup.procs").read_text())
            group.rmdir()
            self.lab.start()


if __name__ == "__main__":
    main()
