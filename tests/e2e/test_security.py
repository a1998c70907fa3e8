# SPDX-License-Identifier: MIT
"""The control socket and who is not root: the group may use VMs, with its members' own rights; nobody else may anything;
and no client, however it behaves, keeps others waiting (docs/security.md)."""

import contextlib
import grp
import json
import os
import pathlib
import re
import shutil
import select
import subprocess
import time

from case import Case, MIB, main
from forkdlab import ROOT, bin_dir
from mprpc import Client, Error, pack

# Any group that this host has will do: membership is what a process has been given.
GROUP = next(g for g in grp.getgrall() if g.gr_gid > 0)
MEMBER, STRANGER = 54321, 54322
IDLE_S = 3
RATE = 50


@contextlib.contextmanager
def acting(uid, groups):
    """This process as another user, for as long as it takes to connect: the kernel notes who did."""
    old = os.getgroups()
    os.setgroups(groups)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(old)


class Security(Case):
    lab_options = {"config": f"[forkd]\ngroup = {GROUP.gr_name}\nrequests_per_second = {RATE}\nidle_client_seconds = {IDLE_S}\n"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.dir.chmod(0o711)
        cls.tool = cls.lab.dir / "forkctl"  # a build tree may be in a place that only root can reach
        shutil.copy(bin_dir() / "forkctl", cls.tool)
        cls.tool.chmod(0o755)
        cls.home = cls.lab.dir / "home"
        cls.home.mkdir()
        os.chown(cls.home, MEMBER, MEMBER)
        cls.lab.ctl("run", "one", "--mem", "128M")

    def ctl_as(self, uid, *args, groups=(GROUP.gr_gid,)):
        p = subprocess.run([self.tool, "--socket", self.lab.socket, "--json", *map(str, args)], stdin=subprocess.DEVNULL,
                           capture_output=True, timeout=120, user=uid, group=uid, extra_groups=list(groups), cwd="/")
        return p.returncode, json.loads(p.stdout) if p.stdout.strip() else None

    def connect(self, uid, groups=(GROUP.gr_gid,)):
        with acting(uid, list(groups)):
            c = Client(self.lab.socket)
        self.addCleanup(c.sock.close)
        return c

    def file(self, name, data, uid=MEMBER, mode=0o600):
        path = self.home / name
        path.write_bytes(data)
        os.chown(path, uid, uid)
        path.chmod(mode)
        return path

    def why_closed(self, c):
        """The last words to a client that is hung up on."""
        while True:
            try:
                m = c.receive()
            except ConnectionError:
                m = None
            if m is None:
                self.fail("hung up without a word")
            if m[0] == 2 and m[1] == "error":
                return m[2]

    # ---- who may what ----

    def test_a_member_uses_vms(self):
        code, doc = self.ctl_as(MEMBER, "run", "mine", "--mem", "96M")
        self.assertEqual((code, doc["state"]), (0, "running"), doc)
        p = subprocess.run([self.tool, "--socket", self.lab.socket, "exec", "mine", "--", "hostname"], user=MEMBER, group=MEMBER,
                           extra_groups=[GROUP.gr_gid], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, cwd="/")
        self.assertEqual(p.stdout, b"mine\n", p.stderr)
        for args in (["standby", "mine", "--tag", "m"], ["fork", "m", "mine-2"], ["snapshot", "verify", "m"], ["pager", "status"],
                     ["rm", "mine", "mine-2"], ["snapshot", "rm", "m"]):
            self.assertEqual(self.ctl_as(MEMBER, *args)[0], 0, args)
        # the group may be the primary one as well
        self.assertEqual(self.connect_with_gid().call("version")["protocol"], 1)

    def connect_with_gid(self):
        old = os.getgroups()
        os.setgroups([])
        os.setegid(GROUP.gr_gid)
        os.seteuid(MEMBER)
        try:
            c = Client(self.lab.socket)
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(old)
        self.addCleanup(c.sock.close)
        return c

    def test_the_table_of_methods_is_what_forkd_does(self):
        """docs/security.md says who may ask for what; each row is tried. No parameters: whoever may ask is told that."""
        text = (ROOT / "docs" / "security.md").read_text()
        rows = re.findall(r"^\| (`[^|]*`) \| (root|group) \|", text, re.M)
        said = {m: who for cell, who in rows for m in re.findall(r"`([a-z._]+)`", cell)}
        table = re.findall(r'\{ "([a-z._]+)", api_\w+(, API_MEMBER)?', (ROOT / "forkd" / "api" / "api.c").read_text())
        self.assertEqual(said, {m: "group" if member else "root" for m, member in table})
        c = self.connect(MEMBER)
        for method, who in said.items():
            try:
                c.call(method, {"all": "wrong type"})
                code = None
            except Error as e:
                code = e.code
            self.assertEqual(code == "forbidden", who == "root", (method, code))

    def test_what_is_roots_stays_roots(self):
        for args in (["shutdown"], ["shutdown", "--all"]):
            code, doc = self.ctl_as(MEMBER, *args)
            self.assertEqual((code, doc["error"]["code"]), (1, "forbidden"))
            self.assertIn("root", doc["error"]["hint"])
        self.assertIsNone(self.lab.forkd.poll())
        self.assertEqual(self.state("one"), "running")

    def test_a_stranger_is_told_and_gets_nothing(self):
        code, doc = self.ctl_as(STRANGER, "ps", groups=())
        self.assertEqual((code, doc["error"]["code"]), (3, "unreachable"))
        self.assertIn("group", doc["error"]["hint"])
        # somebody loosens the socket: the second lock is forkd's own
        self.lab.run_dir.chmod(0o711)
        self.lab.socket.chmod(0o666)
        try:
            code, doc = self.ctl_as(STRANGER, "ps", groups=())
            self.assertEqual((code, doc["error"]["code"]), (1, "forbidden"), doc)
            self.assertIn("group", doc["error"]["hint"])
            c = self.connect(STRANGER, ())
            self.assertEqual(self.why_closed(c)["code"], "forbidden")
            # and a member of other groups
            self.assertEqual(self.why_closed(self.connect(STRANGER, [GROUP.gr_gid + 1000]))["code"], "forbidden")
        finally:
            self.lab.socket.chmod(0o660)
            self.lab.run_dir.chmod(0o710)

    def test_modes(self):
        st, sock = os.stat(self.lab.run_dir), os.stat(self.lab.socket)
        self.assertEqual((st.st_uid, st.st_gid, st.st_mode & 0o777), (0, GROUP.gr_gid, 0o710))
        self.assertEqual((sock.st_uid, sock.st_gid, sock.st_mode & 0o777), (0, GROUP.gr_gid, 0o660))
        store = self.lab.state / "store"
        for path in (self.lab.run_dir / "vms", self.lab.state / "vms", self.lab.state / "store.img", *store.iterdir()):
            self.assertEqual(os.stat(path).st_mode & 0o007, 0, path)

    def test_nobody_forges_the_log(self):
        c = self.connect(MEMBER)
        for word in ("a\n2026-01-01T00:00:00.000Z forkd error: forged\n", "b\x1b[2Jforged", "c\r\nforged"):
            with self.assertRaises(Error):
                c.call("vm.inspect", {"name": word})
        lines = self.lab.log_path.read_bytes().split(b"\n")
        told = [x for x in lines if b"forged" in x]
        self.assertEqual(len(told), 3)
        for x in told:
            self.assertRegex(x, rb"^[0-9TZ.:-]+ forkd info: vm.inspect: ")
            self.assertNotRegex(x, rb"[\x00-\x1f\x7f]")

    def test_nothing_listens_on_a_network(self):
        """Every socket of forkd, its pager, workers and VMMs is a unix socket (looked for in each one's own network); forkd
        alone has one more, for its metrics, on the loopback interface."""
        host, port = self.lab.metrics_address().split(":")
        self.assertEqual(host, "127.0.0.1")
        door = f"0100007F:{int(port):04X}"
        seen = 0
        for pid in self.lab.processes():
            proc = pathlib.Path(f"/proc/{pid}")
            mine = set()
            for fd in (proc / "fd").iterdir():
                with contextlib.suppress(OSError):
                    mine |= set(re.findall(r"^socket:\[(\d+)\]$", os.readlink(fd)))
            seen += len(mine)
            for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet", "netlink"):
                with contextlib.suppress(FileNotFoundError):
                    rows = (proc / "net" / kind).read_text().splitlines()[1:]
                    rows = [r for r in rows if mine & set(r.split())]
                    if pid == self.lab.forkd.pid and kind == "tcp":
                        self.assertEqual([r.split()[1] for r in rows], [door])
                    else:
                        self.assertEqual(rows, [], (pid, kind))
        self.assertGreater(seen, 3)

    # ---- with whose rights ----

    def test_disks_are_read_with_the_members_rights(self):
        secret = self.file("secret", b"root's own secret".ljust(4096), uid=0)
        readable = self.file("theirs", b"for all to read".ljust(4096), uid=0, mode=0o644)
        mine = self.file("mine", b"the member's".ljust(4096))
        (self.home / "link").symlink_to(secret)
        (self.home / "good-link").symlink_to(mine)
        for path in (secret, self.home / "link"):
            code, doc = self.ctl_as(MEMBER, "run", "d", "--mem", "96M", "--disk", path)
            self.assertEqual((code, doc["error"]["code"]), (1, "forbidden"), (path, doc))
            self.assertIn("rights", doc["error"]["hint"])
        for path in ("/proc/self/fd/3", "/proc/self/exe", "/proc/1/root/etc/passwd", "/dev/null", "/proc/kcore", "/etc/shadow",
                     self.lab.state / "lock", f"/proc/{self.lab.forkd.pid}/environ"):
            code, doc = self.ctl_as(MEMBER, "run", "d", "--mem", "96M", "--disk", path)
            self.assertEqual(code, 1, (path, doc))
            self.assertIn(doc["error"]["code"], ("forbidden", "invalid", "not-found"), (path, doc))
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["one"])
        code, doc = self.ctl_as(MEMBER, "run", "d", "--mem", "96M", "--disk", mine, "--disk", readable, "--disk", self.home / "good-link")
        self.assertEqual(code, 0, doc)
        try:
            for dev, start in (("vda", "the member's"), ("vdb", "for all to read"), ("vdc", "the member's")):
                self.assertEqual(self.lab.text("d", f"head -c {len(start)} /dev/{dev}"), start)
        finally:
            self.lab.ctl("rm", "d")
        # root may do what root may do
        self.lab.ctl("run", "d", "--mem", "96M", "--disk", secret)
        self.lab.ctl("rm", "d")

    def test_memory_is_written_with_the_members_rights(self):
        self.lab.ctl("snapshot", "create", "one", "--tag", "mem")
        self.addCleanup(self.lab.ctl, "snapshot", "rm", "mem")
        code, doc = self.ctl_as(MEMBER, "snapshot", "memory", "mem", "-o", self.home / "ram")
        self.assertEqual(code, 0, doc)
        self.assertEqual((self.home / "ram").stat().st_size, 128 * MIB)
        c = self.connect(MEMBER)
        r, w = os.pipe()
        read_only = os.open(self.file("ro", b""), os.O_RDONLY)
        try:
            for fd in (w, read_only):
                with self.assertRaises(Error):
                    c.call("snapshot.memory", {"snapshot": "mem", "fds": 1}, fds=[fd])
        finally:
            for fd in (r, w, read_only):
                os.close(fd)

    # ---- how much ----

    def test_a_user_has_so_many_connections_and_root_has_some_in_reserve(self):
        mine = [self.connect(MEMBER) for _ in range(64)]
        try:
            e = self.why_closed(self.connect(MEMBER))
            self.assertEqual(e["code"], "limit")
            self.assertIn("64 connections", e["message"])
            others = [self.connect(MEMBER + i // 60) for i in range(60, 188)]
            e = self.why_closed(self.connect(MEMBER + 9))
            self.assertEqual(e["code"], "limit")
            self.assertEqual(mine[0].call("version")["protocol"], 1)
            with Client(self.lab.socket) as root:
                self.assertEqual(root.call("version")["protocol"], 1)
            for c in others:
                c.sock.close()
        finally:
            for c in mine:
                c.sock.close()

    def test_half_a_message_is_not_waited_for(self):
        message = pack([0, 1, "version", {"x": b"\0" * 1000}])
        with Client(self.lab.socket) as busy, Client(self.lab.socket) as quiet:
            # a call under way, and a client that has spoken and thinks: both may stay
            call = busy.send("vm.exec", {"name": "one", "argv": ["sleep", str(2 * IDLE_S)]})
            busy.send_raw(message[:5])
            quiet.call("version")
            start = time.monotonic()
            silent = self.connect(MEMBER + 100)
            slow = [self.connect(MEMBER + 101) for _ in range(20)]
            open_ = {c.sock: c for c in slow}
            # a byte now and then is not a message
            for n in range(len(message) - 1):
                for c in list(open_.values()):
                    with contextlib.suppress(ConnectionError):
                        c.send_raw(message[n:n + 1])
                t = time.monotonic()
                self.assertEqual(quiet.call("version")["protocol"], 1)
                self.assertLess(time.monotonic() - t, 2)
                for s in select.select(list(open_), [], [], 0.2)[0]:
                    self.assertEqual(self.why_closed(open_.pop(s))["code"], "timeout")
                if not open_ or time.monotonic() - start > 60:
                    break
            self.assertFalse(open_)
            self.assertGreater(time.monotonic() - start, IDLE_S - 1)
            self.assertEqual(self.why_closed(silent)["code"], "timeout")
            self.assertEqual(busy.wait(call)["exit_code"], 0)
            self.assertEqual(quiet.call("version")["protocol"], 1)

    def test_who_asks_too_much_is_refused_then_hung_up_on_and_others_are_served(self):
        flooder = self.connect(MEMBER + 200)
        codes, last = {}, None
        with contextlib.suppress(ConnectionError, EOFError):
            for _ in range(40):
                for _ in range(50):
                    flooder.send("vm.list")
                for _ in range(50):
                    m = flooder.receive()
                    if m is None or m[0] == 2:
                        last = m
                        raise EOFError
                    code = m[2] and m[2]["code"]
                    codes[code] = codes.get(code, 0) + 1
                    if code:
                        self.assertIn("wait", m[2]["hint"])
        self.assertEqual(set(codes), {None, "limit"})
        self.assertGreaterEqual(codes[None], 10 * RATE - 1)
        self.assertLess(codes[None], 25 * RATE)
        self.assertTrue(last is None or last[2]["code"] == "limit")
        self.assertEqual(self.why_closed(self.connect(MEMBER + 200))["code"], "limit")
        code, doc = self.ctl_as(MEMBER + 200, "ps")
        self.assertEqual((code, doc["error"]["code"]), (1, "limit"))
        self.assertEqual(self.ctl_as(MEMBER, "ps")[0], 0)

    def test_large_requests_that_wait_do_not_fill_the_memory(self):
        """Two verifications run at a time; whoever queues up behind them with megabytes of parameters is refused."""
        self.lab.ctl("snapshot", "create", "one", "--tag", "waits")
        self.addCleanup(self.lab.ctl, "snapshot", "rm", "waits")
        c = self.connect(MEMBER + 500)
        raw = b"".join(pack([0, i, "snapshot.verify", {"snapshot": "waits", "x": b"\0" * MIB}]) for i in range(20))
        c.send_raw(raw)
        got = [c.receive() for _ in range(20)]
        codes = [m[2] and m[2]["code"] for m in got]
        self.assertGreaterEqual(codes.count(None), 7)
        self.assertGreaterEqual(codes.count("limit"), 1)
        self.assertEqual(set(codes), {None, "limit"})
        self.assertEqual(c.call("version")["protocol"], 1)

    FLOOD = """
import sys
sys.path.insert(0, sys.argv[1])
from mprpc import Client, pack
flood = b"".join(pack([0, i, "vm.list", {}]) for i in range(200)) + pack([2, "stream.data", {"call": 1, "stream": 0, "data": b"x"}]) * 2000
print("ready", flush=True)
while True:
    try:
        with Client(sys.argv[2], timeout=1) as c:
            while True:
                c.send_raw(flood)
    except OSError:
        pass
"""

    def test_a_flood_by_some_does_not_keep_others_waiting(self):
        lib = self.lab.dir / "lib"
        shutil.copytree(ROOT / "tests" / "lib", lib)
        lib.chmod(0o755)
        floods = []
        try:
            for i in range(3):
                p = subprocess.Popen(["/usr/bin/python3", "-c", self.FLOOD, lib, self.lab.socket], user=MEMBER + 300 + i,
                                     group=MEMBER + 300 + i, extra_groups=[GROUP.gr_gid], stdout=subprocess.PIPE, cwd="/")
                floods.append(p)
                self.assertEqual(p.stdout.readline(), b"ready\n")
            took = []
            with Client(self.lab.socket) as c:
                for _ in range(200):
                    t = time.monotonic()
                    c.call("vm.inspect", {"name": "one"})
                    took.append(time.monotonic() - t)
            t = time.monotonic()
            self.assertEqual(self.lab.text("one", "echo here"), "here")
            exec_s = time.monotonic() - t
            took.sort()
            print(f"beside three floods: inspect p50 {took[100] * 1e3:.1f} ms, max {took[-1] * 1e3:.1f} ms, exec {exec_s * 1e3:.0f} ms")
            self.assertLess(took[100], 0.25)
            self.assertLess(took[-1], 5)
            rss = int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.lab.forkd.pid}/status").read_text())[1]) << 10
            self.assertLess(rss, 512 * MIB)
        finally:
            for p in floods:
                p.kill()
                p.wait()
                p.stdout.close()

    def test_answers_that_nobody_reads_are_not_kept_for_ever(self):
        """One user's connections together hold at most 64 MiB for longer than a moment."""
        clients = [self.connect(MEMBER + 400) for _ in range(30)]
        half = pack([0, 1, "version", {"x": b"\0" * (4 * MIB - 100)}])[:-1]
        gone = 0
        for c in clients:
            c.sock.settimeout(5)
            with contextlib.suppress(ConnectionError, TimeoutError):
                c.send_raw(half)
        for c in clients:
            with contextlib.suppress(ConnectionError, TimeoutError):
                m = c.receive()
                if m is not None and m[2]["code"] == "limit":
                    gone += 1
        self.assertGreater(gone, 10)
        self.assertEqual(self.ctl_as(MEMBER, "ps")[0], 0)

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


class RootOnly(Case):
    """Without a group the socket is root's alone."""

    def test_modes_and_the_second_lock(self):
        sock = os.stat(self.lab.socket)
        self.assertEqual((sock.st_uid, sock.st_mode & 0o777), (0, 0o600))
        for path in (self.lab.dir, self.lab.run_dir):
            path.chmod(0o711)
        self.lab.socket.chmod(0o666)
        with acting(MEMBER, [GROUP.gr_gid, 0]):
            c = Client(self.lab.socket)
        self.addCleanup(c.sock.close)
        m = c.receive()
        self.assertEqual((m[1], m[2]["code"]), ("error", "forbidden"))
        self.assertIn("only root", m[2]["hint"])
        self.assertEqual(self.lab.ctl("ps"), [])


if __name__ == "__main__":
    main()
