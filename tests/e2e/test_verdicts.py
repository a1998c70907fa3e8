# SPDX-License-Identifier: MIT
"""A guest's memory cannot be had, or somebody else asks for it: that guest ends, at once and with the reason; every
other one goes on, those that live on the same image, too."""

import fcntl
import hashlib
import mmap
import os
import pathlib
import signal
import struct
import time

from case import Case, MIB, main
from forkdlab import Lab, Refused
from mprpc import Client

REAL = "/usr/bin/qemu-system-x86_64"
VERSION = f'[ "$1" = --version ] && exec {REAL} --version\n'
DEADLINE = 60
XFS_GOING_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN


class Verdicts(Case):
    # What a guest reads first would be fetched ahead at the next restore; here it has to be read when it is wanted.
    lab_options = {"store": "1G", "config": "[pager]\nworkingset = off\n"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.own = os.urandom(4 * MIB)  # random: it stands in the image as it is
        cls.make_template(cls.lab)

    @classmethod
    def make_template(cls, lab):
        """A snapshot of a guest with two files in its memory: /run/keep, and /run/own, whose bytes we know."""
        lab.ctl("run", "base", "--mem", "128M")
        lab.sh("base", "head -c 2097152 /dev/urandom > /run/keep; cat > /run/own", stdin=cls.own)
        keep = lab.text("base", "sha256sum /run/keep").split()[0]
        lab.ctl("standby", "base", "--tag", "base")
        return keep

    def setUp(self):
        others = [v["name"] for v in self.lab.ctl("ps") if v["name"] != "base"]
        if others:
            self.lab.ctl("rm", *others)

    def clones(self, lab=None):
        """Two clones: `a` has touched neither file, `b` has read /run/keep. And b's digest of it."""
        lab = lab or self.lab
        # With another time of change it is another image to the pager: no page of it is decoded.
        os.utime(pathlib.Path(lab.ctl("snapshot", "show", lab.vm("base")["snapshot"])["path"]) / "memory.img")
        lab.ctl("fork", "base", "a")
        lab.ctl("fork", "base", "b")
        self.pager = lab.ctl("pager", "status")["pid"]
        return lab.text("b", "sha256sum /run/keep").split()[0]

    def image(self, name, lab=None):
        lab = lab or self.lab
        return lab.state / "store" / "vms" / lab.vm(name)["id"] / "base.img"

    def where(self, path, page):
        """Where a page of /run/own stands in the image."""
        needle = self.own[page * 4096 + 1000:page * 4096 + 1064]
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
            at = m.find(needle)
        self.assertGreater(at, 0, "a page of random bytes is not in the image as it is")
        return at

    def failed(self, name, says, lab=None):
        """It is told as failed, with the reason, and its VMM is no more."""
        lab = lab or self.lab
        end = time.monotonic() + DEADLINE
        while (vm := lab.vm(name))["state"] != "failed" or vm["pid"]:
            self.assertLess(time.monotonic(), end, vm)
        self.assertIn("pager: ", vm["reason"])
        self.assertIn(says, vm["reason"])

    def read_own(self, name, lab=None):
        """Makes the guest read what it cannot have. It must not get an answer."""
        lab = lab or self.lab
        r = lab.sh(name, "sha256sum /run/own", check=False, timeout=DEADLINE)
        self.assertNotEqual(r.code, 0, f"{r.out}, its memory has {hashlib.sha256(self.own).hexdigest()}")
        self.assertEqual(r.out, b"")

    def goes_on(self, name, digest, lab=None):
        lab = lab or self.lab
        self.assertEqual(lab.vm(name)["state"], "running")
        self.assertEqual(lab.text(name, "sha256sum /run/keep").split()[0], digest)

    def all_is_well_again(self):
        """The pager is the same, and the image as good as before."""
        self.assertEqual(self.lab.ctl("pager", "status")["pid"], self.pager)
        self.lab.ctl("fork", "base", "again")
        self.assertEqual(self.lab.text("again", "sha256sum /run/own").split()[0], hashlib.sha256(self.own).hexdigest())

    # ---- the image's file ----

    def test_a_corrupt_frame(self):
        digest = self.clones()
        path = self.image("a")
        # Several, for some may have been decoded along with a neighbour that the guest needed.
        pages = {page * 4096 + 1000: self.where(path, page) for page in range(100, 1000, 200)}
        with open(path, "r+b", buffering=0) as f:
            for byte, at in pages.items():
                os.pwrite(f.fileno(), bytes([self.own[byte] ^ 0x20]), at)
            self.read_own("a")
            self.failed("a", "corrupt")
            self.goes_on("b", digest)
            for byte, at in pages.items():
                os.pwrite(f.fileno(), self.own[byte:byte + 1], at)
        self.goes_on("b", digest)
        self.all_is_well_again()

    def test_a_file_cut_short_below_a_running_guest(self):
        self.lab.ctl("run", "other", "--mem", "128M")
        self.lab.sh("other", "head -c 2097152 /dev/urandom > /run/keep")
        digest = self.lab.text("other", "sha256sum /run/keep").split()[0]
        self.lab.ctl("standby", "other")
        self.lab.ctl("restore", "other")
        self.clones()
        path = self.image("a")
        at = self.where(path, 300)
        with open(path, "r+b", buffering=0) as f:
            size = os.fstat(f.fileno()).st_size
            rest = os.pread(f.fileno(), size - at, at)
            self.assertEqual(len(rest), size - at)
            os.ftruncate(f.fileno(), at)
            try:
                self.read_own("a")
                self.failed("a", "corrupt")
                self.refused("fork", "base", "late", code="corrupt")
                self.goes_on("other", digest)
            finally:
                os.pwrite(f.fileno(), rest, at)
        self.all_is_well_again()
        self.lab.ctl("rm", "other")

    def test_a_file_system_that_fails(self):
        """Every read of the image is an I/O error, as of a disk that was pulled."""
        with Lab(store="600M", config=self.lab_options["config"]) as lab:
            self.make_template(lab)
            self.clones(lab)
            store = os.open(lab.state / "store", os.O_RDONLY)
            try:
                fcntl.ioctl(store, XFS_GOING_DOWN, struct.pack("I", 2))  # without writing anything back
            finally:
                os.close(store)
            self.read_own("a", lab)
            self.failed("a", "could not be read", lab)
            with self.assertRaises(Refused):
                lab.ctl("fork", "base", "late")
            status = lab.ctl("pager", "status")
            self.assertEqual((status["pid"], status["up"]), (self.pager, True))
            self.assertGreaterEqual(status["totals"]["sessions_failed"], 1)
            # Its records can be written; only the store is gone.
            lab.ctl("stop", "b")
            lab.ctl("shutdown", "--all")
            lab.expect_clean(lab.forkd.wait(timeout=60))
            lab.forkd = None

    def test_a_failure_while_forkd_is_away(self):
        digest = self.clones()
        path = self.image("a")
        at = self.where(path, 500)
        vmm = os.pidfd_open(self.lab.vm("a")["pid"])
        self.lab.sh("a", "(sleep 1; sha256sum /run/own) > /dev/null 2>&1 &")
        # It stands still until forkd has gone.
        signal.pidfd_send_signal(vmm, signal.SIGSTOP)
        self.lab.terminate()
        with open(path, "r+b", buffering=0) as f:
            os.pwrite(f.fileno(), bytes([self.own[500 * 4096 + 1000] ^ 1]), at)
            signal.pidfd_send_signal(vmm, signal.SIGCONT)
            with Client(self.lab.run_dir / "pager.sock") as c:
                end = time.monotonic() + DEADLINE
                while not any(s["failed"] for s in c.call("status", {})["sessions"]):
                    self.assertLess(time.monotonic(), end, "the guest never read it")
            self.lab.start()
            self.failed("a", "corrupt")
            self.goes_on("b", digest)
            os.pwrite(f.fileno(), self.own[500 * 4096 + 1000:500 * 4096 + 1001], at)
        os.close(vmm)
        self.all_is_well_again()

    # ---- the image's memory ----

    def test_a_trespasser_in_the_memory(self):
        """A process touches the image's memory where no page is yet: the kernel puts a zero page there, for all clones.
        None of them can be trusted any more, whatever they do; those of other images can."""
        self.lab.ctl("run", "other", "--mem", "128M")
        self.lab.sh("other", "head -c 2097152 /dev/urandom > /run/keep")
        digest = self.lab.text("other", "sha256sum /run/keep").split()[0]
        self.lab.ctl("standby", "other")
        self.lab.ctl("restore", "other")
        self.clones()
        smaps = pathlib.Path(f"/proc/{self.lab.vm('a')['pid']}/maps").read_text()
        inode = next(line.split()[4] for line in smaps.splitlines() if "memfd:forkd-image" in line)
        fd = next(f for f in pathlib.Path(f"/proc/{self.pager}/fd").iterdir()
                  if "memfd:forkd-image" in os.readlink(f) and str(os.stat(f).st_ino) == inode)
        with open(fd, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
            for at in range(0, len(m), 4096):
                m[at]
        self.failed("a", "did not put there")
        self.failed("b", "did not put there")
        self.goes_on("other", digest)
        self.all_is_well_again()
        self.lab.ctl("rm", "other")

    # ---- another process ----

    def with_qemu(self, script):
        path = self.lab.dir / "qemu-of-ours"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)  # VMMs are other users
        self.lab.env["FORKD_QEMU"] = str(path)
        self.lab.terminate()
        self.lab.start()

    def test_a_handshake_from_another_process(self):
        """What forkd started is not what attaches: a child of it is."""
        digest = self.clones()
        self.lab.ctl("rm", "a")
        try:
            self.with_qemu(VERSION + f'{REAL} "$@" &\nwait $!\n')
            e = self.refused("fork", "base", "a", code="pager-failed")
            self.assertRegex(e["message"], "came from process [0-9]+, expected was process [0-9]+")
            self.assertNotIn("a", [v["name"] for v in self.lab.ctl("ps")])
            self.goes_on("b", digest)
        finally:
            del self.lab.env["FORKD_QEMU"]
            self.lab.terminate()
            self.lab.start()
        self.all_is_well_again()

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
