# SPDX-License-Identifier: MIT
"""A VM that is forked while it runs: every clone is of one instant, memory and disk; the source does not notice; the next fork costs
what was written since. tests/fault/test_live_forks.py has what fails in the middle."""

import json
import os
import signal
import threading
import unittest

from case import Case, Lab, MIB, Refused, main, until
from forkdlab import bin_dir

PROGRAM = bin_dir().parent / "fault" / "instant"


class LiveCase(Case):
    def boot_writer(self, name, mib=12, mem="160M"):
        """Two vCPUs, a disk, and tests/fault/guest/instant.c at work."""
        disk = self.lab.dir / f"{name}.raw"
        with open(disk, "wb") as out:
            out.truncate(8 * MIB)
        self.lab.ctl("run", name, "--mem", mem, "--vcpus", "2", "--disk", disk)
        self.lab.ctl("cp", PROGRAM, f"{name}:/run/instant")
        self.lab.sh(name, f"chmod 755 /run/instant && /run/instant run {mib} /dev/vda")

    def report(self, name, passes=0):
        return json.loads(self.lab.text(name, f"/run/instant report {passes}"))

    def sound(self, *names):
        """Each has gone over all of its memory since it is what it is, and has found nothing."""
        begin = {n: self.report(n) for n in names}
        for n in names:
            r = self.report(n, max(0, 2 - (self.report(n)["passes"] - begin[n]["passes"])))
            self.assertEqual((r["wrong_pages"], r["wrong_seals"], r["wrong_turns"]), (0, 0, 0), (n, r))
            self.assertGreater(r["turns"], begin[n]["turns"], n)

    def fork(self, source, *args):
        """The clones' names, and what the fork told."""
        r = self.lab.ctl("fork", source, *args)
        return [c["name"] for c in r["clones"]], r

    def snap(self, snapshot):
        return self.lab.ctl("snapshot", "show", snapshot)


class Instant(LiveCase):
    def test_every_clone_is_of_one_instant(self):
        self.boot_writer("w")
        names, _ = self.fork("w", "c", "--count", "2")
        self.sound(*names)
        self.lab.ctl("rm", names[1])
        # A clone of a clone that writes as fast, while its source is forked, too; and a standby in between.
        both = []
        a = threading.Thread(target=lambda: both.append(self.fork(names[0], "grandchild")))
        a.start()
        self.fork("w", "sibling")
        a.join()
        self.assertEqual(len(both), 1)
        self.lab.ctl("rm", names[0])
        self.sound("grandchild", "sibling", "w")
        self.lab.ctl("rm", "sibling", "w")
        self.lab.ctl("standby", "grandchild")
        self.lab.ctl("restore", "grandchild")
        self.fork("grandchild", "last")
        self.sound("grandchild", "last")
        for s in self.lab.ctl("snapshot", "ls"):
            self.assertTrue(self.lab.ctl("snapshot", "verify", s["id"])["ok"])

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


