# SPDX-License-Identifier: MIT
"""Snapshots that were tampered with by whoever can write to the store, and guests that try what a guest can: nothing hangs,
nothing of the host gets into a guest, and the others are not concerned (docs/security.md)."""

import os
import pathlib
import shutil
import time

from case import Case, MIB, main
from forkdlab import Lab, Refused

SECRET = b"this is the host's and nobody else's "


class Hostile(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.secret = cls.lab.dir / "secret"
        cls.secret.write_bytes((SECRET * (MIB // len(SECRET) + 1))[:MIB])
        disk = cls.lab.dir / "disk"
        disk.write_bytes(b"the VM's disk".ljust(MIB))
        cls.lab.ctl("run", "base", "--mem", "128M", "--disk", disk)
        cls.lab.ctl("snapshot", "create", "base", "--tag", "good")
        cls.lab.sh("base", "head -c 4194304 /dev/urandom > /run/more")
        cls.lab.ctl("standby", "base", "--tag", "other")
        cls.good, cls.other = (pathlib.Path(cls.lab.ctl("snapshot", "show", t)["path"]) for t in ("good", "other"))
        cls.backup = cls.lab.dir / "backup"

    def setUp(self):
        shutil.copytree(self.good, self.backup)

    def tearDown(self):
        if self.lab.forkd is None:  # and with it the store
            return
        self.put_back()
        shutil.rmtree(self.backup)
        self.assertEqual(self.lab.ctl("ps")[0]["name"], "base")

    def put_back(self):
        shutil.rmtree(self.good)
        shutil.copytree(self.backup, self.good)

    def replacements(self, path):
        """One after the other stands in the place of @path; yields what it is."""
        def link():
            path.symlink_to(self.secret)

        def device():
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))

        def empty():
            path.touch()

        def endless():
            path.touch()
            os.truncate(path, 1 << 42)

        def secret():
            shutil.copy(self.secret, path)
        for make in (link, lambda: os.mkfifo(path), path.mkdir, device, empty, endless, secret):
            path.unlink()
            make()
            yield f"{path.name}: {getattr(make, '__name__', 'fifo')}"
            self.put_back()

    def fork_is_refused(self, what, says=("corrupt", "not-found", "pager-failed", "vmm-failed", "io", "invalid")):
        start = time.monotonic()
        with self.assertRaises(Refused, msg=what) as caught:
            self.lab.ctl("fork", "good", "x", timeout=60)
        self.assertLess(time.monotonic() - start, 30, what)
        self.assertIn(caught.exception.error["code"], says, (what, caught.exception))
        self.assertNotIn(SECRET.decode()[:20], str(caught.exception))
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["base"], what)

    def restart(self):
        """Without a VM that lives the store is not mounted meanwhile: files are changed before."""
        self.lab.terminate()
        self.lab.start()

    def others_are_fine(self):
        self.lab.ctl("fork", "other", "fine")
        self.assertEqual(self.lab.text("fine", "hostname"), "fine")
        self.lab.ctl("rm", "fine")

    def test_memory_and_device_state_that_are_something_else(self):
        for name in ("memory.img", "vmstate"):
            for what in self.replacements(self.good / name):
                self.fork_is_refused(what)
            # whole and valid, but another snapshot's
            shutil.copy(self.other / name, self.good / name)
            self.fork_is_refused(f"{name} of another snapshot")
            self.put_back()
        self.others_are_fine()
        self.lab.ctl("fork", "good", "again")
        self.lab.ctl("rm", "again")

    def test_disks_that_are_something_else(self):
        for what in self.replacements(self.good / "disk-0.img"):
            if what.endswith("secret"):  # a disk's content is anything; this one was put there by root
                continue
            self.fork_is_refused(what)
        self.others_are_fine()

    def test_disks_in_a_store_that_cannot_share_them(self):
        """There they are copied by a worker, by name."""
        if self.no_reflink():
            self.skipTest("no file system without reflink here")
        os.environ["FORKD_LAB_DIR"] = "/dev/shm"
        self.addCleanup(os.environ.pop, "FORKD_LAB_DIR")
        with Lab(setup=False) as lab:
            disk = lab.dir / "disk"
            disk.write_bytes(b"copied".ljust(MIB))
            lab.ctl("run", "d", "--mem", "96M", "--disk", disk)
            lab.ctl("standby", "d", "--tag", "d")
            lab.ctl("fork", "d", "e")
            self.assertEqual(lab.text("e", "head -c 6 /dev/vda"), "copied")
            path = pathlib.Path(lab.ctl("snapshot", "show", "d")["path"]) / "disk-0.img"
            path.unlink()
            path.symlink_to(self.secret)
            with self.assertRaises(Refused) as caught:
                lab.ctl("fork", "d", "x")
            self.assertEqual(caught.exception.error["code"], "corrupt")
            lab.end()
            self.assertEqual(lab.leftovers(), [])

    @staticmethod
    def no_reflink():
        return not os.access("/dev/shm", os.W_OK) or os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize < 300 * MIB

    def test_working_sets_are_only_hints(self):
        (self.backup / "workingset").write_bytes(b"")
        self.put_back()
        for what in self.replacements(self.good / "workingset"):
            self.lab.ctl("fork", "good", "x", timeout=60)
            self.assertEqual(self.lab.text("x", "hostname"), "x", what)
            self.lab.ctl("rm", "x")

    def test_manifests_that_are_something_else(self):
        """They are read when forkd starts: it starts, says so, and has the other snapshots."""
        for what in self.replacements(self.good / "manifest"):
            self.restart()
            self.assertEqual([s["tag"] for s in self.lab.ctl("snapshot", "ls")], ["other"], what)
            self.fork_is_refused(what)
        shutil.copy(self.other / "manifest", self.good / "manifest")
        self.restart()
        self.assertEqual([(s["tag"], s["path"]) for s in self.lab.ctl("snapshot", "ls")], [("other", str(self.other))])
        self.put_back()
        self.restart()
        self.assertEqual(sorted(s["tag"] for s in self.lab.ctl("snapshot", "ls")), ["good", "other"])
        self.others_are_fine()

    def test_directories_that_are_none(self):
        odd = [self.good.parent / n for n in ("0123456789abcdef", "fedcba9876543210", "..x", "a" * 200, "0123456789ABCDEF")]
        odd[0].symlink_to(self.other)
        odd[1].symlink_to("/etc")
        for path in odd[2:]:
            path.mkdir()
        self.restart()
        try:
            self.assertEqual(sorted(s["tag"] for s in self.lab.ctl("snapshot", "ls")), ["good", "other"])
        finally:
            for path in odd:
                path.unlink() if path.is_symlink() else path.rmdir()

    # ---- guests ----

    def test_a_guest_that_writes_to_its_console_without_end(self):
        self.lab.ctl("fork", "good", "loud")
        log = pathlib.Path(self.lab.vm("loud")["dir"]) / "console.log"
        vmm_log = log.with_name("vmm.log")
        with open(vmm_log, "ab") as f:
            f.write(b"said by QEMU\n" * (6 * MIB // 13))
        with open(log, "ab") as f:
            f.write(b"said before\n" * (6 * MIB // 12))  # emulated, a serial port is slow
        self.lab.sh("loud", "setsid sh -c 'while :; do echo and again; done > /dev/ttyS0' < /dev/null > /dev/null 2>&1 &")
        larger, end = [log, vmm_log], time.monotonic() + 60
        while larger and time.monotonic() < end:
            self.assertEqual(self.lab.text("loud", "echo served"), "served")
            larger = [f for f in larger if f.stat().st_size > 4 * MIB]
        self.assertEqual(larger, [])
        self.assertIn("and again", log.read_text(errors="replace")[-2000:])
        self.assertTrue(vmm_log.read_bytes().endswith(b"said by QEMU\n" * 1000))
        self.lab.ctl("rm", "loud")

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
