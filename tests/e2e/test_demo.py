# SPDX-License-Identifier: MIT
"""forkctl demo: eight of eight, or exit 1; interrupted or not, nothing of it is left."""

import glob
import json
import os
import pathlib
import signal
import subprocess
import sys
import unittest

from case import main, until, why_not

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from forkdlab import bin_dir  # noqa: E402


def pending(pid, sig):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("ShdPnd:"):
            return bool(int(line.split()[1], 16) >> (sig - 1) & 1)
    return False


class Demo(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        reason = why_not()
        if reason and os.environ.get("FORKD_TEST_NO_SKIP") != "1":
            print(f"SKIPPED: {reason}")
            raise unittest.SkipTest(reason)
        cls.before = set(glob.glob("/tmp/forkd-demo-*"))
        cls.env = dict(os.environ)
        if os.environ.get("FORKD_LAB_CACHE"):
            cls.env["FORKD_CACHE_DIR"] = os.environ["FORKD_LAB_CACHE"]

    def start(self, *args, **kw):
        return subprocess.Popen([bin_dir() / "forkctl", *args, "demo"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=self.env, **kw)

    def new(self):
        return set(glob.glob("/tmp/forkd-demo-*")) - self.before

    def nothing_left(self, directory=None):
        self.assertEqual(self.new(), set())
        for mounts in pathlib.Path("/proc/self/mounts").read_text().splitlines():
            self.assertFalse(directory and f"{directory}/" in mounts, mounts)
        for p in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                self.assertFalse(directory and directory.encode() in p.read_bytes(), p)
            except OSError:
                pass

    def test_1_it_works(self):
        p = self.start("--json")
        out, err = p.communicate(timeout=300)
        doc = json.loads(out)
        self.assertEqual((p.returncode, err), (0, b""), doc)
        self.assertTrue(doc["ok"])
        self.assertEqual((doc["identical"], doc["independent"], doc["others_identical"]), (8, 8, 2))
        self.assertEqual(doc["left_behind"], [])
        self.assertEqual([r["name"] for r in doc["rows"]], [f"clone-{i}" for i in range(1, 9)] + ["pool-take", "live-fork"])
        for r in doc["rows"]:
            self.assertGreater(r["first_answer_ms"], 0)
            self.assertGreater(r["private_bytes"], 0)
        self.assertTrue(all(r["stored_bytes"] for r in doc["rows"][:8]))
        self.nothing_left()

    def test_2_interrupted_while_a_vm_boots(self):
        p = self.start()
        until(lambda: p.poll() is not None or any(pathlib.Path(d, "run/forkd.sock").exists() for d in self.new()), 100)
        directory = next(iter(self.new()))
        p.send_signal(signal.SIGINT)
        out, _ = p.communicate(timeout=100)
        self.assertEqual(p.returncode, -signal.SIGINT, out)
        self.assertNotIn(b"memory identical", out)
        self.nothing_left(directory)

    def test_3_cut_off_while_it_forks(self):
        """The second signal does not wait for the call under way, whose VMs are busy then."""
        p = self.start()
        until(lambda: p.poll() is not None or any("-> standby" in f.read_text() for d in self.new() for f in pathlib.Path(d).glob("forkd.log")), 100)
        directory = next(iter(self.new()))
        until(lambda: glob.glob(f"{directory}/state/journal/*"))
        p.send_signal(signal.SIGINT)
        until(lambda: not pending(p.pid, signal.SIGINT))  # or the two are one
        p.send_signal(signal.SIGINT)
        out, _ = p.communicate(timeout=100)
        self.assertEqual(p.returncode, -signal.SIGINT, out)
        self.nothing_left(directory)

    def test_4_forkd_dies(self):
        p = self.start()
        until(lambda: p.poll() is not None or any("clone-2" in f.read_text() for d in self.new() for f in pathlib.Path(d).glob("forkd.log")), 100)
        directory = next(iter(self.new()))
        for proc in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (proc / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"/forkd") and f"{directory}/state".encode() in words:
                os.kill(int(proc.name), signal.SIGKILL)
        out, err = p.communicate(timeout=100)
        self.assertEqual(p.returncode, 3, (out, err))
        self.assertIn(b"FAILED", out)
        self.nothing_left(directory)


if __name__ == "__main__":
    main()
