# SPDX-License-Identifier: MIT
"""The pager goes and its guests stay: killed, stopped, replaced by plan, below real guests that read their memory meanwhile."""

import concurrent.futures
import contextlib
import os
import pathlib
import select
import shutil
import signal
import tempfile
import time

from case import KEEPER, MIB, Case, Refused, main

import mprpc

HEARTBEAT_MS = 1000
DATA_MIB = 20
BAD_PAGER = pathlib.Path(__file__).resolve().parents[1] / "lib" / "badpager.py"
BUDGET_MIB = 8  # less than the data: reading them all always faults
CLONES = 3


def wait_for(what, condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


class Succession(Case):
    lab_options = {"config": f"[pager]\nheartbeat_ms = {HEARTBEAT_MS}\nmemory_budget = {BUDGET_MIB}M\n", "store": "3G"}

    @classmethod
    def setUpClass(cls):
        # A copy of the programs, so that the pager on disk can be replaced by a bad one.
        cls.programs = pathlib.Path(tempfile.mkdtemp(prefix="forkd-bin-"))
        cls.addClassCleanup(shutil.rmtree, cls.programs, True)
        source = pathlib.Path(os.environ.get("FORKD_BIN_DIR", pathlib.Path(__file__).resolve().parents[2] / "build" / "bin"))
        shutil.copytree(source, cls.programs / "bin")
        shutil.copytree(source.parent / "lib", cls.programs / "lib")
        before = os.environ.get("FORKD_BIN_DIR")
        os.environ["FORKD_BIN_DIR"] = str(cls.programs / "bin")
        cls.addClassCleanup(lambda: os.environ.__setitem__("FORKD_BIN_DIR", before) if before else os.environ.pop("FORKD_BIN_DIR"))
        super().setUpClass()

    def pager(self):
        return self.lab.ctl("pager", "status")

    def readers(self, names):
        """All of them read all their data, until this is left; then their digests."""
        pool = concurrent.futures.ThreadPoolExecutor(len(names))
        return pool, [pool.submit(self.digest, n) for n in names]

    def fresh_clones(self, prefix):
        self.lab.ctl("fork", "origin", prefix, "--count", str(CLONES))
        return [f"{prefix}-{i + 1}" for i in range(CLONES)]

    def end(self, names):
        self.lab.ctl("rm", *names)

    def test_1_killed_below_readers(self):
        type(self).digest_of_all, type(self).secret = self.warm_recover("origin")
        self.lab.ctl("standby", "origin")
        names = self.fresh_clones("a")
        self.assertEqual({self.lab.vm(n)["on_pager_loss"] for n in names}, {"recover"})
        for _ in range(3):
            old = self.pager()["pid"]
            pool, reading = self.readers(names)
            wait_for("faults", lambda: self.pager()["totals"]["faults"]["missing"] > 50)
            os.kill(old, signal.SIGKILL)
            self.assertEqual([r.result() for r in reading], [self.digest_of_all] * CLONES)
            pool.shutdown()
            self.assertNotEqual(self.pager()["pid"], old)
        w = self.pager()["watchdog"]
        self.assertEqual((w["deaths"], w["guests_recovered"], w["guests_killed"]), (3, 3 * CLONES, 0))
        self.assertEqual({self.state(n) for n in names}, {"running"})
        for n in names:
            self.assertEqual(self.ask(n, "after")[0], self.secret)
        # What they are by now can be kept, and comes back.
        self.lab.ctl("standby", names[0])
        self.lab.ctl("restore", names[0])
        self.assertEqual(self.digest(names[0]), self.digest_of_all)
        self.end(names)

    def warm_recover(self, name):
        self.lab.ctl("run", name, "--on-pager-loss", "recover")
        self.lab.sh(name, f"head -c {DATA_MIB * MIB} /dev/urandom > /run/data")
        self.lab.sh(name, "cat > /run/keeper", stdin=KEEPER.encode())
        self.lab.sh(name, "setsid sh /run/keeper < /dev/null > /dev/null 2>&1 &")
        return self.digest(name), self.ask(name, "first")[0]

    def test_2_stopped(self):
        """A pager that stands still is found by its heartbeat, and replaced."""
        names = self.fresh_clones("b")
        self.lab.ctl("fork", "origin", "mortal", "--on-pager-loss", "kill")
        mortal = os.pidfd_open(self.lab.vm("mortal")["pid"])
        hangs = self.pager()["watchdog"]["hangs"]
        old = self.pager()["pid"]
        start = time.monotonic()
        os.kill(old, signal.SIGSTOP)
        pool, reading = self.readers(names)
        self.assertEqual([r.result() for r in reading], [self.digest_of_all] * CLONES)
        pool.shutdown()
        wait_for("the mortal's end", lambda: self.state("mortal") == "failed")
        os.close(mortal)
        self.assertEqual(self.lab.vm("mortal")["reason"], "pager-lost")
        self.assertLess(time.monotonic() - start, 60)
        p = self.pager()
        self.assertEqual(p["watchdog"]["hangs"], hangs + 1)
        self.assertNotEqual(p["pid"], old)
        self.end([*names, "mortal"])

    def test_3_upgrade_below_readers(self):
        names = self.fresh_clones("c")
        faults = self.pager()["totals"]["faults"]["missing"]
        pool, reading = self.readers(names)
        wait_for("faults", lambda: self.pager()["totals"]["faults"]["missing"] > faults + 50)
        old = self.pager()["pid"]
        pidfd = os.pidfd_open(old)
        result = self.lab.ctl("pager", "upgrade")
        self.assertEqual((result["old_pid"], result["sessions"]), (old, CLONES))
        self.assertEqual([r.result() for r in reading], [self.digest_of_all] * CLONES)
        pool.shutdown()
        self.assertEqual(self.pager()["pid"], result["new_pid"])
        self.assertLess(result["pause_max_ms"], 2000, result)
        print(f"upgrade: pause p50 {result['pause_p50_ms']:.1f} ms, max {result['pause_max_ms']:.1f} ms", flush=True)
        self.assertTrue(select.select([pidfd], [], [], 30)[0], "the old pager has not ended")
        os.close(pidfd)
        # A forkd that comes back finds the new one, with all it needs to survive that one's death.
        self.lab.terminate()
        self.lab.start()
        self.assertEqual(self.pager()["pid"], result["new_pid"])
        os.kill(result["new_pid"], signal.SIGKILL)
        pool, reading = self.readers(names)
        self.assertEqual([r.result() for r in reading], [self.digest_of_all] * CLONES)
        pool.shutdown()
        self.end(names)

    def test_4_a_failed_upgrade_leaves_the_old_one(self):
        names = self.fresh_clones("d")
        old = self.pager()["pid"]
        program = self.programs / "bin" / "uffd-pager"
        good = self.programs / "bin" / "uffd-pager.good"
        program.rename(good)
        try:
            self.refused("pager", "upgrade", says=["upgrading the pager"])
            modes = [f"exec {BAD_PAGER} {m}" for m in ("refuse", "die", "mute", "garbage", "late", "file")]
            for bad in ("exit 3", *modes):
                program.write_text(f"#!/bin/sh\n{bad}\n")
                program.chmod(0o755)
                self.refused("pager", "upgrade", says=["upgrading the pager"])
                self.assertEqual(self.pager()["pid"], old, bad)
                self.assertEqual(self.digest(names[0]), self.digest_of_all, bad)
            program.unlink()
        finally:
            good.rename(program)
        self.assertEqual([p for p in self.lab.run_dir.glob("pager.*") if p.name.endswith(".next")], [])
        self.assertEqual([self.digest(n) for n in names], [self.digest_of_all] * CLONES)
        self.refused("pager", "stop", code="busy", says=[f"{CLONES} VMs"])
        self.end(names)
        self.lab.ctl("pager", "stop")
        self.assertFalse(self.pager()["up"])
        self.refused("pager", "upgrade", code="wrong-state", says=["no pager runs"])

    def bad_upgrade(self, mode):
        """An upgrade to a bad pager, with the good one beside it; the good one is there again afterwards."""
        program = self.programs / "bin" / "uffd-pager"
        good = program.with_suffix(".good")
        program.rename(good)
        program.write_text(f'#!/bin/sh\nexec {BAD_PAGER} {mode} {program} "$@"\n')
        program.chmod(0o755)
        try:
            with contextlib.suppress(Refused):
                self.lab.ctl("pager", "upgrade")
        finally:
            if good.exists():
                good.rename(program)

    def test_4a_the_new_one_talks_nonsense_half_way(self):
        """Also the guest that it has taken over already goes back, and does not die with it."""
        self.lab.ctl("fork", "origin", "h", "--count", str(CLONES), "--on-pager-loss", "kill")
        names = [f"h-{i + 1}" for i in range(CLONES)]
        old = self.pager()["pid"]
        self.bad_upgrade("half")
        self.assertEqual(self.pager()["pid"], old)
        self.assertEqual([self.state(n) for n in names], ["running"] * CLONES)
        self.assertEqual([self.digest(n) for n in names], [self.digest_of_all] * CLONES)
        self.end(names)

    def test_4b_both_die(self):
        """No guest is left without a pager: each goes as it has asked for."""
        self.lab.ctl("fork", "origin", "i", "--count", str(CLONES), "--on-pager-loss", "kill")
        names = [f"i-{i + 1}" for i in range(CLONES)]
        self.bad_upgrade("both")
        for n in names:
            wait_for("its end", lambda n=n: self.state(n) == "failed")
        self.end(names)

    def test_4c_the_new_one_dies_in_its_place(self):
        """While the old one is told to forget its sessions: forkd lives, and the guests get a third."""
        names = self.fresh_clones("j")
        forkd = self.lab.forkd
        old = self.pager()["pid"]
        self.bad_upgrade("after")
        self.assertIsNone(forkd.poll(), "forkd has ended")
        self.assertEqual([self.digest(n) for n in names], [self.digest_of_all] * CLONES)
        self.assertNotEqual(self.pager()["pid"], old)
        self.end(names)

    def test_5_forkd_is_killed_in_an_upgrade(self):
        """Whatever the moment, the next forkd finds one pager or two, and every guest goes on."""
        names = self.fresh_clones("e")
        for i in range(4):
            forkd = self.lab.forkd
            pool = concurrent.futures.ThreadPoolExecutor(1)
            call = pool.submit(self.lab.ctl, "pager", "upgrade")
            time.sleep(0.004 * (i + 1))  # a moment, not a condition: any will do
            forkd.kill()
            forkd.wait()
            call.exception()
            pool.shutdown()
            self.lab.start()
            self.assertEqual([self.digest(n) for n in names], [self.digest_of_all] * CLONES)
            self.assertEqual(len(self.pager()["sessions"]), CLONES)
        self.end(names)

    def test_6_bad_policy(self):
        with mprpc.Client(self.lab.socket) as c:
            for method, params in (("vm.fork", {"source": "origin", "name": "x"}), ("vm.run", {"name": "x"})):
                with self.assertRaises(mprpc.Error) as caught:
                    c.call(method, {**params, "on_pager_loss": "pray"})
                self.assertEqual(caught.exception.code, "invalid")

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
