# SPDX-License-Identifier: MIT
"""Where there is no cgroup v2, a mark in their environment tells which processes are a forkd's: nothing is lost and nothing
is left there either. The whole test lives in a mount namespace without cgroup2."""

import os
import pathlib
import select
import stat
import subprocess
import sys

from case import Case, main, why_not
from forkdlab import instance

REAL = "/usr/bin/qemu-system-x86_64"


class NoCgroup(Case):
    lab_options = {"store": "1G"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "128M")
        cls.lab.sh("base", "head -c 1048576 /dev/urandom > /run/data")
        cls.sum = cls.lab.text("base", "sha256sum /run/data")
        cls.lab.ctl("standby", "base")

    def crash(self):
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        self.lab.forkd = None

    def orphans(self, *args):
        return self.lab.ctl("doctor", "--orphans", "--state-dir", str(self.lab.state), *args)

    def test_1_there_is_none(self):
        kinds = {line.split()[2] for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()}
        self.assertNotIn("cgroup2", kinds)
        self.lab.ctl("fork", "base", "c", "--count", "2")
        self.assertEqual(self.orphans()["orphans"], [])
        self.assertEqual(self.orphans("--fix")["orphans"], [])
        self.assertEqual(self.lab.text("c-1", "sha256sum /run/data"), self.sum)

    def test_2_vms_are_taken_back(self):
        pids = [self.lab.vm(n)["pid"] for n in ("c-1", "c-2")]
        self.crash()
        self.assertTrue(self.orphans("--fix")["ok"])
        self.lab.start()
        self.assertEqual([self.lab.vm(n)["pid"] for n in ("c-1", "c-2")], pids)
        self.assertEqual(self.lab.text("c-2", "sha256sum /run/data"), self.sum)

    def test_3_a_vmm_whose_pid_was_never_noted(self):
        mark, path = self.lab.dir / "spawned", self.lab.dir / "qemu-of-ours"
        os.mkfifo(mark)
        os.chmod(mark, 0o666)
        os.chmod(self.lab.dir, 0o755)
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {REAL} --version\nexec sleep 100000\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        self.lab.terminate()
        self.lab.env["FORKD_QEMU"] = str(path)
        self.lab.start()
        del self.lab.env["FORKD_QEMU"]
        p = subprocess.Popen(self.lab.argv("run", "never", "--mem", "128M"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        orphan = self.started_by_forkd("sleep")
        self.crash()
        p.wait(timeout=60)
        self.assertIn(("process", str(orphan[0])), [(o["kind"], o["what"]) for o in self.orphans()["orphans"]])
        self.lab.start()
        self.assertTrue(select.select([orphan[1]], [], [], 0)[0], "the VMM outlived its VM")
        os.close(orphan[1])
        self.assertEqual(sorted(v["name"] for v in self.lab.ctl("ps")), ["base", "c-1", "c-2"])
        self.assertEqual(self.orphans()["orphans"], [])

    def started_by_forkd(self, name):
        """The process of that name that has our mark, as soon as there is one: its pid, and a pidfd."""
        want = f"FORKD_INSTANCE={instance(self.lab.state)}".encode()
        for _ in range(100000):
            for p in pathlib.Path("/proc").glob("[0-9]*"):
                try:
                    if (p / "comm").read_text().strip() == name and want in (p / "environ").read_bytes().split(b"\0"):
                        return int(p.name), os.pidfd_open(int(p.name))
                except OSError:
                    pass
        self.fail(f"no {name} was started")

    def test_4_a_vmm_without_its_record(self):
        vm = self.lab.vm("c-1")
        self.crash()
        (self.lab.state / "vms" / vm["id"] / "record").unlink()
        fd = os.pidfd_open(vm["pid"])
        doc = self.orphans("--fix")
        self.assertTrue(doc["ok"], doc)
        self.assertIn(("process", str(vm["pid"])), [(o["kind"], o["what"]) for o in doc["orphans"]])
        self.assertTrue(select.select([fd], [], [], 0)[0])
        os.close(fd)
        self.lab.start()
        self.assertEqual(self.lab.text("c-2", "sha256sum /run/data"), self.sum)

    def test_5_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])
        self.assertEqual(self.orphans()["orphans"], [])


def without_cgroup2():
    """Runs this file again where it is not mounted."""
    mounts = [line.split()[1] for line in pathlib.Path("/proc/self/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"]
    script = "".join(f"umount -l {m} && " for m in mounts) + 'exec "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", sys.executable, *sys.argv]
    return subprocess.run(argv, env=dict(os.environ, FORKD_TEST_WITHOUT_CGROUP2="1")).returncode


if __name__ == "__main__":
    if os.environ.get("FORKD_TEST_WITHOUT_CGROUP2") or why_not():
        main()
    else:
        sys.exit(without_cgroup2())
