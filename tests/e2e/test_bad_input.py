# SPDX-License-Identifier: MIT
"""Every mistake gets one clear error that says what to do, and loses nothing."""

import concurrent.futures
import json
import pathlib
import subprocess

from case import Case, MIB, main
from forkdlab import Lab, Refused


class BadInput(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "128M")
        cls.lab.sh("base", "head -c 4194304 /dev/urandom > /run/data")
        cls.sum = cls.lab.text("base", "sha256sum /run/data")
        cls.lab.ctl("standby", "base", "--tag", "good")

    def tearDown(self):
        """Nothing was lost, whatever the test did."""
        names = [v["name"] for v in self.lab.ctl("ps")]
        self.assertIn("base", names)
        for n in names:
            if n != "base":
                self.lab.ctl("rm", n)

    def run_ctl(self, *args):
        return subprocess.run(self.lab.argv(*args, json_mode=False), capture_output=True, stdin=subprocess.DEVNULL, timeout=60)

    # ---- words ----

    def test_unknown_names(self):
        for args in (["inspect", "nobody"], ["restore", "nobody"], ["standby", "nobody"], ["fork", "nobody", "x"], ["rm", "nobody"],
                     ["stop", "nobody"], ["logs", "nobody"], ["snapshot", "show", "nothing"], ["snapshot", "rm", "nothing"]):
            e = self.refused(*args, code="not-found", says=["no"])
            self.assertTrue(e["hint"], args)

    def test_unknown_verb_and_flag_are_wrong_usage(self):
        for args in (["fly"], ["run", "x", "--wings"], ["snapshot", "burn"], ["run"], ["fork"], ["--json", "fly"]):
            self.assertEqual(self.run_ctl(*args).returncode, 2, args)

    def test_names_that_are_none(self):
        for name in ("", "a/b", "../x", "x" * 64, ".hidden", "sp ace", "new\nline", "--"):
            p = self.run_ctl("run", "--", name) if name.startswith("-") else self.run_ctl("run", name)
            self.assertIn(p.returncode, (1, 2), name)
        self.refused("fork", "good", "x" * 64, code="invalid")
        self.refused("fork", "good", "a/b", code="invalid")

    def test_name_that_is_taken(self):
        self.refused("run", "base", code="exists", says=["base"])
        self.refused("fork", "good", "base", code="exists")
        self.lab.ctl("fork", "good", "n-2")
        self.refused("fork", "good", "n", "--count", "3", code="exists", says=["n-2"])
        self.assertEqual(sorted(v["name"] for v in self.lab.ctl("ps")), ["base", "n-2"])
        self.refused("standby", "n-2", "--tag", "good", code="exists")
        self.assertEqual(self.lab.text("n-2", "sha256sum /run/data"), self.sum)

    def test_numbers_out_of_range(self):
        for mem in ("1M", "2T", "100000001"):
            self.refused("run", "x", "--mem", mem, code="invalid")
        for args in (["run", "x", "--vcpus", "65"], ["run", "x", "--vcpus", "1000000"], ["fork", "good", "x", "--count", "1001"]):
            self.refused(*args, code="invalid")
        # what is no count at all never leaves forkctl
        for args in (["run", "x", "--vcpus", "0"], ["fork", "good", "x", "--count", "0"], ["fork", "good", "x", "--count", "-1"],
                     ["fork", "good", "x", "--count", "99999999999"], ["run", "x", "--mem", "lots"]):
            self.assertEqual(self.run_ctl(*args).returncode, 2, args)
        self.refused("run", "x", "--mem", "900G", code="no-space", says=["needed", "available"])

    def test_what_this_build_has_not(self):
        self.refused("run", "x", "--vmm", "firecracker", code="unsupported")
        self.refused("run", "x", "--net", "nat", code="unsupported")

    def test_wrong_state(self):
        self.refused("standby", "base", code="wrong-state", says=["standby"])
        self.refused("pause", "base", code="wrong-state")
        self.refused("resume", "base", code="wrong-state", says=["restore"])
        self.lab.ctl("fork", "good", "up")
        self.refused("restore", "up", code="wrong-state", says=["fork"])

    def test_forkd_that_is_not_there(self):
        p = subprocess.run([self.lab.argv()[0], "--socket", "/nonexistent/forkd.sock", "--json", "ps"], capture_output=True)
        self.assertEqual(p.returncode, 3)
        self.assertEqual(json.loads(p.stdout)["error"]["code"], "unreachable")

    def test_run_without_assets(self):
        with Lab(setup=False, env={"FORKD_CACHE_DIR": str(self.lab.dir / "empty-cache")}) as other:
            with self.assertRaises(Refused) as caught:
                other.ctl("run", "x")
            self.assertEqual(caught.exception.error["code"], "assets-missing")
            self.assertIn("guest assets missing: run 'forkctl setup' first, or pass --setup", str(caught.exception))
            self.assertEqual(other.ctl("ps"), [])

    def test_disk_that_is_none(self):
        odd = self.lab.dir / "odd"
        odd.write_bytes(b"x" * 1000)
        self.refused("run", "x", "--disk", odd, code="invalid", says=["512"])
        self.refused("run", "x", "--disk", "/nonexistent", code="not-found")
        self.refused("run", "x", "--disk", "/dev/null", code="invalid")

    # ---- the wire: another client than ours, and garbage ----

    def test_another_msgpack_rpc_client_and_garbage(self):
        script = pathlib.Path(__file__).with_name("rpc_interop.py")
        p = subprocess.run(["/usr/bin/python3", script, self.lab.socket], capture_output=True, text=True, timeout=120)
        self.assertEqual(p.returncode, 0, p.stdout + p.stderr)

    # ---- snapshots that are not what they were ----

    def corrupt(self, name, offset, count=64):
        """A copy of the snapshot's file with other bytes in it, in its place; returns the undo."""
        path = pathlib.Path(self.lab.ctl("snapshot", "show", "good")["path"]) / name
        data = path.read_bytes()
        at = offset(len(data))
        with open(path, "r+b") as f:
            f.seek(at)
            f.write(bytes(b ^ 0x5A for b in data[at:at + count]))

        def undo():
            with open(path, "r+b") as f:
                f.write(data)
        return undo

    def test_changed_frames_never_reach_a_guest(self):
        # whole stretches, so that pages that the guest needs at once are among them
        undo = self.corrupt("memory.img", lambda n: n // 8, 3 * MIB)
        try:
            self.assertFalse(self.lab.ctl("snapshot", "verify", "good")["ok"])
            with self.assertRaises((Refused, AssertionError)):
                self.lab.ctl("fork", "good", "bad")
                self.lab.sh("bad", "sha256sum /run/data")
            for vm in self.lab.ctl("ps"):
                if vm["name"] == "bad":
                    self.assertIn(vm["state"], ("failed", "running"))
        finally:
            undo()
        self.assertTrue(self.lab.ctl("snapshot", "verify", "good")["ok"])

    def test_changed_vmstate_and_footer(self):
        for name, offset in (("vmstate", lambda n: n // 2), ("memory.img", lambda n: n - 40)):
            undo = self.corrupt(name, offset, 32)
            try:
                self.lab.ctl("pager", "status")
                self.refused("fork", "good", "bad", says=[])
                self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["base"])
            finally:
                undo()
        self.lab.ctl("fork", "good", "fine")
        self.assertEqual(self.lab.text("fine", "sha256sum /run/data"), self.sum)

    # ---- opposite things at once ----

    def test_two_clients_doing_opposite_things(self):
        self.lab.ctl("fork", "good", "torn")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(self.lab.ctl, verb, "torn") for verb in ("standby", "pause", "standby", "resume")]
            outcomes = []
            for f in futures:
                try:
                    f.result()
                    outcomes.append("done")
                except Refused as e:
                    self.assertIn(e.error["code"], ("busy", "wrong-state"), e)
                    outcomes.append(e.error["code"])
        self.assertIn("done", outcomes)
        if self.state("torn") == "standby":
            self.lab.ctl("restore", "torn")
        elif self.state("torn") == "paused":
            self.lab.ctl("resume", "torn")
        self.assertEqual(self.lab.text("torn", "sha256sum /run/data"), self.sum)


if __name__ == "__main__":
    main()
