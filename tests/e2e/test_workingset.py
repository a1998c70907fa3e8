# SPDX-License-Identifier: MIT
"""What a restore needs first is learned, kept with the snapshot, inherited by children, and fetched ahead next time."""

import os
import pathlib
import time

from case import MIB, Case, main

# An image is forgotten with its last session, so that each restore begins with nothing decoded.
FORGET = "[pager]\nidle_image_seconds = 0\n"
WINDOW_S = 2
DEADLINE_S = 60


class Recorded(Case):
    lab_options = {"config": FORGET + f"record_seconds = {WINDOW_S}\n"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "one", "--mem", "128M")
        cls.lab.sh("one", f"head -c {8 * MIB} /dev/urandom > /run/data; sha256sum < /run/data > /run/sum")
        cls.first = cls.lab.ctl("standby", "one", "--tag", "first")["snapshot"]

    # ---- looking ----

    def until(self, what, look):
        """Asks again until the answer is no longer false; that takes as long as it takes, but not for ever."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            found = look()
            if found:
                return found
            time.sleep(0.05)
        self.fail(f"{what}: not within {DEADLINE_S} s")

    def known(self, snapshot):
        return self.lab.ctl("snapshot", "show", snapshot)["workingset_pages"]

    def session(self, name):
        vm = self.lab.vm(name)["id"]
        return next(s for s in self.lab.ctl("pager", "status")["sessions"] if s["session"] == vm)

    def use(self, name):
        """What the guest does each time, as the first thing."""
        self.lab.sh(name, "sha256sum < /run/data | cmp - /run/sum")

    def gone(self, name):
        """The VM is no more, and neither are the decoded pages of its image."""
        self.lab.ctl("rm", name)
        self.until("the image is forgotten", lambda: not self.lab.ctl("pager", "status")["images"])

    def used_ahead(self, name, demanded):
        """The clone has its pages before it asks for them: nearly no fault is left of so many."""
        self.use(name)
        s = self.session(name)
        self.assertGreater(s["pages_ahead"], 8 * MIB // 4096, s)
        self.assertLess(s["faults"]["missing"], demanded / 2, s)

    def file(self, snapshot):
        return pathlib.Path(self.lab.ctl("snapshot", "show", snapshot)["path"]) / "workingset"

    # ---- the life of a working set ----

    def test_1_learned_and_used(self):
        self.assertEqual(self.known("first"), 0)
        self.assertFalse(self.file("first").exists())
        self.lab.ctl("restore", "one")
        self.use("one")
        first = self.session("one")
        self.assertEqual(first["pages_ahead"], 0)
        type(self).demanded = first["faults"]["missing"]
        self.assertGreater(self.demanded, 0)
        pages = self.until("the snapshot learns", lambda: self.known("first"))
        self.assertGreater(pages, 8 * MIB // 4096)  # the data alone
        self.assertLessEqual(pages, 128 * MIB // 4096 // 4)
        self.gone("one")

        self.lab.ctl("fork", "first", "two")
        self.used_ahead("two", self.demanded)

    def test_2_inherited(self):
        second = self.lab.ctl("standby", "two")["snapshot"]
        # All but the last sixteenth: a chain must not drag along what any of its links once needed.
        self.assertGreaterEqual(self.known(second), self.known("first") - self.known("first") // 16 - 1)
        self.assertNotEqual(self.file(second).read_bytes(), self.file("first").read_bytes())
        self.lab.ctl("restore", "two")
        self.used_ahead("two", self.demanded)
        self.gone("two")

    def test_3_kept_when_a_guest_is_ended_early(self):
        self.file("first").unlink()
        self.lab.ctl("fork", "first", "short")
        self.use("short")
        self.lab.ctl("rm", "short")  # well within the window, or just behind it
        self.until("the snapshot learns", lambda: self.file("first").exists())
        self.until("the image is forgotten", lambda: not self.lab.ctl("pager", "status")["images"])
        self.lab.ctl("fork", "first", "next")
        self.used_ahead("next", self.demanded)
        self.gone("next")

    def test_4_damage_is_ignored_and_mended(self):
        whole = self.file("first").read_bytes()
        for damaged in (whole[:-1], whole[:100] + b"?" + whole[101:], b"", os.urandom(len(whole))):
            self.file("first").write_bytes(damaged)
            verified = self.lab.ctl("snapshot", "verify", "first")
            self.assertTrue(verified["ok"])
            self.assertEqual(len(verified["notes"]), 1, verified)
            self.lab.ctl("fork", "first", "brave")
            self.use("brave")
            self.assertEqual(self.session("brave")["pages_ahead"], 0)
            self.gone("brave")
            self.until("it is mended", lambda: not self.lab.ctl("snapshot", "verify", "first")["notes"])
        # That of another image, whole in itself.
        self.lab.ctl("fork", "first", "brave")
        other = self.lab.ctl("standby", "brave")["snapshot"]
        self.file("first").write_bytes(self.file(other).read_bytes())
        self.assertEqual(len(self.lab.ctl("snapshot", "verify", "first")["notes"]), 1)
        self.gone("brave")
        self.lab.ctl("fork", "first", "brave")
        self.use("brave")
        self.assertEqual(self.session("brave")["pages_ahead"], 0)
        self.gone("brave")

    def test_5_forkd_restarts_meanwhile(self):
        self.file("first").unlink()
        self.lab.ctl("fork", "first", "lasts")
        self.use("lasts")
        self.lab.terminate()
        self.lab.start()  # the window ends before this or after it
        self.until("the snapshot learns", lambda: self.known("first"))
        self.gone("lasts")

    def test_6_many_at_once_and_a_snapshot_that_goes(self):
        self.file("first").unlink(missing_ok=True)
        self.lab.ctl("fork", "first", "c", "--count", "3")
        for i in (1, 2, 3):
            self.use(f"c-{i}")
        self.until("the snapshot learns", lambda: self.file("first").exists())
        self.lab.ctl("fork", "first", "heir")
        self.lab.ctl("snapshot", "rm", "--force", "first")
        self.use("heir")
        third = self.lab.ctl("standby", "heir")["snapshot"] # with nothing left to learn for
        self.lab.ctl("restore", "heir")
        self.use("heir")
        self.assertTrue(self.lab.ctl("snapshot", "verify", third)["ok"])
        self.assertEqual([p.name for p in (self.lab.state / "store" / "tmp").iterdir()], [])


class Off(Case):
    lab_options = {"config": FORGET + "workingset = off\n"}

    def test_nothing_is_recorded(self):
        self.lab.ctl("run", "one", "--mem", "128M")
        self.lab.ctl("standby", "one", "--tag", "first")
        self.lab.ctl("restore", "one")
        self.lab.sh("one", "true")
        self.lab.ctl("standby", "one")  # would be the end of a recording
        for snap in self.lab.ctl("snapshot", "ls"):
            self.assertEqual(snap["workingset_pages"], 0)
            self.assertFalse((pathlib.Path(snap["path"]) / "workingset").exists())


if __name__ == "__main__":
    main()
