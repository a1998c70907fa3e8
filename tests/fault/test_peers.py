# SPDX-License-Identifier: MIT
"""Those that forkd talks to do not behave: a VMM that is mute or talks nonsense, something mute in the pager's place;
and the clock jumps, and several forkds start at once."""

import concurrent.futures
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import busy
import fake_qemu
from fault_case import FaultCase, Refused, main
from forkdlab import bin_dir, sanitized

HERE = pathlib.Path(__file__).resolve().parent
YEAR_S = 365 * 86400


class Peers(FaultCase):
    lab_options = {"store": "1G", "config": "[forkd]\nparallel_starts = 8\n"}

    # ---- QMP ----

    def test_vmms_that_do_not_speak_qmp(self):
        """All kinds at once: which one is which tells the size of the memory."""
        self.restart(FORKD_QEMU=self.program("qemu", (HERE / "fake_qemu.py").read_text()))
        try:
            modes = list(fake_qemu.ANSWERS)
            with concurrent.futures.ThreadPoolExecutor(len(modes)) as pool:
                runs = {m: pool.submit(self.lab.ctl, "run", m, "--accel", "tcg", "--mem", f"{96 + i}M", timeout=150) for i, m in enumerate(modes)}
                busy.until("some wait for an answer", lambda: any(v["busy"] for v in self.lab.ctl("ps")))
                begin = time.monotonic()
                self.lab.ctl("ps")
                self.assertLess(time.monotonic() - begin, 5)
                for m, run in runs.items():
                    with self.assertRaises(Refused, msg=m) as caught:
                        run.result()
                    self.assertIn(caught.exception.error["code"], ("timeout", "vmm-failed", "protocol"), caught.exception)
            self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["base"])
        finally:
            self.restart(FORKD_QEMU=None)
        self.all_is_well()

    # ---- the pager's socket ----

    def test_something_mute_in_the_pagers_place(self):
        self.lab.ctl("shutdown", "--all")
        self.lab.expect_clean(self.lab.forkd.wait(timeout=60))
        self.lab.forkd = None
        path = self.lab.run_dir / "pager.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(path))
            s.listen(8)
            self.lab.start()
            with self.assertRaises(Refused) as caught:
                self.lab.ctl("fork", "base", "x")
            self.assertIn("cannot be talked to", caught.exception.error["message"])
            self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["base"])
        path.unlink(missing_ok=True)
        self.all_is_well()

    # ---- the clock ----

    def test_the_wall_clock_jumps(self):
        """Deadlines and durations do not come from it."""
        if sanitized():
            self.skipTest("a sanitizer's runtime wants to be the first library")
        clock = self.lab.dir / "clock"
        clock.write_text("0")
        self.restart(LD_PRELOAD=str(bin_dir().parent / "fault" / "libclock-shift.so"), FORKD_TEST_CLOCK=str(clock))
        try:
            jumps = [10 * YEAR_S, -20 * YEAR_S, 0]
            for i, jump in enumerate(jumps):
                with concurrent.futures.ThreadPoolExecutor(2) as pool:
                    fork = pool.submit(self.lab.ctl, "fork", "base", f"t{i}")
                    run = pool.submit(self.lab.ctl, "run", f"r{i}", "--mem", "96M")
                    busy.until("both are under way", lambda: len([v for v in self.lab.ctl("ps") if v["busy"]]) == 2 or fork.done() and run.done())
                    clock.write_text(str(jump))
                    self.assertLess(fork.result()["wall_ms"], 120000)
                    self.assertLess(run.result()["boot_ms"], 120000)
                done = self.lab.ctl("standby", f"t{i}")
                self.assertTrue(0 <= done["total_ms"] < 120000 and 0 <= done["pause_ms"] < 120000, done)
                self.lab.ctl("restore", f"t{i}")
                self.assertEqual(self.lab.text(f"t{i}", "sha256sum /run/data"), self.sum)
            # it is heard of: a snapshot made in the past says so
            clock.write_text(str(-20 * YEAR_S))
            made = self.lab.ctl("snapshot", "create", "t0")["snapshot"]
            self.assertLess(self.lab.ctl("snapshot", "show", made)["created"], time.time() - 19 * YEAR_S)
            self.restart()
            for i in range(len(jumps)):
                self.assertEqual(self.lab.text(f"t{i}", "sha256sum /run/data"), self.sum)
        finally:
            self.restart(LD_PRELOAD=None, FORKD_TEST_CLOCK=None)
        self.all_is_well()

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


class Twins(FaultCase):
    """Needs no VM, but the directories of one forkd."""

    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="forkd-", dir=os.environ.get("FORKD_LAB_DIR", "/tmp")))
        cls.addClassCleanup(shutil.rmtree, cls.dir)

    def setUp(self):
        pass

    def start_all(self, n):
        """Starts @n at once; returns (the one that is ready, what the others said)."""
        note = self.dir / "notify"
        note.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(str(note))
            s.settimeout(60)
            argv = [bin_dir() / "forkd", "--state-dir", self.dir / "state", "--run-dir", self.dir / "run", "--config", "/dev/null"]
            all_of_them = [subprocess.Popen(argv, stderr=subprocess.PIPE, env=dict(os.environ, NOTIFY_SOCKET=str(note))) for _ in range(n)]
            for p in all_of_them:
                self.addCleanup(p.stderr.close)
                self.addCleanup(p.wait)
                self.addCleanup(p.kill)
            while b"READY=1" not in s.recv(4096):
                pass
        said, left = [], list(all_of_them)
        while len(left) > 1:
            ready, _, _ = select.select([p.stderr for p in left], [], [], 60)
            self.assertTrue(ready, "more than one goes on")
            for p in [p for p in left if p.stderr in ready]:
                line = p.stderr.readline()
                if not line:
                    left.remove(p)
                    self.assertEqual(p.wait(), 1)
                elif b"error" in line:
                    said.append(line)
        return left[0], said

    def test_several_at_once_on_one_directory(self):
        for number in (signal.SIGKILL, signal.SIGTERM):
            one, said = self.start_all(6)
            self.assertIsNone(one.poll())
            self.assertEqual(len(said), 5)
            for line in said:
                self.assertIn(b"another forkd uses", line)
            subprocess.run([bin_dir() / "forkctl", "--socket", self.dir / "run" / "forkd.sock", "ps"], check=True, stdout=subprocess.DEVNULL)
            one.send_signal(number)
            one.wait(60)


if __name__ == "__main__":
    main()
