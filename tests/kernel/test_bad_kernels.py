# SPDX-License-Identifier: MIT
"""Without type information, rights, or the system call there is no BPF. Then `forkctl doctor` warns, says what is missing and never
fails for it; and with the two capabilities that are needed, and no more, everything works."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from badkernel import as_nobody, hiding, without_bpf, without_locked_memory  # noqa: E402
from forkdlab import bin_dir  # noqa: E402

TRY = os.environ["FORKD_PROBES_TRY"]


def check(prefix=(), preexec=None):
    """What doctor says of the probes: (status, all that is said)."""
    p = subprocess.run([*prefix, bin_dir() / "forkctl", "--json", "doctor"], stdin=subprocess.DEVNULL, capture_output=True,
                       preexec_fn=preexec, timeout=120)
    c = {c["name"]: c for c in json.loads(p.stdout)["checks"]}["probes"]
    print(f"  {c['status']}: {c['detail']} ({c['hint']})", flush=True)
    return c["status"], c["detail"] + " " + c["hint"]


class BadKernels(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            print("SKIPPED: not root")
            raise unittest.SkipTest("not root")
        status, said = check()
        if status != "ok":
            print(f"SKIPPED: {said}")
            raise unittest.SkipTest(said)

    def warned(self, *words, **kw):
        status, said = check(**kw)
        self.assertEqual(status, "warn", said)
        for word in words:
            self.assertIn(word, said)

    def test_no_types(self):
        self.warned("BTF", preexec=hiding("/sys/kernel/btf/vmlinux"))

    def test_nobody(self):
        self.warned("CAP_BPF", "CAP_PERFMON", prefix=as_nobody())

    def test_one_capability_is_not_enough(self):
        self.warned("CAP_PERFMON", prefix=as_nobody("bpf"))

    def test_forbidden(self):
        self.warned("Operation not permitted", preexec=without_bpf(errno.EPERM))

    def test_not_there(self):
        self.warned(preexec=without_bpf(errno.ENOSYS))

    def test_locked_down(self):
        self.warned("locked down", preexec=without_bpf(errno.EPERM, only_load=True))

    def test_two_capabilities(self):
        prefix = as_nobody("bpf", "perfmon")
        status, said = check(prefix)
        self.assertEqual(status, "ok", said)
        p = subprocess.run([*prefix, TRY, "auto"], capture_output=True, timeout=120)
        self.assertEqual(p.returncode, 0, p.stdout + p.stderr)

    def test_no_locked_memory(self):
        """Maps are charged to the cgroup, not to the limit, since 5.11."""
        status, said = check(preexec=without_locked_memory)
        self.assertEqual(status, "ok", said)

    def test_no_kallsyms(self):
        status, said = check(preexec=hiding("/proc/kallsyms"))
        self.assertEqual(status, "ok", said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
