# SPDX-License-Identifier: MIT
"""What belongs to nobody is found and removed, with a forkd and without; what belongs to somebody is not touched, however
much its name looks like ours."""

import json
import os
import pathlib
import select
import subprocess

from case import Case, main
from forkdlab import Lab, bin_dir, cgroups, instance

ID, OTHER = "00000000deadbeef", "00000000deadbee0"


def cgroup_root():
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        dev, where, kind = line.split()[:3]
        if kind == "cgroup2":
            return pathlib.Path(where)
    return None


class Orphans(Case):
    lab_options = {"store": "1G", "config": "[vmm]\nshells = 0\n"} # test_shells.py has theirs

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "128M")
        cls.lab.sh("base", "head -c 1048576 /dev/urandom > /run/data")
        cls.sum = cls.lab.text("base", "sha256sum /run/data")
        cls.lab.ctl("standby", "base")

    def orphans(self, *args, lab=None):
        """{(kind, what)}, and the whole answer."""
        lab = lab or self.lab
        doc = lab.ctl("doctor", "--orphans", "--state-dir", str(lab.state), *args)
        self.assertEqual(doc["ok"], doc["fixed"] == len(doc["orphans"]))
        return {(o["kind"], o["what"]) for o in doc["orphans"]}, doc

    def sleeper(self, group=None, **env):
        """A process that sleeps, in a cgroup, with these variables."""
        enter = f"echo $$ > {group}/cgroup.procs; " if group else ""
        p = subprocess.Popen(["/bin/sh", "-c", enter + "echo; exec sleep 100000"], stdout=subprocess.PIPE,
                             env=dict({"PATH": "/usr/bin:/bin"}, **env))
        p.stdout.readline()
        p.stdout.close()
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        return p

    def crash(self):
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        self.lab.forkd = None

    def plant(self):
        """What a crash might leave: returns what is to be found, and paths that look like it."""
        state, run = self.lab.state, self.lab.run_dir
        dirs = [state / "store" / "vms" / ID, run / "vms" / ID, state / "vms" / ID]
        for d in dirs:
            d.mkdir()
            (d / "file").write_text("x")
        base = next((state / "vms").glob("*/record")).parent.name
        files = [("temporary", state / "vms" / base / f"record.tmp-{ID}"), ("temporary", run / f"pager.pid.tmp-{ID}"),
                 ("temporary", state / "journal" / f"{ID}.tmp-{OTHER}"), ("temporary", state / "store" / "tmp" / f"new-{ID}-{OTHER}"),
                 ("journal", state / "journal" / OTHER)]
        for _, f in files:
            f.write_text("cut off")
        like = [state / "vms" / (ID + "0"), run / "vms" / ID[:-1], state / "vms" / ID.upper(), state / "vms" / base / "record.tmp-",
                state / "vms" / base / f"console.log.tmp{ID}", state / "journal" / "README", run / f"tmp-{ID}"]
        for p in like:
            p.write_text("somebody's")
        self.addCleanup(lambda: [p.unlink() for p in like if p.exists()])
        return {("directory", str(d)) for d in dirs} | {(k, str(f)) for k, f in files}, like

    # ---- with a forkd ----

    def test_1_what_lives_is_nobodys_orphan(self):
        self.lab.ctl("fork", "base", "c", "--count", "2")
        self.lab.ctl("pause", "c-2")
        self.assertEqual(self.orphans()[0], set())
        self.assertEqual(self.orphans("--fix")[0], set())
        self.assertEqual(self.lab.text("c-1", "sha256sum /run/data"), self.sum)

    def test_2_what_a_crash_left_is_shown_then_removed(self):
        expected, like = self.plant()
        marked = self.sleeper(FORKD_INSTANCE=instance(self.lab.state))
        stranger = self.sleeper(FORKD_INSTANCE=instance(self.lab.state)[:-1])
        other = self.sleeper(FORKD_INSTANCE=instance(str(self.lab.state) + "0"), NOTE=f"FORKD_INSTANCE={instance(self.lab.state)}")
        expected.add(("process", str(marked.pid)))
        root = cgroup_root()
        if root:
            group = root / f"forkd-{instance(self.lab.state)}" / ID
            group.mkdir()
            grouped = self.sleeper(group)
            expected |= {("process", str(grouped.pid)), ("cgroup", str(group))}
        self.assertEqual(self.orphans()[0], expected)
        self.assertIsNone(marked.poll())
        found, doc = self.orphans("--fix")
        self.assertEqual(found, expected)
        self.assertEqual(doc["fixed"], len(expected), doc)
        self.assertEqual(marked.wait(timeout=10), -9)
        self.assertEqual(self.orphans()[0], set())
        for p in like:
            self.assertTrue(p.exists(), p)
        self.assertIsNone(stranger.poll())
        self.assertIsNone(other.poll())
        self.assertEqual(self.lab.text("c-1", "sha256sum /run/data"), self.sum)

    def test_3_the_same_at_the_next_start(self):
        self.crash()
        expected, like = self.plant()
        marked = self.sleeper(FORKD_INSTANCE=instance(self.lab.state))
        (self.lab.state / "store" / "tmp" / f"new-{OTHER}-{ID}").mkdir()
        self.lab.start()
        self.assertEqual(marked.wait(timeout=10), -9)
        # an entry of the journal that cannot be read stays until a person says so
        self.assertEqual({kind for kind, _ in self.orphans()[0]}, {"journal"})
        for kind, what in expected:
            self.assertEqual(os.path.lexists(what), kind == "journal", what)
        self.assertTrue(self.orphans("--fix")[1]["ok"])
        for p in like:
            self.assertTrue(p.exists(), p)
        self.assertEqual(self.lab.text("c-1", "sha256sum /run/data"), self.sum)
        self.assertEqual(self.state("c-2"), "paused")

    # ---- without one ----

    def test_4_guests_that_wait_for_the_next_forkd_are_left_alone(self):
        expected, like = self.plant()
        self.crash()
        pids = [int(p) for b in cgroups(self.lab.state) for f in b.glob("*/cgroup.procs") if f.parent.name != "workers"
                for p in f.read_text().split()]
        self.assertGreaterEqual(len(pids), 3)
        found, _ = self.orphans()
        self.assertLessEqual(expected | {("socket", str(self.lab.socket))}, found)
        extra = found - expected
        self.assertLessEqual({k for k, _ in extra}, {"socket", "cgroup", "process"}, extra)
        self.assertFalse({("process", str(p)) for p in pids} & found)
        self.assertTrue(self.orphans("--fix")[1]["ok"])
        for p in pids:
            os.kill(p, 0)
        for p in like:
            self.assertTrue(p.exists(), p)
        self.lab.start()
        self.assertEqual(self.lab.text("c-1", "sha256sum /run/data"), self.sum)
        self.lab.ctl("resume", "c-2")
        self.assertEqual(self.lab.text("c-2", "sha256sum /run/data"), self.sum)

    def test_5_it_takes_the_place_of_forkd(self):
        argv = [bin_dir() / "forkd", "--orphans", "--fix", "--state-dir", self.lab.state, "--run-dir", self.lab.dir / "elsewhere"]
        p = subprocess.run(argv, capture_output=True, timeout=60)
        self.assertEqual(p.returncode, 1)
        self.assertIn("another forkd uses the state directory", json.loads(p.stdout)["error"]["message"])
        argv[4] = self.lab.dir / "nowhere"
        self.assertEqual(json.loads(subprocess.run(argv, capture_output=True, timeout=60).stdout), {"found": 0, "fixed": 0, "orphans": []})
        self.assertFalse((self.lab.dir / "nowhere").exists())
        p = subprocess.run([bin_dir() / "forkd", "--fix"], capture_output=True, timeout=60)
        self.assertEqual(p.returncode, 2)

    def test_6_a_vmm_without_its_record_and_a_pager_without_guests(self):
        self.lab.ctl("rm", "c-1")
        vm = self.lab.vm("c-2")
        self.crash()
        (self.lab.state / "vms" / vm["id"] / "record").unlink()
        vmm, pager = os.pidfd_open(vm["pid"]), int((self.lab.run_dir / "pager.pid").read_text().split()[0])
        found, _ = self.orphans()
        self.assertLessEqual({("process", str(vm["pid"])), ("process", str(pager)), ("mount", str(self.lab.state / "store")),
                              ("socket", str(self.lab.run_dir / "pager.sock"))}, found)
        found, doc = self.orphans("--fix")
        self.assertTrue(doc["ok"], doc)
        order = [(o["kind"], o["what"]) for o in doc["orphans"]]
        self.assertLess(order.index(("process", str(vm["pid"]))), order.index(("process", str(pager))))
        self.assertTrue(select.select([vmm], [], [], 0)[0])
        os.close(vmm)
        self.assertEqual(self.lab.leftovers(), [])
        self.assertEqual(self.orphans()[0], set())
        self.lab.start()
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["base"])

    # ---- neighbours ----

    def test_7_directories_whose_names_begin_alike(self):
        top = self.lab.dir / "x"
        top.mkdir()
        with Lab(at=top / "001", setup=False) as a, Lab(at=top / "0010", setup=False) as b:
            for lab in (a, b):
                lab.ctl("run", "v", "--mem", "128M")
            pid = b.vm("v")["pid"]
            a.forkd.kill()
            a.forkd.wait()
            a.forkd = None
            b.forkd.kill()
            b.forkd.wait()
            b.forkd = None
            # of a all goes, its guest too: its record says that its removal has begun, as good as
            record = next((a.state / "vms").glob("*/record"))
            record.unlink()
            self.assertTrue(self.orphans("--fix", lab=a)[1]["ok"])
            self.assertEqual(a.leftovers(), [])
            os.kill(pid, 0)
            b.start()
            self.assertEqual(b.vm("v")["pid"], pid)
            self.assertEqual(b.text("v", "echo on"), "on")
            self.assertEqual(self.orphans(lab=b)[0], set())
            b.end()
            self.assertEqual(b.leftovers(), [])

    def test_8_a_loop_device_that_is_mounted_nowhere(self):
        self.lab.end()
        image = self.lab.state / "store.img"
        if not image.exists():
            self.skipTest("the store is no image here")
        other = self.lab.dir / "state" / "store.img0"
        other.write_bytes(b"\0" * 1048576)
        made = [subprocess.run(["losetup", "--find", "--show", p], capture_output=True, check=True, text=True).stdout.strip()
                for p in (image, other)]
        self.addCleanup(subprocess.run, ["losetup", "-d", made[1]])
        self.assertEqual(self.orphans()[0] & {("loop", m) for m in made}, {("loop", made[0])})
        self.assertTrue(self.orphans("--fix")[1]["ok"])
        listed = subprocess.run(["losetup", "--list", "--noheadings", "--output", "NAME"], capture_output=True, text=True).stdout.split()
        self.assertIn(made[1], listed)
        self.assertNotIn(made[0], listed)

    def test_9_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
