# SPDX-License-Identifier: MIT
"""Things break in the middle: the disk fills up, the VMM dies, the VMM is another version. The VM that was
running runs on, or is told as failed; nothing half-made stays."""

import os
import re
import signal
import subprocess
import threading

from case import KEEPER, MIB, Case, main
from forkdlab import Lab, Refused


class Faults(Case):
    lab_options = {"store": "1G", "config": "[limits]\ndisk_reserve = 0\n"}

    def setUp(self):
        names = {v["name"]: v for v in self.lab.ctl("ps")}
        for n in names:
            self.lab.ctl("rm", n)

    def leave_free(self, mib):
        store = self.lab.state / "store"
        with open(store / "ballast", "wb") as f:
            free = os.statvfs(store)
            os.posix_fallocate(f.fileno(), 0, free.f_bavail * free.f_frsize - mib * MIB)
        return store / "ballast"

    def test_no_space_for_a_standby(self):
        """Too little for it to begin, and then too little in the middle of it."""
        self.lab.ctl("run", "full", "--mem", "512M")
        self.lab.sh("full", f"head -c {200 * MIB} /dev/urandom > /run/data")
        self.lab.sh("full", "cat > /run/keeper", stdin=KEEPER.encode())
        self.lab.sh("full", "setsid sh /run/keeper < /dev/null > /dev/null 2>&1 &")
        digest, secret = self.digest("full"), self.ask("full", "first")[0]
        store = self.lab.state / "store"
        before = {s["id"] for s in self.lab.ctl("snapshot", "ls")}
        ballast = self.leave_free(40)
        try:
            e = self.refused("standby", "full", code="no-space", says=["a snapshot of 'full'", "MiB needed"])
            needed = int(re.search(r"(\d+) MiB needed", e["message"])[1])
            # Random bytes do not compress: what was reserved is not enough.
            ballast = self.leave_free(needed + 8)
            e = self.refused("standby", "full", code="no-space")
            self.assertNotIn("needed", e["message"])
            self.assertEqual(self.state("full"), "running")
            self.assertEqual(self.digest("full"), digest)
            self.assertEqual(self.ask("full", "still")[0], secret)
            self.assertEqual({s["id"] for s in self.lab.ctl("snapshot", "ls")}, before)
            self.assertEqual(list((store / "tmp").iterdir()), [])
        finally:
            ballast.unlink()
        self.lab.ctl("standby", "full")
        self.lab.ctl("restore", "full")
        self.assertEqual(self.digest("full"), digest)

    def test_vmm_dies_while_it_runs(self):
        self.lab.ctl("run", "dies", "--mem", "128M")
        fd = os.pidfd_open(self.lab.vm("dies")["pid"])
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
        self.wait_for("dies", "failed")
        self.assertIn("ended unexpectedly", self.lab.vm("dies")["reason"])
        self.assertEqual(self.lab.sh("dies", "true", check=False).code, 125)

    def wait_for(self, name, state):
        """The next requests are answered in the order in which forkd learns of things; bounded by their number."""
        for _ in range(2000):
            if self.state(name) == state:
                return
        self.fail(f"{name} is {self.state(name)}, not {state}")

    @staticmethod
    def kill(pidfd):
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it was on standby already

    def with_qemu(self, script):
        """A forkd whose QEMU is a script of ours."""
        path = self.lab.dir / "qemu-of-ours"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)  # VMMs are other users
        self.lab.env["FORKD_QEMU"] = str(path)
        self.lab.terminate()
        self.lab.start()

    def with_real_qemu(self):
        self.lab.env.pop("FORKD_QEMU", None)
        self.lab.terminate()
        self.lab.start()

    def test_another_version_of_qemu(self):
        self.lab.ctl("run", "old", "--mem", "128M")
        self.lab.ctl("standby", "old")
        try:
            self.with_qemu('[ "$1" = --version ] && { echo "QEMU emulator version 99.1.2"; exit; }\n'
                           'exec /usr/bin/qemu-system-x86_64 "$@"\n')
            e = self.refused("restore", "old", code="version-mismatch", says=["99.1.2", "--force"])
            self.assertIn(self.lab.ctl("snapshot", "show", self.lab.vm("old")["snapshot"])["vmm_version"], e["message"])
            self.assertEqual(self.state("old"), "standby")
            self.lab.ctl("restore", "old", "--force")
            self.assertEqual(self.lab.text("old", "hostname"), "old")
            self.lab.ctl("rm", "old")
        finally:
            self.with_real_qemu()

    def test_a_qemu_that_does_not_start(self):
        try:
            self.with_qemu('[ "$1" = --version ] && exec /usr/bin/qemu-system-x86_64 "$@"\n'
                           'echo "the machine is out of order" >&2; exit 3\n')
            e = self.refused("run", "never", code="vmm-failed")
            self.assertIn("out of order", e["message"])
            self.assertEqual(self.lab.ctl("ps"), [])
        finally:
            self.with_real_qemu()

    def test_vmm_killed_at_random_moments_of_standby_and_restore(self):
        self.lab.ctl("run", "r", "--mem", "128M")
        self.lab.sh("r", "head -c 2097152 /dev/urandom > /run/data")
        digest = self.digest("r")
        self.lab.ctl("standby", "r", "--tag", "r")
        for i in range(12):
            name = f"r{i}"
            self.lab.ctl("fork", "r", name)
            fd = os.pidfd_open(self.lab.vm(name)["pid"])
            killer = threading.Timer(0.002 * i, self.kill, (fd,))
            killer.start()
            try:
                self.lab.ctl("standby", name)
                self.lab.ctl("fork", name, f"{name}-child")
                self.assertEqual(self.digest(f"{name}-child"), digest)
            except Refused:
                self.wait_for(name, "failed")
            killer.join()
            os.close(fd)
            self.assertEqual(list((self.lab.state / "store" / "tmp").iterdir()), [])
            self.lab.ctl("rm", *[v["name"] for v in self.lab.ctl("ps") if v["name"] != "r"])
        self.lab.ctl("restore", "r")
        self.assertEqual(self.digest("r"), digest)

    def test_a_disk_that_cannot_be_written_stops_the_guest_until_there_is_room(self):
        disk = self.lab.dir / "disk"
        with open(disk, "wb") as f:
            f.truncate(256 * MIB)
        self.lab.ctl("run", "d", "--mem", "128M", "--disk", disk)
        store = self.lab.state / "store"
        ballast = store / "ballast"
        free = os.statvfs(store)
        with open(ballast, "wb") as f:
            os.posix_fallocate(f.fileno(), 0, free.f_bavail * free.f_frsize - 20 * MIB)
        try:
            self.lab.sh("d", "(dd if=/dev/urandom of=/dev/vda bs=1M count=64 conv=fsync; echo done > /run/done) > /dev/null 2>&1 &")
            self.wait_for("d", "paused")
            self.assertIn("make room", self.lab.vm("d")["reason"])
        finally:
            ballast.unlink()
        self.lab.ctl("resume", "d")
        self.assertIsNone(self.lab.vm("d")["reason"])
        self.assertEqual(self.lab.text("d", "while [ ! -e /run/done ]; do :; done; cat /run/done"), "done")

    def test_a_full_state_directory(self):
        """Records cannot be written: what needs one is refused and undone, what ends things is not."""
        small = self.lab.dir / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=700", "tmpfs", small], check=True)
        os.environ["FORKD_LAB_DIR"] = str(small)
        try:
            with Lab(setup=False) as lab:
                for name in ("a", "b", "c"):
                    lab.ctl("run", name, "--mem", "96M")
                lab.ctl("standby", "c", "--tag", "c")
                with open(lab.dir / "ballast", "wb") as f:
                    while True:
                        try:
                            f.write(bytes(65536))
                            f.flush()
                        except OSError:
                            break
                for args in (["pause", "a"], ["standby", "a"], ["run", "d", "--mem", "96M"], ["fork", "c", "e", "--count", "2"],
                             ["restore", "c"], ["snapshot", "create", "a"]):
                    with self.assertRaises(Refused, msg=args) as caught:
                        lab.ctl(*args)
                    self.assertEqual(caught.exception.error["code"], "no-space", (args, caught.exception))
                    self.assertEqual([(v["name"], v["state"]) for v in lab.ctl("ps")],
                                     [("a", "running"), ("b", "running"), ("c", "standby")], args)
                self.assertEqual(lab.text("a", "hostname"), "a")
                self.assertEqual(lab.ctl("snapshot", "ls")[0]["tag"], "c")
                lab.ctl("stop", "a")
                self.assertEqual(lab.vm("a")["state"], "stopped")
                lab.ctl("rm", "b")
                lab.ctl("rm", "a", "c")
                self.assertEqual(lab.ctl("ps"), [])
                lab.end()
                self.assertEqual(lab.leftovers(), [])
        finally:
            del os.environ["FORKD_LAB_DIR"]
            subprocess.run(["umount", "-l", small], check=True)

    def test_guest_that_ends_itself(self):
        self.lab.ctl("run", "ends", "--mem", "128M")
        self.lab.sh("ends", "poweroff -f &", check=False)
        self.wait_for("ends", "stopped")

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
