# SPDX-License-Identifier: MIT
"""A VMM that was killed and does not end: what it holds stays its own until it has."""

import os
import subprocess
import sys

from case import Case, main, until

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
        # What it still holds belongs to somebody.
        for fix in ([], ["--fix"]):
            self.assertEqual(self.lab.ctl("doctor", "--orphans", "--state-dir", str(self.lab.state), *fix)["orphans"], [])
        held.let_go()
        until(lambda: self.lab.vm("stopped")["pid"] is None and not self.lab.vm("stopped")["reason"])
        self.lab.ctl("rm", "stopped")

    def test_a_conflict_names_who_lingers(self):
        """A VMM that finds something in use: whose it may be is told."""
        real = "/usr/bin/qemu-system-x86_64"
        qemu = self.lab.dir / "qemu"
        qemu.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {real} --version\n'
                        f'[ -e {self.lab.dir}/conflict ] || exec {real} "$@"\necho "bind: Address already in use" >&2\nexit 1\n')
        qemu.chmod(0o755)
        self.lab.dir.chmod(0o755)
        self.lab.conf.write_text("[security]\njail = off\n")
        self.restart(FORKD_QEMU=str(qemu))
        try:
            self.lab.ctl("fork", "warm", "old")
            (self.lab.dir / "conflict").touch()
            self.refused("fork", "warm", "new", code="vmm-failed", says=["already in use", "no VM of this forkd"])
            pid, held = self.hold("old")
            self.refused("stop", "old", code="busy")
            e = self.refused("fork", "warm", "new", code="vmm-failed", says=["already in use", "held by 'old'", f"pid {pid}"])
            self.assertTrue(e["hint"])
            held.let_go()
            until(lambda: self.lab.vm("old")["pid"] is None)
            self.lab.ctl("rm", "old")
        finally:
            self.lab.conf.write_text("")
            self.restart()

    def restart(self, **env):
        self.lab.terminate()
        self.lab.env.pop("FORKD_QEMU", None)
        self.lab.env.update(env)
        self.lab.start()


if __name__ == "__main__":
    main()
