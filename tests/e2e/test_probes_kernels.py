# SPDX-License-Identifier: MIT
"""What the host's kernel cannot do the guest's can: fentry and kprobe at handle_userfault, run for real, and all methods held
against the same known waits (tests/kernel/probes_try.c)."""

import os
import unittest

from case import Case, main

METHODS = ("fentry", "kprobe", "sched_switch")


class Kernels(Case):
    lab_options = {"store": "1G"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "g", "--mem", "512M", "--vcpus", "2")
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


if __name__ == "__main__":
    main()
