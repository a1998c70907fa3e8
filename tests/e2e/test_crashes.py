# SPDX-License-Identifier: MIT
"""forkd, its pager and its workers are killed in the middle of things: nothing is lost, nobody is orphaned, and the
next operation works."""

import contextlib
import os
import pathlib
import select
import signal
import subprocess
import threading
import time

from case import Case, main
from forkdlab import Refused, bin_dir, cgroups, instance
from mprpc import Client, Error, pack

REAL = "/usr/bin/qemu-system-x86_64"
VERSION = f'[ "$1" = --version ] && exec {REAL} --version\n'


def kill(pid):
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.close(fd)


class Crashes(Case):
    lab_options = {"store": "1G"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "128M")
        cls.lab.sh("base", "head -c 2097152 /dev/urandom > /run/data")
        cls.sum = cls.lab.text("base", "sha256sum /run/data")
        cls.lab.ctl("standby", "base", "--tag", "base")

    def setUp(self):
        self.keep_only_base()

    def keep_only_base(self):
        others = [v["name"] for v in self.lab.ctl("ps") if v["name"] != "base"]
        if others:
            self.lab.ctl("rm", *others)
        for s in self.lab.ctl("snapshot", "ls"):
            if s["tag"] != "base":
                self.lab.ctl("snapshot", "rm", s["id"])

    # ---- looking ----

    def with_qemu(self, script):
        path = self.lab.dir / "qemu-of-ours"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)  # VMMs are other users
        self.restart(FORKD_QEMU=str(path))

    def restart(self, **env):
        self.lab.env.pop("FORKD_QEMU", None)
        self.lab.env.update(env)
        if self.lab.forkd is not None:
            self.lab.terminate()
        self.lab.start()

    def crash(self):
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        self.lab.forkd = None

    def group_pids(self):
        """Processes by the VM whose cgroup they are in."""
        found = {}
        for base in cgroups(self.lab.state):
            for d in base.iterdir():
                if d.is_dir() and d.name not in ("pager", "workers"):
                    pids = [int(p) for p in (d / "cgroup.procs").read_text().split()]
                    if pids:
                        found[d.name] = pids
        return found

    def check_world(self):
        """Every VMM has a VM and every living VM its VMM; nothing lies about."""
        vms = {v["id"]: v for v in self.lab.ctl("ps")}
        for v in vms.values():
            self.assertIn(v["state"], ("running", "paused", "standby", "stopped", "failed"), v)
            self.assertIsNone(v["busy"], v)
        living = {i: v["pid"] for i, v in vms.items() if v["pid"]}
        groups, shells = self.lab.vmm_groups()
        self.assertEqual({i: p[0] for i, p in groups.items()}, living)
        dirs = [p for d in (self.lab.state / "vms", self.lab.run_dir / "vms", self.lab.state / "store" / "vms") for p in d.iterdir()]
        shells.update(self.lab.vmm_groups()[1]) # they come when nothing else goes on
        self.assertEqual([p for p in dirs if p.name not in vms and p.name not in shells], [])
        self.assertEqual(list((self.lab.state / "store" / "tmp").iterdir()), [])

    def after(self, seconds, fn, *args):
        t = threading.Timer(seconds, fn, args)
        t.start()
        return t

    def spawned(self, comm):
        """A pidfd of the VMM that calls itself @comm, which must be soon. It can tell nobody: it writes to no file of ours."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for pids in self.group_pids().values():
                for pid in pids:
                    with contextlib.suppress(OSError):
                        if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == comm:
                            return os.pidfd_open(pid)
        self.fail("the VMM was not started")

    # ---- forkd ----

    def crash_during(self, seconds, *args):
        """Runs forkctl and kills forkd so long after its start; True when forkctl was done before."""
        p = subprocess.Popen(self.lab.argv(*args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            p.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        self.crash()
        p.communicate(timeout=60)
        self.lab.start()
        return p.returncode == 0

    def test_forkd_killed_at_every_moment_of_a_fork(self):
        for i in range(8):
            done = self.crash_during(0.01 + 0.04 * i, "fork", "base", "c", "--count", "2")
            self.check_world()
            names = {v["name"]: v["state"] for v in self.lab.ctl("ps")}
            if done:
                self.assertEqual(names, {"base": "standby", "c-1": "running", "c-2": "running"})
            for n in names:
                if n != "base":
                    self.assertEqual(self.lab.text(n, "sha256sum /run/data"), self.sum)
                    self.lab.ctl("rm", n)

    def test_forkd_killed_at_every_moment_of_a_standby(self):
        for i in range(8):
            self.lab.ctl("fork", "base", "s")
            done = self.crash_during(0.005 + 0.015 * i, "standby", "s", "--tag", f"s{i}")
            self.check_world()
            state = self.state("s")
            self.assertIn(state, ("standby",) if done else ("standby", "running"))
            tags = [x["tag"] for x in self.lab.ctl("snapshot", "ls")]
            self.assertEqual(f"s{i}" in tags, state == "standby")
            if state == "standby":
                self.lab.ctl("restore", "s")
            self.assertEqual(self.lab.text("s", "sha256sum /run/data"), self.sum)
            self.lab.ctl("rm", "s")

    def test_forkd_killed_at_every_moment_of_a_restore(self):
        self.lab.ctl("fork", "base", "r")
        self.lab.ctl("standby", "r")
        for i in range(6):
            done = self.crash_during(0.01 + 0.04 * i, "restore", "r")
            self.check_world()
            state = self.state("r")
            self.assertIn(state, ("running",) if done else ("standby", "running"))
            if state == "standby":
                self.lab.ctl("restore", "r")
            self.assertEqual(self.lab.text("r", "sha256sum /run/data; hostname").split(), self.sum.split() + ["r"])
            self.lab.ctl("standby", "r")

    def test_forkd_killed_at_every_moment_of_a_removal(self):
        for i in range(6):
            self.lab.ctl("fork", "base", "g")
            self.crash_during(0.003 * i, "rm", "g")
            self.check_world()
            for v in self.lab.ctl("ps"):
                # either it had not begun, or it is finished; never a VM that is half there
                if v["name"] == "g":
                    self.assertEqual(v["state"], "running")
                    self.lab.ctl("rm", "g")

    def test_forkd_killed_at_every_moment_of_a_boot(self):
        for i in range(5):
            done = self.crash_during(0.02 + 0.25 * i, "run", "b", "--mem", "128M")
            self.check_world()
            names = [v["name"] for v in self.lab.ctl("ps")]
            self.assertEqual("b" in names, done)
            if done:
                self.lab.ctl("rm", "b")

    def test_a_vmm_whose_pid_was_never_noted(self):
        # it is spawned, but does not answer: forkd is still waiting for it, and has written no pid
        self.with_qemu(VERSION + 'exec sleep 100000\n')
        p = subprocess.Popen(self.lab.argv("run", "never", "--mem", "128M"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        orphan = self.spawned("sleep")
        self.crash()
        p.wait(timeout=60)
        self.lab.start()
        self.assertTrue(select.select([orphan], [], [], 0)[0], "the VMM outlived its VM")
        os.close(orphan)
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["base"])
        self.check_world()
        self.restart()

    def test_groups_and_directories_without_a_vm(self):
        self.lab.ctl("fork", "base", "x")
        vm = self.lab.vm("x")
        orphan = os.pidfd_open(vm["pid"])
        self.crash()
        # its record is lost: nobody could end it any more
        record = self.lab.state / "vms" / vm["id"] / "record"
        record.unlink()
        for parent in ("run/vms", "state/store/vms"):
            (self.lab.dir / parent / "00000000deadbeef").mkdir()
        self.lab.start()
        self.assertTrue(select.select([orphan], [], [], 0)[0], "the VMM without a record lives")
        os.close(orphan)
        self.check_world()

    def test_an_unreadable_record_keeps_its_files(self):
        self.lab.ctl("fork", "base", "x")
        vm = self.lab.vm("x")
        self.crash()
        record = self.lab.state / "vms" / vm["id"] / "record"
        whole = record.read_bytes()
        record.write_bytes(whole[:-5])
        self.lab.start()
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["base"])
        self.assertEqual(self.group_pids(), {})
        self.assertTrue((self.lab.state / "store" / "vms" / vm["id"] / "base.img").exists())
        self.crash()
        record.write_bytes(whole)
        self.lab.start()
        self.assertEqual(self.state("x"), "failed")
        self.lab.ctl("rm", "x")

    def test_records_that_were_edited(self):
        """Whatever a record says, no process is touched that is not this VM's."""
        innocent = subprocess.Popen(["sleep", "100000"])
        self.addCleanup(innocent.wait)
        self.addCleanup(innocent.kill)
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        start = int(pathlib.Path(f"/proc/{innocent.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
        good = {"version": 1, "id": "", "name": "", "state": "running", "reason": "", "vmm": "qemu", "vmm_version": "1", "mem_bytes": 128 << 20,
                "vcpus": 1, "accel": "tcg", "n_disks": 0, "on_pager_loss": "kill", "net": "none", "snapshot": "", "parent": "",
                "pending_snapshot": "", "generation": 0, "pid": innocent.pid, "start_time": 0, "boot": boot, "session": False}
        odd = [{}, {"start_time": start + 1}, {"start_time": start, "boot": "another"}, {"state": "standby", "snapshot": "0" * 16},
               {"pid": 2**63}, {"pid": -5}, {"name": "../../etc"}, {"name": "base"}, {"id": "f" * 16}, {"mem_bytes": 2**63},
               {"n_disks": 1000}, {"vmm": "x" * 100}, {"snapshot": "../../../../etc"}, {"state": "flying"}, {"version": 2},
               {"reason": "%s%n" * 100}, {"generation": 2**40}, {"pending_snapshot": "0" * 16}, {"removing": True}, [], None, 7]
        self.crash()
        for i, change in enumerate(odd):
            vm_id = f"{0xabc0000000000000 + i:016x}"
            folder = self.lab.state / "vms" / vm_id
            folder.mkdir()
            body = dict(good, id=vm_id, name=f"edited-{i}") | change if isinstance(change, dict) else change
            (folder / "record").write_bytes(pack(body))
        self.lab.start()
        self.assertIsNone(innocent.poll())
        for v in self.lab.ctl("ps"):
            if v["name"] != "base":
                self.assertIn(v["state"], ("failed", "standby", "stopped"), v)
                with self.assertRaises(Refused):
                    self.lab.ctl("exec", v["name"], "--", "true")
                if v["state"] == "standby":
                    self.refused("restore", v["name"], code="not-found")
                self.lab.ctl("rm", v["name"])
        self.assertIsNone(innocent.poll())
        self.crash()
        for p in (self.lab.state / "vms").glob("abc0*"):
            (p / "record").unlink()
        self.lab.start()
        self.check_world()

    # ---- coming back ----

    def test_a_paused_vm_that_was_taken_back_answers_when_it_goes_on(self):
        self.lab.ctl("fork", "base", "p")
        self.lab.ctl("pause", "p")
        self.lab.ctl("fork", "base", "q", "--paused")
        self.crash()
        self.lab.start()
        for name in ("p", "q"):
            self.assertEqual(self.state(name), "paused")
            self.lab.ctl("resume", name)
            self.assertEqual(self.lab.text(name, "hostname"), name)

    def test_an_agent_that_died_is_found_again(self):
        self.lab.ctl("fork", "base", "a")
        self.lab.sh("a", "kill -9 $(pidof forkd-agent)", check=False, timeout=20)
        # "try again" is what one is told, and it helps
        for _ in range(20):
            if self.lab.sh("a", "true", check=False).code == 0:
                break
        self.assertEqual(self.lab.text("a", "hostname"), "a")
        self.lab.ctl("standby", "a")

    def test_a_guest_whose_agent_never_stays_cannot_keep_forkd_busy(self):
        self.lab.ctl("fork", "base", "n", "--count", "3")
        for i in (1, 2, 3):
            self.lab.sh(f"n-{i}", "setsid sh -c 'while :; do kill -9 $(pidof forkd-agent); done' < /dev/null > /dev/null 2>&1 &", check=False)
        for _ in range(4):
            self.lab.sh("n-1", "true", check=False)
        self.lab.ctl("pause", "n-1")
        self.lab.ctl("standby", "n-2")
        self.lab.ctl("stop", "n-3")
        self.lab.ctl("rm", "n-1", "n-2", "n-3")

    def test_sigterm_before_the_door_is_open(self):
        self.lab.ctl("fork", "base", "t")
        pid = self.lab.vm("t")["pid"]
        self.lab.terminate()
        for i in range(6):
            p = subprocess.Popen([bin_dir() / "forkd", "--state-dir", self.lab.state, "--run-dir", self.lab.run_dir,
                                  "--config", self.lab.conf], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL, env=self.lab.env)
            try:
                p.wait(timeout=0.03 * i)
            except subprocess.TimeoutExpired:
                pass
            p.terminate()
            # so early that no handler is there yet, the signal itself ends it
            self.assertIn(p.wait(timeout=60), (0, -signal.SIGTERM))
            os.kill(pid, 0)
        self.lab.start()
        self.assertEqual(self.lab.vm("t")["pid"], pid)
        self.assertEqual(self.lab.text("t", "sha256sum /run/data"), self.sum)

    def test_two_shutdowns_while_clones_are_made(self):
        with Client(self.lab.socket) as a, Client(self.lab.socket) as b, Client(self.lab.socket) as c:
            fork = a.send("vm.fork", {"source": "base", "name": "late", "count": 3})
            a.call("version")  # by now it has begun
            first, second = b.send("shutdown", {"all": True}), c.send("shutdown", {"all": True})
            try:
                made = [x["name"] for x in a.wait(fork)["clones"]]
            except Error as e:
                self.assertEqual(e.code, "canceled")
                made = []
            with self.assertRaises((Error, EOFError)) as caught:
                a.call("vm.run", {"name": "later"})
            if isinstance(caught.exception, Error):
                self.assertEqual(caught.exception.code, "canceled")
            # both are answered when it is true
            self.assertEqual(sorted(b.wait(first)["stopped"]), sorted(made))
            self.assertEqual(sorted(c.wait(second)["stopped"]), sorted(made))
            self.assertEqual(self.group_pids(), {})
        self.assertEqual(self.lab.forkd.wait(timeout=60), 0)
        self.lab.forkd = None
        self.assertEqual(self.lab.leftovers(), [])
        self.lab.start()
        self.assertEqual({v["state"] for v in self.lab.ctl("ps") if v["name"] != "base"}, {"stopped"} if made else set())

    # ---- the pager ----

    def pager(self):
        return self.lab.ctl("pager", "status").get("pid")

    def test_the_pager_dies_at_every_moment_of_a_fork(self):
        for i in range(8):
            self.lab.ctl("fork", "base", "warm")
            timer = self.after(0.02 * i, kill, self.pager())
            try:
                self.lab.ctl("fork", "base", "c", "--count", "2", timeout=60)
            except Refused as e:
                self.assertIn(e.error["code"], ("pager-failed", "vmm-failed", "agent-failed", "unreachable"), e)
            timer.join()
            self.keep_only_base_when_idle()
            self.check_world()
        self.lab.ctl("fork", "base", "fine")
        self.assertEqual(self.lab.text("fine", "sha256sum /run/data"), self.sum)

    def keep_only_base_when_idle(self):
        for _ in range(2000):
            try:
                return self.keep_only_base()
            except Refused as e:
                self.assertEqual(e.error["code"], "busy", e)
        self.fail("always busy")

    def test_the_pager_dies_while_a_vmm_starts(self):
        # a VMM that has its session but does not answer yet: nobody has a handle on it
        self.with_qemu(VERSION + 'exec sleep 100000\n')
        p = subprocess.Popen(self.lab.argv("fork", "base", "c"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        vmm = self.spawned("sleep")
        kill(self.pager())
        self.assertTrue(select.select([vmm], [], [], 5)[0], "it waits for a pager that is gone")
        os.close(vmm)
        out = p.communicate(timeout=20)[0].decode()
        self.assertIn("pager-failed", out)
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["base"])
        self.restart()
        self.lab.ctl("fork", "base", "c")
        self.assertEqual(self.lab.text("c", "sha256sum /run/data"), self.sum)

    def test_the_pager_dies_during_a_standby(self):
        for i in range(6):
            self.lab.ctl("fork", "base", "s")
            timer = self.after(0.008 * i, kill, self.pager())
            try:
                self.lab.ctl("standby", "s", timeout=60)
                done = True
            except Refused:
                done = False
            timer.join()
            for _ in range(2000):
                vm = self.lab.vm("s")
                if vm["busy"] is None and vm["state"] in ("standby", "failed"):
                    break
            self.assertEqual(vm["state"], "standby" if done else "failed")
            if done:
                self.lab.ctl("restore", "s")
                self.assertEqual(self.lab.text("s", "sha256sum /run/data"), self.sum)
            else:
                self.assertEqual(vm["reason"], "pager-lost")
            self.keep_only_base_when_idle()
            self.check_world()

    def test_a_pager_that_hangs_when_forkd_comes_back(self):
        self.lab.ctl("fork", "base", "h")
        pager, vmm = self.pager(), os.pidfd_open(self.lab.vm("h")["pid"])
        self.crash()
        os.kill(pager, signal.SIGSTOP)
        hung = os.pidfd_open(pager)
        self.lab.start()
        self.assertTrue(select.select([vmm], [], [], 0)[0], "a guest without a pager lives")
        self.assertTrue(select.select([hung], [], [], 0)[0], "the pager that hangs is still there")
        os.close(vmm)
        os.close(hung)
        self.assertEqual((self.lab.vm("h")["state"], self.lab.vm("h")["reason"]), ("failed", "pager-lost"))
        self.lab.ctl("fork", "base", "i")
        self.assertEqual(self.lab.text("i", "sha256sum /run/data"), self.sum)

    def test_a_pager_that_hangs_while_forkd_runs(self):
        self.lab.ctl("fork", "base", "h")
        hung, vmm = os.pidfd_open(self.pager()), os.pidfd_open(self.lab.vm("h")["pid"])
        os.kill(self.pager(), signal.SIGSTOP)
        # its heart stands still: it dies with its guests, and who needs one meanwhile gets the next
        self.lab.ctl("fork", "base", "i")
        for fd in (hung, vmm):
            self.assertTrue(select.select([fd], [], [], 5)[0])
            os.close(fd)
        self.assertEqual((self.state("h"), self.lab.vm("h")["reason"]), ("failed", "pager-lost"))
        self.assertEqual(self.lab.text("i", "sha256sum /run/data"), self.sum)

    # ---- workers ----

    def test_workers_die_at_every_moment_of_a_standby(self):
        def all_workers():
            for w in self.lab.workers():
                kill(w)
        self.lab.ctl("fork", "base", "w")
        before = {s["id"] for s in self.lab.ctl("snapshot", "ls")}
        for i in range(10):
            timer = self.after(0.006 * i, all_workers)
            try:
                self.lab.ctl("standby", "w", "--tag", "w")
                done = True
            except Refused as e:
                done = False
                self.assertTrue(e.error["message"])
            timer.join()
            self.assertEqual(self.state("w"), "standby" if done else "running")
            self.check_world()
            if done:
                self.lab.ctl("restore", "w")
                self.lab.ctl("snapshot", "rm", "w")
            self.assertEqual({s["id"] for s in self.lab.ctl("snapshot", "ls")}, before)
            self.assertEqual(self.lab.text("w", "sha256sum /run/data"), self.sum)

    # ---- two at once ----

    def test_one_tag_for_two(self):
        self.lab.ctl("fork", "base", "t", "--count", "4")
        with Client(self.lab.socket) as c:
            ids = [c.send("vm.standby", {"name": f"t-{i}", "tag": "same"}) for i in range(1, 5)]
            outcomes = []
            for i in ids:
                try:
                    c.wait(i)
                    outcomes.append("done")
                except Error as e:
                    outcomes.append(e.code)
        self.assertEqual(sorted(outcomes), ["done", "exists", "exists", "exists"])
        self.assertEqual([s["tag"] for s in self.lab.ctl("snapshot", "ls")].count("same"), 1)

    def test_a_fork_that_fails_leaves_no_snapshot(self):
        self.with_qemu(VERSION + f'case "$*" in *incoming*) echo "no clones today" >&2; exit 3;; esac\nexec {REAL} "$@"\n')
        self.lab.ctl("run", "src", "--mem", "128M")
        before = self.lab.ctl("snapshot", "ls")
        e = self.refused("fork", "src", "--count", "3", code="vmm-failed")
        self.assertIn("no clones today", e["message"])
        self.assertEqual(self.lab.ctl("snapshot", "ls"), before)
        self.assertEqual(sorted(v["name"] for v in self.lab.ctl("ps")), ["base", "src"])
        self.assertEqual(self.lab.text("src", "echo on"), "on")
        self.check_world()
        self.restart()

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
