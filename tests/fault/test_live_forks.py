# SPDX-License-Identifier: MIT
"""A VM is forked while it runs, and in the middle of that, when its clones live on an image that is nowhere yet but in the pager's
memory, something dies, or is full, or somebody else wants the VM."""

import os
import pathlib
import signal
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from case import Case, MIB, Refused, main, until  # noqa: E402
from forkdlab import bin_dir  # noqa: E402

PROGRAM = bin_dir().parent / "fault" / "instant"


class LiveForks(Case):
    """Each is bounded and clear, and the source, where it lives, is as it was."""
    lab_options = {"store": "2G"}
    SIZE_MIB = 100  # takes a worker long enough to be stopped in the middle

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "v", "--mem", "256M")
        cls.lab.ctl("cp", PROGRAM, "v:/run/instant")
        cls.lab.sh("v", f"chmod 755 /run/instant && mkdir /run/m && mount -t tmpfs -o size={cls.SIZE_MIB + 8}M none /run/m")
        cls.passes = 0

    def setUp(self):
        self.before = self.files()

    def files(self):
        """What there is of snapshots, whole or half."""
        store = self.lab.state / "store"
        return sorted(str(p.relative_to(store)) for d in ("snapshots", "tmp") for p in (store / d).iterdir())

    def fill(self, name):
        """Pages that a fork has to copy now."""
        type(self).passes += 1
        self.lab.sh(name, f"/run/instant fill /run/m/data {self.SIZE_MIB} {self.passes}")

    def check(self, *names):
        for name in names:
            self.lab.sh(name, f"/run/instant check /run/m/data {self.SIZE_MIB} {self.passes}")

    def forking(self, source, *args, fill=True):
        """A fork in the middle: the guest runs again, a clone is there, and the workers are stopped. Returns these and what waits for
        the outcome."""
        outcome = []

        def run():
            try:
                outcome.append(self.lab.ctl("fork", source, *args))
            except Refused as e:
                outcome.append(e)
        if fill:
            self.fill(source)
        else:
            self.lab.sh(source, f"head -c {40 * MIB} /run/m/data > /run/more")
        names = {v["name"] for v in self.lab.ctl("ps")}
        t = threading.Thread(target=run)
        t.start()
        until(lambda: any(v["name"] not in names and v["pid"] for v in self.lab.ctl("ps")))
        held = self.lab.workers()
        self.assertTrue(held)
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        self.assertEqual(outcome, [])

        def end():
            t.join()
            return outcome[0]
        return held, end

    def go_on(self, held, sig=signal.SIGCONT):
        for pid in held:
            os.kill(pid, sig)

    def as_before(self):
        """Nothing is left of it, and the source is whole and can be forked."""
        until(lambda: self.lab.vm("v")["busy"] is None)
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["v"])
        self.assertEqual(self.files(), self.before)
        self.lab.ctl("fork", "v", "proof")
        self.check("v", "proof")
        self.lab.ctl("rm", "proof")
        self.lab.ctl("snapshot", "rm", self.lab.vm("v")["snapshot"])

    def test_a_busy_source(self):
        held, end = self.forking("v", "held")
        try:
            for command in (("stop", "v"), ("rm", "v"), ("standby", "v"), ("fork", "v", "second"), ("snapshot", "create", "v"),
                            ("pause", "v")):
                self.refused(*command, code="busy", says=["fork"])
            self.refused("standby", "held", code="busy")
            self.assertEqual(self.lab.text("v", "echo alive"), "alive")  # it runs, and is served
        finally:
            self.go_on(held)
        self.assertEqual(end()["clones"][0]["name"], "held")
        self.check("held")
        self.lab.ctl("rm", "held")
        self.lab.ctl("snapshot", "rm", self.lab.vm("v")["snapshot"])
        self.as_before()

    def test_the_worker_dies(self):
        held, end = self.forking("v", "gone")
        self.go_on(held, signal.SIGKILL)
        self.assertIsInstance(end(), Refused)
        self.as_before()

    def test_a_full_disk(self):
        ballast = self.lab.state / "store" / "ballast"
        held, end = self.forking("v", "full")
        with open(ballast, "wb", buffering=0) as f:
            try:
                while f.write(bytes(MIB)):
                    pass
            except OSError:
                pass
        self.go_on(held)
        outcome = end()
        os.unlink(ballast)
        self.assertIsInstance(outcome, Refused)
        self.assertIn("space", outcome.error["message"])
        self.as_before()

    def test_forkd_dies(self):
        """The clone goes, the snapshot goes, and nothing of the source stays protected."""
        _, end = self.forking("v", "orphan")
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        end()
        self.lab.start()
        self.as_before()

    def test_forkd_dies_as_a_booted_one_joins(self):
        """What it asked of the pager last is done when it is gone. The next forkd knows of it, and the VM can be forked while it runs."""
        self.fill("v")
        self.lab.ctl("fork", "v", "other")  # so there is a pager
        self.lab.ctl("run", "fresh", "--mem", "128M")
        self.lab.sh("fresh", f"head -c {8 * MIB} /dev/urandom > /run/data")
        digest = self.digest("fresh")
        base = self.lab.state / "store" / "vms" / self.lab.vm("fresh")["id"] / "base.img"
        pager = self.lab.ctl("pager", "status")["pid"]
        os.kill(pager, signal.SIGSTOP)
        try:
            t = threading.Thread(target=lambda: self.assertRaises(Refused, self.lab.ctl, "fork", "fresh", "early"))
            t.start()
            until(base.exists)
            time.sleep(0.1)  # it waits for an answer that does not come
            self.lab.forkd.kill()
            self.lab.forkd.wait()
        finally:
            os.kill(pager, signal.SIGCONT)
        t.join()
        self.lab.start()
        said = len(self.lab.log_path.read_text())
        self.lab.ctl("fork", "fresh", "late")
        self.assertNotIn("stands still", self.lab.log_path.read_text()[said:])
        self.assertEqual([self.digest("fresh"), self.digest("late")], [digest] * 2)
        self.lab.ctl("rm", "fresh", "late", "other")
        made = {s["id"] for s in self.lab.ctl("snapshot", "ls")} - {f.split("/")[-1] for f in self.before}
        self.lab.ctl("snapshot", "rm", *made)
        self.as_before()

    def test_the_client_goes(self):
        """It is finished all the same."""
        held, end = self.forking("v", "unloved")
        client = [p for p in self.lab.processes() if b"\0fork\0" in self.cmdline(p)]
        self.assertEqual(len(client), 1)
        os.kill(client[0], signal.SIGKILL)
        self.go_on(held)
        end()
        until(lambda: all(v["busy"] is None for v in self.lab.ctl("ps")))
        self.check("unloved")
        self.lab.ctl("rm", "unloved")
        self.lab.ctl("snapshot", "rm", self.lab.vm("v")["snapshot"])
        self.as_before()

    def cmdline(self, pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                return f.read()
        except OSError:
            return b""

    def test_a_restored_source(self):
        """It maps the image of its first fork when its second one fails: its third is as right."""
        self.lab.ctl("fork", "v", "origin")
        self.lab.ctl("standby", "origin", "--tag", "origin")
        self.lab.ctl("restore", "origin")
        self.fill("origin")
        self.lab.ctl("fork", "origin", "first")
        held, end = self.forking("origin", "second", fill=False)
        self.go_on(held, signal.SIGKILL)
        self.assertIsInstance(end(), Refused)
        self.lab.ctl("fork", "origin", "third")
        self.check("origin", "first", "third")
        self.lab.ctl("rm", "origin", "first", "third")

    def test_y_the_source_dies(self):
        """The VMM is killed while its memory is being saved. What is copied is the clones': they have all, or none of them stays."""
        self.lab.ctl("fork", "v", "victim")
        kept = self.files()
        held, end = self.forking("victim", "heir", "--count", "2")
        os.kill(self.lab.vm("victim")["pid"], signal.SIGKILL)
        self.go_on(held)
        outcome = end()
        until(lambda: self.state("victim") == "failed")
        heirs = [v["name"] for v in self.lab.ctl("ps") if v["name"].startswith("heir")]
        if isinstance(outcome, Refused):
            self.assertEqual(heirs, [])
            self.assertEqual(self.files(), kept)
        self.check(*heirs)
        self.lab.ctl("rm", "victim", *heirs)

    def test_z_the_pager_dies(self):
        """The source's policy says what becomes of it; the fork has failed, and says so."""
        held, end = self.forking("v", "lost")
        os.kill(self.lab.ctl("pager", "status")["pid"], signal.SIGKILL)
        self.go_on(held)
        outcome = end()
        self.assertIsInstance(outcome, Refused)
        until(lambda: self.state("v") == "failed")
        self.assertIn("pager-lost", self.lab.vm("v")["reason"])
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["v"])
        self.assertEqual(self.files(), self.before)
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
