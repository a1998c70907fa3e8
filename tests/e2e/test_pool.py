# SPDX-License-Identifier: MIT
"""Warm pools: what waits is taken at once, once, and as a machine of its own; what is taken is replaced; whatever goes wrong with a
member, its pool, its snapshot or forkd, nobody is handed something dead, and nothing is lost that was handed out."""

import concurrent.futures
import os
import signal
import time

from case import Case, main, until

UNIQUE = "cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | md5sum"


class Pools(Case):
    lab_options = {"config": "[pool]\ncheck_seconds = 1\n"}

    def setUp(self):
        if "warm" in [s["tag"] for s in self.lab.ctl("snapshot", "ls")]:
            return
        Pools.digest0, Pools.secret = self.warm("base", 4)
        self.lab.ctl("standby", "base", "--tag", "warm")

    def tearDown(self):
        for p in self.lab.ctl("pool", "ls"):
            self.lab.ctl("pool", "rm", p["name"])
        mine = [v["name"] for v in self.lab.ctl("ps") if v["name"] != "base"]
        if mine:
            self.lab.ctl("rm", *mine)
        self.assertEqual([v["name"] for v in self.lab.ctl("ps", "--all") if v["pool"]], [])

    def pool(self, name="p"):
        return next(p for p in self.lab.ctl("pool", "ls") if p["name"] == name)

    def members(self, name="p"):
        return [v for v in self.lab.ctl("ps", "--all") if v["pool"] == name]

    def filled(self, n, name="p"):
        until(lambda: (p := self.pool(name))["warm"] == n and p["making"] == p["old"] == 0)

    def take_all(self, n, *args):
        """n takes at once: what each was answered, or the error."""
        def take(i):
            try:
                return self.lab.ctl("pool", "take", "p", *args)
            except Exception as e:  # noqa: BLE001
                return e
        with concurrent.futures.ThreadPoolExecutor(n) as pool:
            return list(pool.map(take, range(n)))

    def test_01_what_is_taken_is_a_machine_of_its_own(self):
        p = self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "3")
        self.assertEqual((p["name"], p["tag"], p["size"], p["warm"], p["problem"]), ("p", "warm", 3, 3, None))
        waiting = {m["id"]: m for m in self.members()}
        self.assertEqual(len(waiting), 3)
        self.assertEqual({m["state"] for m in waiting.values()}, {"paused"})
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["base"])
        one, two = self.lab.ctl("pool", "take", "p", "one"), self.lab.ctl("pool", "take", "p")
        self.assertEqual(list(one), ["name", "id", "pid", "take_ms", "warm"])
        self.assertTrue(one["warm"] and two["warm"])
        self.assertIn(one["id"], waiting)
        self.assertEqual((one["name"], two["name"]), ("one", "p-1"))
        self.assertEqual(self.lab.vm("one")["state"], "running")
        self.assertIsNone(self.lab.vm("one")["pool"])
        said = [self.lab.text(n, UNIQUE).split("\n") for n in ("one", "p-1")]
        self.assertEqual(len(set(said[0]) & set(said[1])), 1, said)  # they were booted once
        # its priority was low while it was made
        self.assertEqual({os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir(f"/proc/{one['pid']}/task")}, {0})
        for name in ("one", "p-1"):
            self.assertEqual(self.lab.text(name, "hostname; cat /etc/hostname").split(), [name, name])
            self.assertLess(abs(float(self.lab.text(name, "date +%s")) - time.time()), 3)
            self.assertEqual(self.digest(name), self.digest0)
            self.assertEqual(self.ask(name, "x")[0], self.secret)
        self.filled(3)
        self.assertEqual(self.pool()["taken_warm"], 2)
        # and it is an ordinary one: standby, restore, fork
        self.lab.ctl("standby", "one")
        self.lab.ctl("restore", "one")
        self.lab.ctl("fork", "one", "child")
        self.assertEqual(self.digest("child"), self.digest0)

    def test_02_nobody_else_touches_what_waits(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "2")
        name = self.members()[0]["name"]
        for args in (("resume", name), ("pause", name), ("stop", name), ("rm", name), ("standby", name), ("fork", name, "x"), ("snapshot", "create", name),
                     ("rm", "base", name), ("ping", name)):
            self.refused(*args, code="wrong-state", says=["belongs to the pool 'p'", "forkctl pool take p"])
        self.assertEqual(self.lab.sh(name, "true", check=False).code, 125)
        self.assertEqual(self.lab.vm(name)["pool"], "p")  # to be looked at
        self.lab.ctl("run", "mine")
        self.assertEqual(sorted(self.lab.ctl("rm", "mine")["removed"]), ["mine"])
        self.assertEqual(len(self.members()), 2)

    def test_03_bad_input(self):
        create = ("pool", "create", "p", "--from", "warm", "--size")
        self.refused(*create, "0", code="invalid", says=["from 1 to 1000"])
        self.refused(*create, "1001", code="invalid")
        self.refused(*create, "2", "--min", "3", code="invalid", says=["--min is at most --size"])
        self.refused(*create, "2", "--max", "1", code="invalid")
        self.refused(*create, "2", "--min", "2", "--idle-timeout", "5", code="invalid", says=["--min below --size"])
        self.refused(*create, "2", "--on-pager-loss", "recover", "--idle-timeout", "99999999", code="invalid")
        self.refused(*create, "1000", code="limit", says=["1000", "max_vms"])
        self.refused(*create, "990", says=["990 clones for the pool 'p'", "needed"])  # memory: told with figures
        self.refused("pool", "create", "../p", "--from", "warm", "--size", "1", code="invalid")
        self.refused("pool", "create", "p", "--from", "nothing", "--size", "1", code="not-found")
        for args in (("take", "q"), ("rm", "q"), ("set", "q", "--size", "1")):
            self.refused("pool", *args, code="not-found", says=["no pool named 'q'"])
        self.assertEqual(self.lab.ctl("pool", "ls"), [])
        self.lab.ctl(*create, "1")
        self.refused(*create, "1", code="exists")
        self.refused("pool", "set", "p", code="invalid")
        self.refused("pool", "set", "p", "--max", "0", code="invalid")
        self.refused("pool", "take", "p", "base", code="exists")
        self.refused("pool", "take", "p", "no/name", code="invalid")
        self.assertEqual(self.pool()["warm"], 1)  # a bad name costs no clone
        self.assertEqual(self.members()[0]["state"], "paused")

    def test_04_fifty_at_once_from_a_full_and_an_empty_pool(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "10")
        got = self.take_all(25)
        self.assertEqual([g for g in got if isinstance(g, Exception)], [])
        self.assertGreaterEqual(sum(g["warm"] for g in got), 10)
        self.assertEqual(len({g["id"] for g in got}), 25)
        self.assertEqual(len({g["name"] for g in got}), 25)
        self.assertEqual({v["state"] for v in self.lab.ctl("ps") if v["name"] != "base"}, {"running"})
        for g in got[::6]:
            self.assertEqual(self.lab.text(g["name"], "hostname"), g["name"])
        # the same name for all: one gets it, and the others are told
        got = self.take_all(8, "alone")
        self.assertEqual(len([g for g in got if not isinstance(g, Exception)]), 1)
        self.assertEqual({g.error["code"] for g in got if isinstance(g, Exception)}, {"exists"})
        self.filled(10)

    def test_05_takes_of_a_pool_that_is_removed(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "6")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            taking = pool.submit(self.take_all, 12)
            removed = self.lab.ctl("pool", "rm", "p")
            got = taking.result()
        self.assertEqual(removed["name"], "p")
        served = [g for g in got if not isinstance(g, Exception)]
        self.assertEqual({g.error["code"] for g in got if isinstance(g, Exception)} - {"busy", "not-found"}, set())
        self.assertEqual(len({g["id"] for g in served}), len(served))
        self.assertEqual({self.lab.vm(g["name"])["state"] for g in served} - {"running"}, set())
        self.assertEqual([v for v in self.lab.ctl("ps", "--all") if v["pool"]], [])
        self.assertEqual(len(self.lab.ctl("ps")), 1 + len(served))
        self.assertEqual(list((self.lab.state / "pools").iterdir()), [])

    def test_06_a_member_that_dies_or_does_not_wake_up_is_replaced(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "2")
        before = self.members()
        os.kill(before[0]["pid"], signal.SIGKILL)
        until(lambda: before[0]["id"] not in {m["id"] for m in self.members()})
        self.filled(2)
        # one whose VMM hangs is not waited for, but for a moment
        hung = self.members()[0]
        os.kill(hung["pid"], signal.SIGSTOP)
        got = self.lab.ctl("pool", "take", "p", "quick")
        self.assertNotEqual(got["id"], hung["id"])
        self.assertLess(got["take_ms"], 8000)
        self.assertEqual(self.lab.text("quick", "hostname"), "quick")
        until(lambda: hung["id"] not in {m["id"] for m in self.members()})
        self.filled(2)

    def test_07_the_pager_goes(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "2")
        before = {m["id"] for m in self.members()}
        os.kill(self.lab.ctl("pager", "status")["pid"], signal.SIGKILL)
        until(lambda: not before & {m["id"] for m in self.members()})
        self.filled(2)
        self.assertTrue(self.lab.ctl("pool", "take", "p", "after")["warm"])
        self.assertEqual(self.digest("after"), self.digest0)

    def test_08_a_newer_snapshot_comes_clone_by_clone(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "3")
        self.lab.ctl("pool", "take", "p", "next")
        self.lab.sh("next", "echo newer > /run/version")
        self.lab.ctl("standby", "next", "--tag", "newer")
        self.filled(3)
        self.lab.ctl("pool", "set", "p", "--from", "newer")
        seen = []
        until(lambda: (seen.append(p := self.pool()) or p["old"] == 0 and p["warm"] == 3 and p["making"] == 0))
        self.assertGreaterEqual(min(p["warm"] for p in seen), 3, seen)
        self.assertLessEqual(max(p["warm"] + p["making"] for p in seen), 4, seen)
        self.lab.ctl("pool", "take", "p", "new")
        self.assertEqual(self.lab.text("new", "cat /run/version"), "newer")
        # and back at once, while takes go on
        self.lab.ctl("pool", "set", "p", "--from", "warm")
        for i in range(4):
            self.lab.ctl("pool", "take", "p")
        self.lab.ctl("pool", "set", "p", "--wait", "--size", "2")
        p = self.pool()
        self.assertEqual((p["tag"], p["old"], p["warm"]), ("warm", 0, 2))
        self.lab.ctl("rm", "next", "new")
        self.lab.ctl("snapshot", "rm", "newer")

    def test_09_size_follows_demand_and_idleness(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "2", "--min", "1", "--max", "6", "--idle-timeout", "3")
        self.assertEqual(self.pool()["wanted"], 2)
        for _ in range(4):
            self.lab.ctl("pool", "take", "p")
        self.assertEqual(self.pool()["wanted"], 5)
        self.filled(5)
        until(lambda: self.pool()["wanted"] == 1, 10)
        self.filled(1)
        self.lab.ctl("pool", "take", "p")
        self.assertGreater(self.pool()["wanted"], 1)
        self.lab.ctl("pool", "set", "p", "--idle-timeout", "0", "--size", "1", "--max", "1")
        self.filled(1)

    def test_10_a_snapshot_below_a_pool(self):
        self.lab.ctl("fork", "warm", "tmp")
        self.lab.ctl("standby", "tmp", "--tag", "going")
        self.lab.ctl("rm", "tmp")
        self.lab.ctl("pool", "create", "p", "--from", "going", "--size", "2")
        self.refused("snapshot", "rm", "going", code="busy", says=["the pool 'p'", "--force"])
        self.lab.ctl("snapshot", "rm", "going", "--force")
        for _ in range(2):
            got = self.lab.ctl("pool", "take", "p")
            self.assertTrue(got["warm"])
            self.assertEqual(self.digest(got["name"]), self.digest0)
        self.refused("pool", "take", "p", code="not-found", says=["the pool 'p' is empty", "pool set p --from"])
        until(lambda: "is not there any more" in (self.pool()["problem"] or ""))
        p = self.lab.ctl("pool", "set", "p", "--from", "warm", "--wait")
        self.assertEqual((p["warm"], p["problem"]), (2, None))

    def test_11_restarts(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "3", "--max", "4")
        before = {m["id"] for m in self.members()}
        for kill in (False, True):
            self.lab.ctl("pool", "take", "p", f"kept-{kill}")
            if kill:
                self.lab.forkd.kill()
                self.lab.forkd.wait()
            else:
                self.filled(3)
                before = {m["id"] for m in self.members()}
                self.lab.terminate()
            self.lab.start()
            self.assertEqual((self.pool()["size"], self.pool()["max"], self.pool()["tag"]), (3, 4, "warm"))
            if not kill:
                self.assertEqual({m["id"] for m in self.members()}, before)
            self.filled(3)
            got = self.lab.ctl("pool", "take", "p")
            self.assertTrue(got["warm"])
            self.assertEqual(self.lab.text(got["name"], "hostname"), got["name"])
            self.assertEqual(self.lab.text(f"kept-{kill}", "hostname"), f"kept-{kill}")
        # a member that was about to be handed out, and nobody was told of it
        self.filled(3)
        loose = self.members()[0]
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        qmp(self.lab.run_dir / "vms" / loose["id"] / "qmp.sock", "cont")
        self.lab.start()
        self.assertNotIn(loose["id"], {m["id"] for m in self.lab.ctl("ps", "--all")})
        self.filled(3)

    def test_12_memory_is_given_back(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "2")
        self.lab.terminate()
        config = self.lab.conf.read_text()
        self.lab.conf.write_text(config.replace("[pool]\n", "[pool]\nmemory_reserve = 1T\n"))
        said = len(self.lab.log_path.read_text())
        self.lab.start()
        until(lambda: self.pool()["warm"] == 0)
        self.assertIn("memory is short", self.pool()["problem"])
        self.refused("pool", "create", "q", "--from", "warm", "--size", "2", code="wrong-state", says=["memory is short"])
        self.assertEqual([p["name"] for p in self.lab.ctl("pool", "ls")], ["p"])
        self.assertFalse(self.lab.ctl("pool", "take", "p")["warm"])
        self.lab.terminate()
        # told once, and not each second with another figure
        self.assertEqual(self.lab.log_path.read_text()[said:].count("pool 'p': memory is short"), 1)
        self.lab.conf.write_text(config)
        self.lab.start()
        self.filled(2)
        self.assertIsNone(self.pool()["problem"])

    def test_12_a_vm_that_is_called_as_the_snapshot(self):
        """It is not what an empty pool makes a clone of."""
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "1")
        other = self.pool()["from"]
        self.lab.ctl("fork", "warm", other)
        self.lab.sh(other, "echo secret > /run/mine")
        taken = [self.lab.ctl("pool", "take", "p") for _ in range(2)]
        self.assertIn(False, [t["warm"] for t in taken])
        for t in taken:
            self.lab.sh(t["name"], "! test -e /run/mine")

    def test_13_what_is_told(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "2")
        self.lab.ctl("pool", "take", "p", "told")
        self.filled(2)
        stats = self.lab.ctl("stats")
        self.assertEqual([(p["name"], p["size"], p["warm"], p["from"]) for p in stats["pools"]], [("p", 2, 2, self.pool()["from"])])
        self.assertGreater(stats["operations"]["pool_take"]["count"], 0)
        self.assertEqual({v["name"] for v in stats["vms"] if v["state"] != "removed"}, {"base", "told"})
        metrics = self.lab.metrics()
        label = frozenset({("pool", "p")})
        self.assertEqual(metrics["forkd_pool_warm"][label], 2)
        self.assertEqual(metrics["forkd_pool_size"][label], 2)
        self.assertEqual(metrics["forkd_pool_takes_total"][frozenset({("pool", "p"), ("warm", "yes")})], 1)
        self.assertGreater(metrics["forkd_pool_take_seconds_count"][frozenset()], 0)
        vms = {dict(labels).get("vm") for f in metrics.values() for labels in f}
        self.assertEqual({v for v in vms if v and v.startswith("p.")}, set())
        self.assertIn("told", vms)

    def test_14_nothing_is_left(self):
        self.lab.ctl("pool", "create", "p", "--from", "warm", "--size", "2")
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])
        self.lab.start()
        self.filled(2)
        self.lab.ctl("pool", "rm", "p")
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])
        self.lab.start()
        self.assertEqual(self.lab.ctl("pool", "ls"), [])


def qmp(path, command):
    """Tells QEMU something behind forkd's back."""
    import json
    import socket

    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect(str(path))
        f = s.makefile("rw")
        f.readline()
        for word in ("qmp_capabilities", command):
            f.write(json.dumps({"execute": word}))
            f.flush()
            while "return" not in f.readline():
                pass


if __name__ == "__main__":
    main()
