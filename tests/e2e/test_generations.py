# SPDX-License-Identifier: MIT
"""A chain of VMs that all live: each sees the memory that it should, what generations have in common is there once, and
a pager that goes is followed by one that knows what is whose."""

import concurrent.futures
import os
import signal
import time

from case import Case, MIB, Refused, main, until
from forkdlab import guest_ram_mappings

DEPTH = 8
BASE_MIB = 12
LINK_MIB = 6


class Generations(Case):
    lab_options = {"store": "4G"}

    def pager(self):
        return self.lab.ctl("pager", "status")

    def held(self):
        """What all guests' memory takes: decoded pages, and what each VM has of its own."""
        return self.pager()["totals"]["present_bytes"] + sum(self.lab.private_bytes(v["pid"]) for v in self.lab.ctl("ps"))

    def digests_of(self, name, depth):
        files = " ".join(["data"] + [f"link-{i}" for i in range(1, depth + 1)])
        return [line.split()[0] for line in self.lab.text(name, f"cd /run; sha256sum {files}").splitlines()]

    def check(self, *names):
        def one(name):
            depth = 0 if name == "root" else DEPTH if name == "late" else int(name[1:])
            return self.digests_of(name, depth), self.known[:depth + 1]
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            for name, (found, wanted) in zip(names, pool.map(one, names)):
                self.assertEqual(found, wanted, name)

    def dirty(self, i):
        self.lab.sh(f"v{i}", f"head -c {LINK_MIB * MIB} /dev/urandom > /run/link-{i}")
        self.known.append(self.lab.text(f"v{i}", f"sha256sum /run/link-{i}").split()[0])
        self.names.append(f"v{i}")

    def private(self, name):
        return self.lab.private_bytes(self.lab.vm(name)["pid"])

    def test_1_each_link_pays_for_what_it_has_changed(self):
        cls = type(self)
        self.lab.ctl("run", "root", "--on-pager-loss", "recover")
        self.lab.sh("root", f"head -c {BASE_MIB * MIB} /dev/urandom > /run/data")
        cls.known = [self.digest("root")]
        self.lab.ctl("standby", "root", "--tag", "s0")
        self.lab.ctl("restore", "root")
        cls.names = ["root"]
        self.assertEqual(self.digest("root"), self.known[0])  # all of it is there
        self.lab.ctl("fork", "s0", "v1", "--on-pager-loss", "recover")
        self.dirty(1)
        held, dirtied = [self.held()], [self.private("v1")]
        for i in range(2, DEPTH + 1):
            self.lab.ctl("fork", f"v{i - 1}", f"v{i}", "--on-pager-loss", "recover")  # of one that runs, and goes on
            self.dirty(i)
            until(lambda: self.private(f"v{i - 1}") < LINK_MIB * MIB)  # it maps what is its child's, too
            held.append(self.held())
            dirtied.append(self.private(f"v{i}"))
        grown = [b - a for a, b in zip(held, held[1:])]
        print("held MiB:", [h // MIB for h in held], "grown:", [round(g / MIB, 1) for g in grown],
              "dirtied:", [round(d / MIB, 1) for d in dirtied], flush=True)
        for g, d in zip(grown, dirtied):
            self.assertGreater(d, LINK_MIB * MIB)
            self.assertLess(g, 1.5 * d)

    def test_2_all_of_it_is_right(self):
        self.check(*self.names)
        # Now each has all that it knows decoded or mapped: of the root's data there is one copy.
        images = self.pager()["images"]
        self.assertEqual(sum(i["present_bytes"] > BASE_MIB * MIB for i in images), 1, images)
        mapped = [len(guest_ram_mappings(self.lab.vm(n)["pid"])) for n in self.names]
        print("mappings:", mapped, flush=True)
        self.assertGreater(mapped[-1], DEPTH)

    def test_3_a_clone_of_a_clone_is_independent(self):
        self.lab.ctl("fork", f"v{DEPTH}", "twin")
        self.lab.sh("twin", "echo changed > /run/data; echo changed > /run/link-3")
        self.lab.sh("v2", "echo changed > /run/link-1")
        self.check(f"v{DEPTH}", "v3", "v1")
        self.lab.ctl("rm", "twin")
        self.lab.ctl("rm", "v2")
        type(self).names = [n for n in self.names if n != "v2"]

    def test_4_an_upgrade_below_the_chain(self):
        up = self.lab.ctl("pager", "upgrade")
        self.assertEqual(up["sessions"], len(self.names))
        print("pause p50", up["pause_p50_ms"], "max", up["pause_max_ms"], flush=True)
        self.check(*self.names)
        self.lab.ctl("snapshot", "create", f"v{DEPTH}", "--tag", "last")
        self.lab.ctl("fork", "last", "late", "--on-pager-loss", "recover")
        self.names.append("late")
        self.check("late")
        self.lab.ctl("standby", "v4")
        self.lab.ctl("restore", "v4")
        self.check("v4")

    def wait_recovered(self, old):
        end = time.monotonic() + 30
        while True:
            try:
                s = self.pager()
                if s["up"] and s["pid"] != old and len(s.get("sessions", [])) == len(self.names):
                    return
            except Refused:  # it died while it was asked
                pass
            self.assertLess(time.monotonic(), end)
            time.sleep(0.05)

    def test_5_a_dead_pager_below_the_chain(self):
        old = self.pager()["pid"]
        os.kill(old, signal.SIGKILL)
        self.wait_recovered(old)
        self.assertEqual(self.pager()["watchdog"]["guests_killed"], 0)
        self.check(*self.names)

    def test_6_forkd_comes_back_and_the_pager_dies_then(self):
        self.lab.terminate()
        self.lab.start()
        old = self.pager()["pid"]
        os.kill(old, signal.SIGKILL)
        self.wait_recovered(old)
        self.check(*self.names)
        self.assertEqual(self.pager()["watchdog"]["guests_killed"], 0)

    def test_7_snapshots_go_and_vms_stay(self):
        self.lab.ctl("snapshot", "rm", "--force", *[x["id"] for x in self.lab.ctl("snapshot", "ls")])
        self.check(*self.names)
        self.lab.ctl("rm", *[n for n in self.names if n != "late"])
        self.check("late")
        self.lab.ctl("rm", "late")


if __name__ == "__main__":
    main()
