# SPDX-License-Identifier: MIT
"""What all end-to-end tests share: one private forkd per class, one warm template, helpers to check refusals.

A host that cannot run VMs skips with the reason; FORKD_TEST_NO_SKIP=1 turns that into a failure.
"""

import os
import pathlib
import shutil
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from forkdlab import MIB, Lab, Refused, sanitized  # noqa: E402,F401

KEEPER = """
mkfifo /run/ask /run/answer
secret=$(head -c 32 /dev/urandom | sha256sum | cut -c1-64)
n=0
while read -r word < /run/ask; do n=$((n + 1)); echo "$secret $n $word" > /run/answer; done
"""


def why_not():
    if os.geteuid() != 0:
        return "not root"
    if not shutil.which("qemu-system-x86_64"):
        return "no qemu-system-x86_64"
    if not os.path.exists("/dev/userfaultfd"):
        return "no /dev/userfaultfd"
    return None


class Case(unittest.TestCase):
    lab_options = {}

    @classmethod
    def setUpClass(cls):
        reason = why_not()
        if reason and os.environ.get("FORKD_TEST_NO_SKIP") != "1":
            print(f"SKIPPED: {reason}")
            raise unittest.SkipTest(reason)
        cls.lab = cls.enterClassContext_(Lab(**cls.lab_options))

    @classmethod
    def enterClassContext_(cls, lab):
        lab.__enter__()
        cls.addClassCleanup(lab.__exit__, None, None, None)
        return lab

    def refused(self, *args, code=None, says=()):
        """The command is refused with that error code, and the message has these words."""
        with self.assertRaises(Refused) as caught:
            self.lab.ctl(*args)
        e = caught.exception
        self.assertEqual(e.code, 1, e)
        if code:
            self.assertEqual(e.error["code"], code, e)
        for word in says:
            self.assertIn(word, e.error["message"] + " " + (e.error.get("hint") or ""))
        return e.error

    def warm(self, name, mib=8):
        """A running VM with random bytes in RAM and a process that keeps a secret: returns (digest, secret)."""
        self.lab.ctl("run", name)
        self.lab.sh(name, f"head -c {mib * MIB} /dev/urandom > /run/data")
        self.lab.sh(name, "cat > /run/keeper", stdin=KEEPER.encode())
        self.lab.sh(name, "setsid sh /run/keeper < /dev/null > /dev/null 2>&1 &")
        return self.digest(name), self.ask(name, "first")[0]

    def digest(self, name):
        return self.lab.text(name, "sha256sum /run/data").split()[0]

    def ask(self, name, word):
        secret, n, echoed = self.lab.text(name, f"echo {word} > /run/ask; cat /run/answer").split()
        self.assertEqual(echoed, word)
        return secret, int(n)

    def state(self, name):
        return self.lab.vm(name)["state"]


def until(what, timeout=20):
    """Polls for what no event tells a test: a state that forkd comes to by itself."""
    end = time.monotonic() + timeout
    while not what():
        if time.monotonic() > end:
            raise AssertionError("it did not come to pass")
        time.sleep(0.02)


def main():
    unittest.main(verbosity=2)
