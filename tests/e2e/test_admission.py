# SPDX-License-Identifier: MIT
"""What the host has to give is asked for before anything starts; and the turns that clients take."""

import os
import pathlib
import re
import resource
import signal
import time

from case import Case, main, sanitized, until
from mprpc import Client, Error, open_fds


class Room(Case):
    lab_options = {"store": "1G", "config": "[forkd]\nparallel_starts = 1\n[limits]\nvcpus = 6\nmemory = 1G\nmemory_overcommit = 2\n"
                                          "[vmm]\nshells = 0\n"} # whose claims test_shells.py looks at

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
        if not sanitized():  # which keeps what was freed
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
        self.lab.preexec = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (580, 580))
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
