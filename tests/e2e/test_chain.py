# SPDX-License-Identifier: MIT
"""Memory survives standby, restore and generations of forks bit for bit; clones are independent of each other,
of their source, and of every other snapshot."""

from case import Case, MIB, main


class Chain(Case):
    def test_1_three_generations(self):
        digest, secret = self.warm("gen0")
        self.lab.ctl("standby", "gen0", "--tag", "s0")
        self.lab.ctl("restore", "gen0")
        self.assertEqual(self.digest("gen0"), digest)
        self.assertEqual(self.ask("gen0", "x"), (secret, 2))
        self.lab.ctl("standby", "gen0", "--tag", "s1")
        parent = "gen0"
        for generation in (1, 2, 3):
            name = f"gen{generation}"
            self.lab.ctl("fork", parent, name)
            self.assertEqual(self.digest(name), digest)
            self.assertEqual(self.ask(name, "y"), (secret, 2 + generation))
            self.lab.sh(name, f"head -c {MIB} /dev/urandom > /run/own-{generation}")
            self.lab.ctl("standby", name, "--tag", f"s{generation + 1}", *(["--compression", "zstd:3"] if generation == 2 else []))
            parent = name
        self.assertEqual(self.lab.ctl("snapshot", "show", "s4")["depth"], 4)
        Chain.digest0, Chain.secret = digest, secret

    def test_2_clones_do_not_see_each_other(self):
        clones = self.lab.ctl("fork", "s4", "c", "--count", "4")["clones"]
        names = [c["name"] for c in clones]
        self.assertEqual(names, ["c-1", "c-2", "c-3", "c-4"])
        for n in names:
            self.lab.sh(n, f"echo {n} > /run/mark; head -c {4 * MIB} /dev/urandom > /run/data")
        self.assertEqual({self.lab.text(n, "cat /run/mark") for n in names}, set(names))
        self.assertEqual(len({self.digest(n) for n in names}), 4)
        for what in ("head -c 32 /dev/urandom | sha256sum", "cat /etc/machine-id", "hostname", "cat /proc/sys/kernel/random/uuid"):
            self.assertEqual(len({self.lab.text(n, what) for n in names}), 4, what)
        self.assertEqual(len({self.ask(n, "z")[0] for n in names}), 1)

    def test_3_fork_of_a_running_vm_leaves_it_alone(self):
        before = self.ask("c-1", "before")
        forked = self.lab.ctl("fork", "c-1", "twin")
        self.assertIn("source_pause_ms", forked)
        self.assertEqual(self.ask("c-1", "after"), (before[0], before[1] + 1))
        self.assertEqual(self.ask("twin", "after"), (before[0], before[1] + 1))
        self.assertEqual(self.digest("twin"), self.digest("c-1"))
        self.lab.sh("twin", "echo changed > /run/data")
        self.assertNotEqual(self.digest("twin"), self.digest("c-1"))

    def test_4_a_paused_clone_is_told_who_it_is_when_it_resumes(self):
        self.lab.ctl("fork", "s4", "sleeper", "--paused")
        self.assertEqual(self.state("sleeper"), "paused")
        self.lab.ctl("resume", "sleeper")
        self.assertEqual(self.lab.text("sleeper", "hostname"), "sleeper")
        self.assertEqual(self.digest("sleeper"), self.digest0)

    def test_5_the_memory_of_a_snapshot_is_the_memory_of_its_guest(self):
        path = self.lab.dir / "ram"
        self.lab.ctl("snapshot", "memory", "s4", "-o", path)
        self.assertEqual(path.stat().st_size, 256 * MIB)
        self.assertIn(self.secret.encode(), path.read_bytes())

    def test_6_any_snapshot_can_go_and_the_others_restore(self):
        self.lab.ctl("rm", "--all")
        for gone in ("s2", "s0", "s3", "s1"):
            self.lab.ctl("snapshot", "rm", gone)
            self.lab.ctl("fork", "s4", f"without-{gone}")
            self.assertEqual(self.digest(f"without-{gone}"), self.digest0)
        # also the last one, below VMs that live on it, which then go on standby and come back
        ids = [s["id"] for s in self.lab.ctl("snapshot", "ls")]
        self.assertTrue(ids)
        for i in ids:
            self.lab.ctl("snapshot", "rm", i)
        self.assertEqual(self.ask("without-s2", "alone")[0], self.secret)
        self.lab.ctl("standby", "without-s2")
        self.lab.ctl("restore", "without-s2")
        self.assertEqual(self.digest("without-s2"), self.digest0)
        self.assertTrue(self.lab.ctl("snapshot", "verify", self.lab.vm("without-s2")["snapshot"])["ok"])


if __name__ == "__main__":
    main()