class Chain(LiveCase):
    """What the source is, and costs, afterwards."""

    def test_it_comes_back_from_where_it_came(self):
        """Not from a snapshot that was made of it while it ran, which may be gone."""
        self.lab.ctl("run", "b", "--mem", "128M")
        self.lab.sh("b", "echo one > /run/value")
        self.lab.ctl("standby", "b")
        self.lab.ctl("restore", "b")
        self.lab.sh("b", "echo two > /run/value")
        made = self.lab.ctl("snapshot", "create", "b")["snapshot"]
        self.lab.ctl("snapshot", "rm", made)
        self.lab.ctl("stop", "b")
        self.lab.ctl("restore", "b")
        self.assertEqual(self.lab.text("b", "cat /run/value"), "one")
        self.lab.ctl("rm", "b")

    def test_the_next_costs_what_was_written(self):
        digest, _ = self.warm("v", 24)
        first = self.snap(self.lab.ctl("snapshot", "create", "v")["snapshot"])
        self.assertGreater(first["dirty_bytes"], 24 * MIB)
        vm = self.lab.vm("v")
        self.assertEqual((vm["snapshot"], vm["generation"], vm["state"]), (first["id"], 1, "running"))
        self.lab.sh("v", f"head -c {4 * MIB} /dev/urandom > /run/more")
        more = self.lab.text("v", "sha256sum /run/more")
        second = self.snap(self.lab.ctl("snapshot", "create", "v")["snapshot"])
        self.assertEqual(second["parent"], first["id"])
        self.assertGreater(second["dirty_bytes"], 4 * MIB)
        self.assertLess(second["dirty_bytes"], 16 * MIB)
        self.assertLess(second["unique_bytes"], 16 * MIB)
        # Both are whole: the first without what came later, also when it is gone from the store below.
        self.fork(first["id"], "older")
        self.assertEqual(self.digest("older"), digest)
        self.assertNotEqual(self.lab.sh("older", "test -e /run/more", check=False).code, 0)
        self.lab.ctl("snapshot", "rm", first["id"])
        names, r = self.fork("v", "clone", "--count", "3")
        self.assertGreater(r["source_pause_ms"], 0)
        for n in names:
            self.assertEqual(self.lab.text(n, "sha256sum /run/more"), more, n)
            self.assertEqual(self.digest(n), digest)
            self.assertEqual(self.lab.text(n, "hostname"), n)
        # A standby of the source takes what was written since, and nothing of the rest.
        self.lab.sh("v", f"head -c {2 * MIB} /dev/urandom > /run/data")
        digest = self.digest("v")
        last = self.lab.ctl("standby", "v")
        self.assertLess(last["dirty_bytes"], 12 * MIB)
        self.lab.ctl("snapshot", "rm", second["id"])
        self.lab.ctl("restore", "v")
        self.assertEqual(self.digest("v"), digest)
        self.assertEqual(self.lab.text("v", "sha256sum /run/more"), more)

    def test_a_paused_one_stays_paused(self):
        digest, _ = self.warm("p", 4)
        self.lab.ctl("pause", "p")
        names, r = self.fork("p", "of-paused")
        self.assertEqual(self.digest(names[0]), digest)
        self.assertEqual(self.state("p"), "paused")
        self.assertIsNone(r.get("source_pause_ms"))
        self.fork("p", "twice")
        self.lab.ctl("resume", "p")
        self.assertEqual(self.digest("p"), digest)
        self.assertEqual(self.digest("twice"), digest)

    def test_forkd_is_replaced_in_between(self):
        """What the source is dirty against outlives forkd; what is protected outlives a pager that is replaced by plan."""
        digest, secret = self.warm("r", 8)
        self.fork("r", "r-first")
        self.lab.terminate()
        self.lab.start()
        self.assertEqual(self.ask("r", "again")[0], secret)
        s = self.snap(self.lab.ctl("snapshot", "create", "r")["snapshot"])
        self.assertLess(s["dirty_bytes"], 8 * MIB)
        self.lab.ctl("pager", "upgrade")
        self.lab.sh("r", f"head -c {8 * MIB} /dev/urandom > /run/data")
        self.fork("r", "r-second")
        self.assertEqual(self.digest("r-second"), self.digest("r"))
        self.assertEqual(self.digest("r-first"), digest)

    def test_the_pager_is_lost_in_between(self):
        """A VM that booted and one that was restored, both sources: the next pager knows nothing of what was protected."""
        sums = {}
        self.warm("booted", 8)
        self.lab.ctl("standby", "booted", "--tag", "of-booted")
        self.lab.ctl("fork", "of-booted", "restored", "--on-pager-loss", "recover")
        self.lab.ctl("rm", "booted")
        self.lab.ctl("run", "booted", "--on-pager-loss", "recover")
        for n in ("booted", "restored"):
            self.lab.sh(n, f"head -c {8 * MIB} /dev/urandom > /run/data")
            sums[n] = self.digest(n)
            self.fork(n, f"{n}-1")
            self.lab.ctl("rm", f"{n}-1")
            self.lab.sh(n, f"head -c {2 * MIB} /dev/urandom > /run/more")
        os.kill(self.lab.ctl("pager", "status")["pid"], signal.SIGKILL)
        until(lambda: self.lab.log_path.read_text().count("another pager serves it") >= 2)
        for n in ("booted", "restored"):
            more = self.lab.text(n, "sha256sum /run/more")
            self.fork(n, f"{n}-2")
            for which in (n, f"{n}-2"):
                self.assertEqual(self.digest(which), sums[n], which)
                self.assertEqual(self.lab.text(which, "sha256sum /run/more"), more, which)

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


class Fallback(LiveCase):
    """Without live forks the VM stands still until its memory is read, and one that booted does not need the pager."""
    lab_options = {"config": "[pager]\nlive_forks = off\n"}

    def test_all_the_same(self):
        self.boot_writer("w", mib=8)
        names, _ = self.fork("w", "c")
        self.sound("w", *names)
        self.assertEqual(self.lab.vm("w")["snapshot"], None)
        pager = self.lab.ctl("pager", "status")["pid"]
        os.kill(pager, signal.SIGKILL)
        until(lambda: self.state(names[0]) == "failed")
        self.sound("w")


if __name__ == "__main__":
    main()
