# SPDX-License-Identifier: MIT
"""What the host's kernel cannot do the guest's can: fentry and kprobe at handle_userfault, run for real, and all methods held
against the same known waits (tests/kernel/probes_try.c)."""

import errno
import os

from case import Case, main
from badkernel import without_bpf

METHODS = ("fentry", "kprobe", "sched_switch")


class Kernels(Case):
    lab_options = {"store": "1G"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # One vCPU: attaching patches the kernel's code, and a second vCPU under TCG (QEMU 7.2) may go on for ever with the breakpoint
        # that it had translated, at which __schedule was held for the time of the patch.
        cls.lab.ctl("run", "g", "--mem", "512M", "--vcpus", "1")
        cls.lab.ctl("cp", os.environ["FORKD_PROBES_TRY"], "g:/probes_try")

    def guest(self, *args, check=True):
        r = self.lab.sh("g", " ".join(args), check=False, timeout=120)
        text = (r.out + r.err).decode(errors="replace")
        print(*(f"guest: {line}" for line in text.splitlines()), sep="\n", flush=True)
        if check:
            self.assertEqual(r.code, 0, text)
        return text

    def test_all_methods(self):
        release = self.lab.text("g", "uname -r")
        print(f"guest's kernel: {release}")
        for method in METHODS:
            with self.subTest(method=method):
                self.guest("/probes_try", method)

    def test_best_first(self):
        """fentry is taken where it works, and there is nothing to be told."""
        said = self.guest("/probes_try", "auto").splitlines()[0]
        self.assertTrue(said.startswith("fentry,"), said)
        self.assertNotIn(";", said.split(" opened in")[0].rstrip(";"), said)


class Forbidden(Case):
    """forkd, where a container's filter or a kernel's lockdown forbids BPF: it goes on without, and says so."""
    lab_options = {"store": "1G", "setup": True}

    def test_without(self):
        self.lab.terminate()
        self.lab.preexec = without_bpf(errno.EPERM)
        self.lab.start()
        probes = self.lab.ctl("stats")["probes"]
        self.assertFalse(probes["ok"])
        self.assertIn("Operation not permitted", probes["reason"])
        self.assertTrue(probes["hint"])
        self.lab.ctl("run", "v", "--mem", "128M")
        vm, = self.lab.ctl("stats", "v")["vms"]
        self.assertEqual((vm["state"], vm["watched"], vm["health"], vm["wait"]["count"]), ("running", False, "unknown", 0))
        self.lab.ctl("rm", "v")


if __name__ == "__main__":
    main()
