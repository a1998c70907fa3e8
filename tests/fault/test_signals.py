# SPDX-License-Identifier: MIT
"""SIGSTOP and SIGKILL for those that work for forkd or ask it: a VMM, a worker, a forkctl. What hangs has a deadline or is
waited for; nobody else waits with it; what was stopped goes on as if nothing had been."""

import os
import signal
import subprocess
import threading
import time

import busy
from fault_case import Client, Error, FaultCase, Refused, main

QMP_TIMEOUT_S = 10  # QEMU_CALL_TIMEOUT_MS


class Signals(FaultCase):
    # ---- the VMM ----

    def test_a_vmm_that_stands_still(self):
        """It does what it was told when it goes on, after forkd has given up: the guest ends up as forkd says all the same."""
        self.lab.ctl("fork", "base", "v", "--paused")
        vmm = self.stopped(self.lab.vm("v")["pid"])
        outcome = []

        def resume():
            try:
                outcome.append(self.lab.ctl("resume", "v", timeout=120))
            except Refused as e:
                outcome.append(e)
        t = threading.Thread(target=resume)
        begin = time.monotonic()
        t.start()
        while time.monotonic() - begin < QMP_TIMEOUT_S + 3:
            self.others_are_served()
        self.go_on(vmm)
        t.join()
        self.assertIsInstance(outcome[0], Refused)
        self.assertEqual(outcome[0].error["code"], "timeout", outcome[0])
        self.assertEqual(self.state("v"), "paused")
        self.lab.ctl("resume", "v")
        self.assertEqual(self.lab.text("v", "sha256sum /run/data"), self.sum)
        self.lab.ctl("standby", "v")
        self.lab.ctl("restore", "v")
        self.assertEqual(self.lab.text("v", "sha256sum /run/data"), self.sum)
        self.all_is_well()

    def test_a_vmm_that_stands_still_is_removed_all_the_same(self):
        self.lab.ctl("fork", "base", "v")
        with busy.Watch([self.lab.vm("v")["pid"]]) as watch:
            self.stopped(self.lab.vm("v")["pid"])
            self.lab.ctl("rm", "v", timeout=60)
            self.assertEqual(watch.wait(0.1), [])
        self.all_is_well()

    # ---- a worker ----

    def standby_with_stopped_workers(self, name):
        """Stops every worker there is, then asks for a standby: (thread, what it came to, the pidfds)."""
        fds = [self.stopped(p) for p in self.lab.workers()]
        self.assertTrue(fds, "forkd keeps no worker ready")
        outcome = []

        def standby():
            try:
                outcome.append(self.lab.ctl("standby", name))
            except Refused as e:
                outcome.append(e)
        t = threading.Thread(target=standby)
        t.start()
        busy.until("the standby is under way", lambda: self.lab.vm(name)["busy"] == "standby" or outcome)
        return t, outcome, fds

    def test_a_worker_that_stands_still_is_waited_for(self):
        self.lab.ctl("fork", "base", "w")
        t, outcome, fds = self.standby_with_stopped_workers("w")
        self.others_are_served()
        self.assertEqual(outcome, [])
        for fd in fds:
            self.go_on(fd)
        t.join()
        self.assertNotIsInstance(outcome[0], Refused)
        self.lab.ctl("restore", "w")
        self.assertEqual(self.lab.text("w", "sha256sum /run/data"), self.sum)
        self.all_is_well()

    def test_a_stopped_worker_that_is_killed_leaves_the_guest_running(self):
        self.lab.ctl("fork", "base", "w")
        t, outcome, fds = self.standby_with_stopped_workers("w")
        for fd in fds:
            self.go_on(fd, signal.SIGKILL)
        t.join()
        self.assertIsInstance(outcome[0], Refused)
        self.wait_state("w", "running")
        self.assertEqual(self.lab.text("w", "sha256sum /run/data"), self.sum)
        self.all_is_well()

    # ---- a client ----

    def forkctl(self, *args, json_mode=False):
        p = subprocess.Popen(self.lab.argv(*args, json_mode=json_mode), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, env=self.lab.env)
        self.addCleanup(p.stdout.close)
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        return p

    def test_a_forkctl_that_stands_still_in_the_middle_of_a_stream(self):
        self.lab.ctl("fork", "base", "c")
        p = self.forkctl("exec", "c", "--", "cat", "/dev/zero")
        self.assertEqual(len(p.stdout.read(1 << 20)), 1 << 20)
        fd = self.stopped(p.pid)
        self.others_are_served()
        self.assertEqual(self.lab.text("c", "sha256sum /run/data"), self.sum)
        self.go_on(fd)
        self.assertEqual(len(p.stdout.read(1 << 20)), 1 << 20)
        self.go_on(fd, signal.SIGKILL)
        p.wait()
        busy.until("its command is gone", lambda: self.lab.sh("c", "pidof cat", check=False).code == 1)
        self.all_is_well()

    def test_a_forkctl_that_is_killed_in_the_middle_of_a_fork(self):
        """The answer has nobody to go to; the clones are there, all of them or none."""
        for i in range(6):
            p = self.forkctl("fork", "base", "f", "--count", "3")
            busy.until("it has begun", lambda: p.poll() is not None or any(v["name"].startswith("f-") for v in self.lab.ctl("ps")))
            if i % 2:
                busy.until("one is up", lambda: p.poll() is not None or any(v["state"] == "running" for v in self.lab.ctl("ps")))
            p.kill()
            p.wait()
            busy.until("forkd is idle", lambda: not any(v["busy"] for v in self.lab.ctl("ps")))
            names = [v["name"] for v in self.lab.ctl("ps") if v["name"] != "base"]
            self.assertIn(names, ([], ["f-1", "f-2", "f-3"]))
            if names:
                self.assertEqual(self.lab.text("f-2", "sha256sum /run/data"), self.sum)
                self.lab.ctl("rm", *names)
        self.all_is_well()

    @staticmethod
    def refused_ping(client):
        try:
            client.call("vm.ping", {"name": "a"})
            return None
        except Error as e:
            return e

    def test_an_agent_that_stands_still(self):
        """Everything that has to do with its guest has a deadline, and says so."""
        self.lab.ctl("fork", "base", "a")
        with Client(self.lab.socket, 60) as c:
            c.send("vm.exec", {"name": "a", "argv": ["/bin/sh", "-c", "kill -STOP $(pidof forkd-agent)"]})  # has no answer
            refusal = busy.until("a ping is refused", lambda: self.refused_ping(c))
            self.assertEqual(refusal.code, "timeout")
        self.others_are_served()
        self.lab.ctl("rm", "a", timeout=60)
        self.all_is_well()

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
