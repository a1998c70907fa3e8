# SPDX-License-Identifier: MIT
"""What the injections share: one forkd and one template for a file, and what must hold after each of them."""

import os
import pathlib
import signal
import stat
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import busy  # noqa: E402
import world  # noqa: E402
from case import MIB, Case, Lab, Refused, main  # noqa: E402,F401
from mprpc import Client, Error  # noqa: E402,F401

SOON_S = 10  # what another client waits at most while something hangs; far below any deadline of what hangs


class FaultCase(Case):
    lab_options = {"store": "1G"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "96M")
        cls.lab.sh("base", "head -c 2097152 /dev/urandom > /run/data")
        cls.sum = cls.lab.text("base", "sha256sum /run/data")
        cls.lab.ctl("standby", "base", "--tag", "base")

    def setUp(self):
        busy.remove_all_but(self.lab, "base")
        for s in self.lab.ctl("snapshot", "ls"):
            if s["tag"] != "base":
                self.lab.ctl("snapshot", "rm", s["id"])

    def all_is_well(self):
        """Nothing is lost or left, and a clone still comes up with the right memory."""
        busy.until("forkd is idle", lambda: not any(v["busy"] for v in self.lab.ctl("ps")))
        self.assertEqual(world.complaints(self.lab), [])
        self.lab.ctl("fork", "base", "proof")
        self.assertEqual(self.lab.text("proof", "sha256sum /run/data"), self.sum)
        self.lab.ctl("rm", "proof")

    def others_are_served(self):
        """Another client does not notice what hangs."""
        begin = time.monotonic()
        self.lab.ctl("ps")
        self.lab.ctl("fork", "base", "other")
        self.assertEqual(self.lab.text("other", "sha256sum /run/data"), self.sum)
        self.lab.ctl("rm", "other")
        self.assertLess(time.monotonic() - begin, SOON_S)

    def wait_state(self, name, state):
        return busy.until(f"{name} is {state}", lambda: (v := self.lab.vm(name))["state"] == state and v["busy"] is None and v)

    def stopped(self, pid):
        """SIGSTOP, and it is really stopped. Goes on at the end of the test at the latest."""
        fd = os.pidfd_open(pid)
        self.addCleanup(os.close, fd)
        self.addCleanup(self.go_on, fd)
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
        busy.until(f"process {pid} is stopped", lambda: pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "Tt")
        return fd

    @staticmethod
    def go_on(fd, number=signal.SIGCONT):
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            pass

    def restart(self, **env):
        for key, value in env.items():
            if value is None:
                self.lab.env.pop(key, None)
            else:
                self.lab.env[key] = value
        self.lab.terminate()
        self.lab.start()

    def program(self, name, text):
        """A program in a directory of its own."""
        path = self.lab.dir / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH | stat.S_IRGRP | stat.S_IROTH)
        return str(path)
