# SPDX-License-Identifier: MIT
"""There is no more room: disks that are full to the last block or nearly, a store that has become read-only, no descriptors
for forkd or for the pager. What cannot be done is refused and undone; what lives goes on; when there is room again all is well."""

import os
import subprocess
import threading
import time

import busy
from fault_case import MIB, FaultCase, Refused, main

LEVELS = (0, 64 << 10, MIB, 5 * MIB)
NO_ROOM = ("no-space", "io", "limit")


class Exhaustion(FaultCase):
    lab_options = {"store": "600M"}

    def attempt(self, *args):
        """True: done; False: refused for want of room, and in no other way."""
        try:
            self.lab.ctl(*args)
            return True
        except Refused as e:
            self.assertIn(e.error["code"], NO_ROOM, e)
            self.assertTrue(e.error["message"])
            return False

    # ---- disk ----

    def fill(self, left):
        """A file that leaves @left bytes of the store."""
        store = self.lab.state / "store"
        path = store / "ballast"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            size, step = 0, 256 * MIB
            while step >= 4096:
                free = os.statvfs(store)
                if free.f_bavail * free.f_frsize - left >= step:
                    try:
                        os.posix_fallocate(fd, size, step)
                        size += step
                        continue
                    except OSError:
                        os.ftruncate(fd, size)
                step //= 2
        finally:
            os.close(fd)
        self.addCleanup(path.unlink, missing_ok=True)
        return path

    def test_every_operation_at_several_levels(self):
        outcomes = {}
        for left in LEVELS:
            self.lab.ctl("fork", "base", "live")
            self.lab.ctl("fork", "base", "rests")
            self.lab.ctl("standby", "rests")
            self.lab.sh("live", "head -c 8388608 /dev/urandom > /run/more")
            ballast = self.fill(left)
            done = [self.attempt("snapshot", "create", "live"), self.attempt("fork", "live", "child"), self.attempt("fork", "base", "clone"),
                    self.attempt("restore", "rests"), self.attempt("run", "boots", "--mem", "96M"), self.attempt("pause", "live"),
                    self.attempt("resume", "live"), self.attempt("standby", "live")]
            outcomes[left] = done
            names = {v["name"]: v["state"] for v in self.lab.ctl("ps")}
            self.assertEqual(names["live"], "standby" if done[-1] else "running")
            for name, there in (("child", done[1]), ("clone", done[2]), ("boots", done[4])):
                self.assertEqual(name in names, there, (left, name))
            self.assertEqual(names["rests"], "running" if done[3] else "standby")
            ballast.unlink()
            for name in ("live", "rests"):
                if self.state(name) == "standby":
                    self.lab.ctl("restore", name)
                self.assertEqual(self.lab.text(name, "sha256sum /run/data"), self.sum)
            self.all_is_well()
            self.setUp()
        # 8 MiB that cannot be compressed did not fit anywhere; with more room more is possible
        self.assertFalse(any(d[0] or d[-1] for d in outcomes.values()), outcomes)

    def test_a_store_that_becomes_read_only(self):
        self.lab.ctl("fork", "base", "live")
        store = self.lab.state / "store"
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        try:
            for args in (["standby", "live"], ["snapshot", "create", "live"], ["fork", "live", "x"], ["fork", "base", "x"],
                         ["snapshot", "rm", "base", "--force"]):
                with self.assertRaises(Refused, msg=args) as caught:
                    self.lab.ctl(*args)
                self.assertRegex(caught.exception.error["message"], "[Rr]ead-only", args)
            self.assertEqual(self.state("live"), "running")
            self.assertEqual(self.lab.text("live", "sha256sum /run/data"), self.sum)
            self.lab.ctl("pause", "live")
            self.lab.ctl("resume", "live")
        finally:
            subprocess.run(["mount", "-o", "remount,bind,rw", store], check=True)
        self.assertEqual(self.lab.ctl("snapshot", "verify", "base")["ok"], True)
        self.lab.ctl("standby", "live")
        self.lab.ctl("restore", "live")
        self.assertEqual(self.lab.text("live", "sha256sum /run/data"), self.sum)
        self.all_is_well()

    # ---- descriptors ----

    @staticmethod
    def set_limit(pid, soft):
        """As the process's own user: in a container root may lack what it takes to do so for others."""
        st = os.stat(f"/proc/{pid}")
        subprocess.run(["/usr/bin/prlimit", "--pid", str(pid), f"--nofile={soft}:"], check=True, user=st.st_uid, group=st.st_gid, extra_groups=[])

    def limit(self, pid, spare):
        """So many more descriptors than it has; returns what it may have otherwise."""
        fds = max(int(f) for f in os.listdir(f"/proc/{pid}/fd")) + 1
        with open(f"/proc/{pid}/limits", encoding="ascii") as f:
            old = int(next(line for line in f if line.startswith("Max open files")).split()[3])
        self.addCleanup(self.set_limit, pid, old)
        self.set_limit(pid, fds + spare)
        return old

    def test_forkd_has_no_more_descriptors(self):
        self.lab.ctl("fork", "base", "live")
        for spare in (3, 6, 10, 16, 24):
            old = self.limit(self.lab.forkd.pid, spare)
            for args in (["fork", "base", "clone"], ["standby", "live"], ["fork", "live", "child"]):
                try:
                    self.lab.ctl(*args, timeout=120)
                except Refused as e:
                    self.assertTrue(e.error["message"], args)
            self.set_limit(self.lab.forkd.pid, old)
            if self.state("live") == "standby":
                self.lab.ctl("restore", "live")
            self.assertEqual(self.lab.text("live", "sha256sum /run/data"), self.sum)
            busy.remove_all_but(self.lab, "base", "live")
            self.all_is_well()

    def test_a_client_that_cannot_be_let_in_waits_and_forkd_does_not_spin(self):
        self.lab.ctl("fork", "base", "live")
        pid = self.lab.forkd.pid
        old = self.limit(pid, 0)
        answer = []
        t = threading.Thread(target=lambda: answer.append(self.lab.ctl("ps", timeout=60)))
        t.start()
        before, begin = self.cpu_s(pid), time.monotonic()
        t.join(2)  # the time that is measured, if it is not let in at once, over a descriptor that has become free
        used, passed = self.cpu_s(pid) - before, time.monotonic() - begin
        self.set_limit(pid, old)
        t.join()
        self.assertEqual(len(answer), 1)
        self.assertLess(used, max(passed / 2, 0.5), "forkd spins while it has no descriptors")
        self.all_is_well()

    @staticmethod
    def cpu_s(pid):
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def test_the_pager_has_no_more_descriptors(self):
        self.lab.ctl("fork", "base", "live")
        pager = self.lab.ctl("pager", "status")["pid"]
        old = self.limit(pager, 2)
        with self.assertRaises(Refused) as caught:
            self.lab.ctl("fork", "base", "clone", "--count", "4")
        self.assertEqual(caught.exception.error["code"], "limit", caught.exception)
        self.assertEqual(self.lab.text("live", "sha256sum /run/data"), self.sum)
        self.set_limit(pager, old)
        self.assertEqual(self.lab.ctl("pager", "status")["pid"], pager)
        self.all_is_well()

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
