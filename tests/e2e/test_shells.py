#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""VMM shells: VMMs that wait for the VM that they will be. What becomes of them, and that a VM in one is like any other."""

import os
import pathlib
import signal
import threading
import time

from case import MIB, Case, main, until
from forkdlab import bin_dir

REAL = os.environ.get("FORKD_QEMU", "/usr/bin/qemu-system-x86_64")


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Shells(Case):
    lab_options = {"store": "1G", "config": "[vmm]\nshells = 2\nshell_idle_seconds = 600\n"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        disk = cls.lab.dir / "disk.img"
        disk.write_bytes(b"first bytes of the disk" + bytes(4 * MIB - 23))
        cls.lab.ctl("run", "base", "--mem", "128M", "--disk", str(disk))
        cls.lab.sh("base", "head -c 1048576 /dev/urandom > /run/data; echo base > /dev/console")
        cls.sum = cls.lab.text("base", "sha256sum /run/data")
        cls.lab.ctl("standby", "base", "--tag", "warm")
        cls.lab.ctl("fork", "warm", "first")
        cls.lab.ctl("rm", "first")

    def setUp(self):
        if self.lab.forkd is None:
            self.lab.start()
        if not self.lab.shells()["ready"]: # of a forkd that has not restored anything yet
            self.lab.ctl("fork", "warm", "again")
            self.lab.ctl("rm", "again")
        self.lab.wait_shells()

    def tearDown(self):
        if self.lab.forkd is None:
            return
        names = [v["name"] for v in self.lab.ctl("ps") if v["name"] != "base"]
        if names:
            self.lab.ctl("rm", *names)

    def shell_pids(self):
        return sorted(p for pids in self.lab.vmm_groups()[1].values() for p in pids)

    def crash(self):
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        self.lab.forkd = None

    # ---- VMs in shells ----

    def test_a_vm_in_a_shell_is_like_any_other(self):
        before = self.lab.shells()
        pids = self.shell_pids()
        self.lab.ctl("fork", "warm", "c", "--count", 2)
        after = self.lab.shells()
        self.assertEqual((after["used"] - before["used"], after["missed"] - before["missed"]), (2, 0))
        vms = [self.lab.vm(f"c-{i}") for i in (1, 2)]
        self.assertEqual(sorted(v["pid"] for v in vms), pids)
        for v in vms:
            self.assertEqual(self.lab.text(v["name"], "sha256sum /run/data"), self.sum)
            # its own disk, console and log, wherever QEMU had put the shell's
            self.assertEqual(self.lab.text(v["name"], "head -c 23 /dev/vda"), "first bytes of the disk")
            self.lab.sh(v["name"], f"echo {v['name']} wrote this | dd of=/dev/vda conv=fsync 2>/dev/null; echo here is {v['name']} > /dev/console")
            disk = self.lab.state / "store" / "vms" / v["id"] / "disk-0.img"
            self.assertTrue(disk.read_bytes().startswith(f"{v['name']} wrote this".encode()))
            until(lambda v=v: f"here is {v['name']}" in (pathlib.Path(v["dir"]) / "console.log").read_text(errors="replace"))
            links = {os.readlink(f) for f in pathlib.Path(f"/proc/{v['pid']}/fd").iterdir()}
            self.assertFalse([x for x in links if "forkd-disk" in x or "forkd-console" in x], links)
            self.assertEqual(len([x for x in links if x.endswith("vmm.log") or x.endswith("console.log")]), 2, links)
            self.assertGreater(v["vmm_bytes"], MIB)
            self.assertLess(v["guest_private_bytes"], 128 * MIB)
            self.assertEqual(self.lab.private_bytes(v["pid"]) // MIB, self.lab.vm(v["name"])["guest_private_bytes"] // MIB)
        self.assertNotEqual(*(pathlib.Path(f"/proc/{v['pid']}/status").read_text().split("Uid:")[1].split()[0] for v in vms))
        # all that can be done with one
        self.lab.ctl("pause", "c-1")
        self.lab.ctl("resume", "c-1")
        self.lab.ctl("standby", "c-1", "--tag", "child")
        self.lab.ctl("restore", "c-1") # a VM whose id is not the shell's
        self.assertTrue(self.lab.text("c-1", "head -c 14 /dev/vda").startswith("c-1 wrote this"))
        self.lab.ctl("stop", "c-2")
        self.lab.ctl("rm", "c-1", "c-2")
        self.lab.ctl("snapshot", "rm", "child")

    def test_more_than_there_are(self):
        before = self.lab.shells()
        self.lab.ctl("fork", "warm", "m", "--count", 4)
        after = self.lab.shells()
        self.assertEqual((after["used"] - before["used"], after["missed"] - before["missed"]), (2, 2))
        for i in range(1, 5):
            self.assertEqual(self.lab.text(f"m-{i}", "sha256sum /run/data"), self.sum)

    def test_each_shape_has_its_own(self):
        self.lab.ctl("run", "other", "--mem", "160M", "--vcpus", 2)
        self.lab.ctl("standby", "other", "--tag", "other")
        missed = self.lab.shells()["missed"]
        self.lab.ctl("restore", "other")
        self.assertEqual(self.lab.shells()["missed"], missed + 1) # none of 128 MiB with a disk
        self.lab.wait_shells(4)
        self.lab.ctl("fork", "other", "o")
        self.assertEqual(self.lab.shells()["missed"], missed + 1)
        self.assertEqual(self.lab.text("o", "nproc"), "2")
        self.lab.ctl("rm", "o", "other")
        self.lab.ctl("snapshot", "rm", "other")
        self.lab.terminate() # of which that shape is forgotten

    # ---- their end ----

    def test_a_shell_that_is_killed_is_replaced(self):
        failed = self.lab.shells()["failed"]
        pid = self.shell_pids()[0]
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.lab.shells()["failed"] == failed + 1)
        self.assertEqual(self.lab.shells()["ready"], 1)
        self.assertNotIn(pid, self.shell_pids())
        self.lab.ctl("fork", "warm", "k") # with the other one
        self.assertEqual(self.lab.text("k", "sha256sum /run/data"), self.sum)
        self.lab.wait_shells()

    def test_a_shell_that_is_killed_as_it_is_taken(self):
        for delay in (0, 0.006, 0.012):
            self.lab.wait_shells()
            pids = self.shell_pids()

            def kill(pids=pids):
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            t = threading.Timer(delay, kill)
            t.start()
            try:
                self.lab.ctl("fork", "warm", "t", timeout=60)
            except AssertionError:
                raise
            except Exception as e: # one that had its memory already is that VM's VMM
                self.assertIn(e.error["code"], ("vmm-failed", "agent-failed"), e)
            t.join()
            names = [v["name"] for v in self.lab.ctl("ps")]
            if "t" in names:
                until(lambda: self.lab.vm("t")["state"] in ("running", "failed"))
                self.lab.ctl("rm", "t")
            self.lab.ctl("fork", "warm", "u")
            self.assertEqual(self.lab.text("u", "sha256sum /run/data"), self.sum)
            self.lab.ctl("rm", "u")
            until(lambda pids=pids: not any(alive(p) for p in pids))

    def test_a_shell_that_does_not_answer(self):
        """It is given up, and the VM gets a VMM of its own."""
        pids = self.shell_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            start = time.monotonic()
            self.lab.ctl("fork", "warm", "s")
            self.assertLess(time.monotonic() - start, 30)
            self.assertNotIn(self.lab.vm("s")["pid"], pids)
            self.assertEqual(self.lab.text("s", "sha256sum /run/data"), self.sum)
        finally:
            for pid in pids:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)

    def test_a_shell_that_does_not_answer_a_live_fork(self):
        """Until it is given up the snapshot has been published, and there is no nascent image any more."""
        self.lab.ctl("fork", "warm", "source")
        self.lab.wait_shells()
        pids = self.shell_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            self.lab.ctl("fork", "source", "s")
            self.assertNotIn(self.lab.vm("s")["pid"], pids)
            self.assertEqual(self.lab.text("s", "sha256sum /run/data"), self.sum)
        finally:
            for pid in pids:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
        # what it lives on is what its own snapshot is a child of
        self.lab.ctl("standby", "s")
        self.lab.ctl("restore", "s")
        self.assertEqual(self.lab.text("s", "sha256sum /run/data"), self.sum)

    def test_forkd_is_told_to_end(self):
        pids = self.shell_pids()
        self.lab.ctl("fork", "warm", "stays")
        vm = self.lab.vm("stays")
        self.assertIn(vm["pid"], pids)
        self.lab.terminate()
        self.assertEqual([p for p in pids if alive(p)], [vm["pid"]])
        self.lab.start()
        self.assertEqual(self.lab.vm("stays")["pid"], vm["pid"])
        self.assertEqual(self.lab.vm("stays")["cgroup"], vm["cgroup"])
        self.assertEqual(self.lab.text("stays", "sha256sum /run/data"), self.sum)

    def test_forkd_is_killed(self):
        pids = self.shell_pids()
        self.lab.ctl("fork", "warm", "stays")
        pid = self.lab.vm("stays")["pid"]
        self.crash()
        until(lambda: [p for p in pids if alive(p)] == [pid])
        self.lab.start()
        self.assertEqual(self.lab.vm("stays")["pid"], pid)
        self.assertEqual(self.lab.text("stays", "sha256sum /run/data"), self.sum)
        self.assertEqual(self.lab.ctl("doctor", "--orphans", "--state-dir", str(self.lab.state))["orphans"], [])
        self.assertEqual({p.name for p in (self.lab.run_dir / "vms").iterdir()}, {self.lab.vm("stays")["id"]})

    def test_shells_are_nobodys_orphans(self):
        for fix in ([], ["--fix"]):
            self.assertEqual(self.lab.ctl("doctor", "--orphans", "--state-dir", str(self.lab.state), *fix)["orphans"], [])
        self.assertEqual(self.lab.wait_shells()["ready"], 2)

    def test_another_program_on_disk(self):
        path = self.lab.dir / "qemu-of-ours"
        os.chmod(self.lab.dir, 0o755)
        path.write_text(f'#!/bin/sh\nexec {REAL} "$@"\n')
        path.chmod(0o755)
        self.lab.terminate()
        self.lab.env["FORKD_QEMU"] = str(path)
        self.addCleanup(self.lab.env.pop, "FORKD_QEMU")
        self.lab.start()
        self.setUp()
        pids = self.shell_pids()
        new = path.with_suffix(".new")
        new.write_text(path.read_text() + "# upgraded\n")
        new.chmod(0o755)
        new.rename(path)
        self.lab.ctl("fork", "warm", "up")
        self.assertNotIn(self.lab.vm("up")["pid"], pids)
        until(lambda: not any(alive(p) for p in pids))
        self.assertEqual(self.lab.text("up", "sha256sum /run/data"), self.sum)
        self.assertFalse(set(self.shell_pids()) & set(pids))
        self.lab.wait_shells()
        self.lab.ctl("rm", "up")
        self.lab.terminate()

    # ---- room ----

    def test_they_make_room(self):
        conf = self.lab.conf.read_text()
        self.lab.terminate()
        self.lab.conf.write_text(conf + "[limits]\nvcpus = 3\n")
        self.addCleanup(self.lab.conf.write_text, conf)
        self.lab.start()
        self.setUp()
        pids = self.shell_pids()
        self.refused("fork", "warm", "r", "--count", 4, code="limit", says=["4 needed", "3 of 3 left"])
        until(lambda: not any(alive(p) for p in pids))
        self.assertEqual(self.lab.shells()["ready"], 0)
        self.lab.ctl("fork", "warm", "r", "--count", 3)
        self.lab.ctl("rm", "r-1", "r-2", "r-3")
        self.lab.terminate()

    def test_none_where_none_are_wanted(self):
        conf = self.lab.conf.read_text()
        self.lab.terminate()
        self.lab.conf.write_text(conf.replace("shells = 2", "shells = 0"))
        self.addCleanup(self.lab.conf.write_text, conf)
        self.lab.start()
        for i in range(3):
            self.lab.ctl("fork", "warm", f"n{i}")
        self.assertEqual(self.lab.shells(), {"ready": 0, "starting": 0, "used": 0, "missed": 0, "failed": 0})
        self.assertEqual(self.lab.vmm_groups()[1], {})
        self.lab.ctl("rm", "n0", "n1", "n2")
        self.lab.terminate()

    def test_idle_ones_go(self):
        conf = self.lab.conf.read_text()
        self.lab.terminate()
        self.lab.conf.write_text(conf.replace("shell_idle_seconds = 600", "shell_idle_seconds = 1"))
        self.addCleanup(self.lab.conf.write_text, conf)
        self.lab.start()
        self.lab.ctl("fork", "warm", "i")
        until(lambda: self.lab.shells()["ready"] == 2)
        pids = self.shell_pids()
        until(lambda: self.lab.shells()["ready"] == 0)
        until(lambda: not any(alive(p) for p in pids))
        self.assertEqual(list(self.lab.vmm_groups()[0]), [self.lab.vm("i")["id"]])
        self.lab.ctl("rm", "i")
        self.lab.terminate()

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    assert bin_dir().exists()
    main()
