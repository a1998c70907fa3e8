# SPDX-License-Identifier: MIT
"""Real guests whose image is more than the pager may keep decoded: they see what they left, and the budget is kept."""

import concurrent.futures

from case import MIB, Case, main

BUDGET = 12 * MIB
DATA_MIB = 24
CLONES = 3


class Memory(Case):
    lab_options = {"config": f"[pager]\nmemory_budget = {BUDGET // MIB}M\n"}

    def totals(self):
        return self.lab.ctl("pager", "status")["totals"]

    def all_at_once(self, names):
        """Every guest reads all its data, at the same time."""
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            return list(pool.map(self.digest, names))

    def test_1_clones_share_a_budget(self):
        digest, secret = self.warm("origin", DATA_MIB)
        self.lab.ctl("standby", "origin", "--tag", "first")
        self.lab.ctl("fork", "origin", "clone", "--count", str(CLONES))
        names = [f"clone-{i + 1}" for i in range(CLONES)]
        self.assertEqual(self.totals()["budget_bytes"], BUDGET)
        for _ in range(2):
            self.assertEqual(self.all_at_once(names), [digest] * CLONES)
            self.assertLessEqual(self.totals()["present_bytes"], BUDGET + BUDGET // 8)
        t = self.totals()
        self.assertGreater(t["reclaimed_pages"], DATA_MIB * MIB // 4096 // 2)
        self.assertGreater(t["refaults"], 0)
        self.assertEqual(t["sessions_failed"], 0)
        image = self.lab.ctl("pager", "status")["images"][0]
        self.assertEqual(image["reclaimed_pages"], t["reclaimed_pages"])
        for name in names:
            self.assertEqual(self.ask(name, "second"), (secret, 2))

    def test_2_a_clone_goes_on_standby_meanwhile(self):
        """What is dirty is found right although clean pages come and go below the guest; so with a fork of a running VM."""
        self.lab.sh("clone-1", f"head -c {8 * MIB} /dev/urandom >> /run/data")
        digest = self.digest("clone-1")
        self.assertEqual(len(set(self.all_at_once(["clone-1", "clone-2"]))), 2)
        self.lab.ctl("fork", "clone-1", "child")
        self.assertEqual(self.all_at_once(["clone-1", "child", "clone-3"])[:2], [digest] * 2)
        self.lab.ctl("standby", "clone-1")
        self.lab.ctl("restore", "clone-1")
        self.assertEqual(self.digest("clone-1"), digest)
        self.assertEqual(self.totals()["sessions_failed"], 0)

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
