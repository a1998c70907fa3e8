# SPDX-License-Identifier: MIT
"""forkd's door from the wrong side: parameters of every wrong kind, descriptors, floods, many clients."""

import os
import pathlib
import socket
import threading
import time

from case import Case, main
from mprpc import Client, Error, open_fds

METHODS = ["version", "info", "vm.run", "vm.list", "vm.inspect", "vm.standby", "vm.restore", "vm.fork", "vm.pause", "vm.resume",
           "vm.stop", "vm.rm", "vm.logs", "vm.ping", "vm.exec", "vm.put", "vm.get", "snapshot.list", "snapshot.show",
           "snapshot.create", "snapshot.rm", "snapshot.verify", "snapshot.memory", "pager.status", "store.attach"]
KEYS = ["name", "names", "all", "source", "snapshot", "snapshots", "mem_bytes", "vcpus", "count", "disks", "argv", "env", "cwd",
        "timeout_s", "rows", "cols", "tty", "stdin", "path", "mode", "size", "offset", "max", "tag", "compression", "level", "sync",
        "force", "paused", "vmm", "accel", "net", "on_pager_loss"]
ODD = [None, True, -1, 0, 2**63, 2**64 - 1, -2**63, 1e308, float("nan"), "", "x" * 70000, "../../etc", "a\0b", b"\xff\xfe", [], {},
       [None] * 100, [[["deep"]]], {"a": {"b": 1}}, ["a\0b"], [""], "%s%n%s%n"]


class Door(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "one", "--mem", "128M")

    def client(self, **kw):
        c = Client(self.lab.socket, **kw)
        self.addCleanup(c.sock.close)
        return c

    def tearDown(self):
        """Whatever came in, the VM is there, runs, and nothing else was made."""
        vms = self.lab.ctl("ps")
        self.assertEqual([(v["name"], v["state"]) for v in vms], [("one", "running")])
        self.assertEqual(self.lab.text("one", "echo here"), "here")

    # ---- parameters ----

    def test_every_method_with_every_wrong_parameter(self):
        c = self.client()
        for method in METHODS:
            for key in KEYS:
                for value in ODD:
                    params = {key: value}
                    if key != "name" and (method.startswith("vm.") or method == "snapshot.create"):
                        params["name"] = "no/body"
                    if method == "vm.rm" and key == "all" and value is True:
                        continue
                    try:
                        c.call(method, params)
                    except Error as e:
                        self.assertNotIn(e.code, ("internal", "io"), (method, params, e))
                        self.assertTrue(e.error["message"])

    def test_wrong_types_of_an_exec_are_refused_and_not_ignored(self):
        c = self.client()
        good = {"name": "one", "argv": ["true"]}
        for key, value in (("timeout_s", "5"), ("timeout_s", -1), ("timeout_s", float("nan")), ("env", [1]), ("env", {"A": 1}),
                           ("env", {"A": "b\0c"}), ("argv", ["a\0b"]), ("argv", []), ("argv", "true"), ("tty", 1), ("cwd", 7)):
            with self.assertRaises(Error, msg=(key, value)) as caught:
                c.call("vm.exec", dict(good, **{key: value}))
            self.assertEqual(caught.exception.code, "invalid", (key, value))
        self.assertEqual(c.call("vm.exec", good)["exit_code"], 0)

    def test_lists_that_are_none_and_names_that_are_cut(self):
        c = self.client()
        for method, params in (("vm.run", {"name": "x", "disks": "/dev/sda"}), ("vm.rm", {"names": "one"}), ("vm.rm", {"names": ["one\0x"]}),
                               ("vm.rm", {"names": ["one", 7]}), ("snapshot.rm", {"snapshots": "all"}),
                               ("vm.inspect", {"name": "one\0"}), ("vm.put", {"name": "one", "path": "/x", "size": 1, "mode": 2**32 + 0o644})):
            with self.assertRaises(Error, msg=(method, params)) as caught:
                c.call(method, params)
            self.assertEqual(caught.exception.code, "invalid", (method, params))

    def test_a_name_given_twice_is_removed_once(self):
        self.lab.ctl("run", "two", "--mem", "128M")
        self.assertEqual(self.client().call("vm.rm", {"names": ["two", "two"]})["removed"], ["two"])

    # ---- descriptors ----

    def test_descriptors_where_none_belong(self):
        before = open_fds(self.lab.forkd.pid)
        for claimed in (0, 1, 16):
            for params in ({}, {"name": "one"}):
                with Client(self.lab.socket) as c:
                    r, w = os.pipe()
                    try:
                        c.call("vm.inspect", dict(params, fds=claimed) if claimed else params, fds=[w] * max(claimed, 3))
                    except (Error, EOFError, ConnectionError):
                        pass
                    os.close(w)
                # forkd kept none: the pipe is at its end as soon as forkd has let go
                self.assertEqual(os.read(r, 1), b"")
                os.close(r)
        self.client().call("version")
        self.assertLessEqual(open_fds(self.lab.forkd.pid), before + 2)

    # ---- many ----

    def test_more_connections_than_there_may_be(self):
        clients = []
        try:
            for _ in range(300):
                c = Client(self.lab.socket)
                clients.append(c)
            served = refused = 0
            for c in clients:
                try:
                    c.call("version")
                    served += 1
                except (EOFError, ConnectionError):
                    refused += 1
        finally:
            for c in clients:
                c.sock.close()
        self.assertLessEqual(served, 256)
        self.assertGreaterEqual(served, 200)
        self.assertEqual(served + refused, 300)
        self.wait_for_service()

    def wait_for_service(self):
        """Closed connections free their places when forkd has seen them closed."""
        for _ in range(1000):
            try:
                with Client(self.lab.socket) as c:
                    c.call("version")
                    return
            except (EOFError, ConnectionError):
                continue
        self.fail("no new client is served")

    def test_requests_by_the_hundred_at_once(self):
        c = self.client()
        ids = [c.send("vm.inspect", {"name": "one"}) for _ in range(800)]
        for i in ids:
            self.assertEqual(c.wait(i)["name"], "one")

    def test_verifications_by_the_hundred_are_a_few_at_once(self):
        self.lab.ctl("snapshot", "create", "one", "--tag", "v")
        most = 0
        with Client(self.lab.socket) as c:
            ids = [c.send("snapshot.verify", {"snapshot": "v"}) for _ in range(60)]
            for i in ids:
                self.assertTrue(c.wait(i)["ok"])
                most = max(most, self.workers())
        self.assertGreater(most, 0)
        self.assertLessEqual(most, 5)
        self.lab.ctl("snapshot", "rm", "v")

    def workers(self):
        n = 0
        for p in os.listdir("/proc"):
            if p.isdigit():
                try:
                    stat = pathlib.Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split()
                    n += int(stat[1]) == self.lab.forkd.pid and stat[0] != "Z"
                except OSError:
                    pass
        return n

    # ---- streams ----

    def rss(self):
        for line in pathlib.Path(f"/proc/{self.lab.forkd.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        return 0

    def test_a_client_that_never_reads(self):
        before = self.rss()
        with Client(self.lab.socket) as mute:
            for _ in range(20):
                mute.send("vm.exec", {"name": "one", "argv": ["cat", "/dev/zero"]})
            # and one that gives credit without end, which it may only for what it was sent
            for i in range(1, 21):
                for _ in range(100):
                    try:
                        mute.notify("stream.credit", {"call": i, "stream": 1, "bytes": 32768})
                    except (TimeoutError, ConnectionError):
                        break
            for _ in range(50):
                self.assertEqual(self.lab.text("one", "echo served"), "served")
            self.assertLess(self.rss(), before + (96 << 20))

    def test_credit_and_data_beyond_what_is_allowed_end_the_call(self):
        c = self.client()
        for note in (("stream.credit", {"stream": 1, "bytes": 2**32 - 1}), ("stream.credit", {"stream": 7, "bytes": 1}),
                     ("stream.data", {"stream": 0, "data": b"x" * 70000}), ("stream.data", {"stream": 0, "data": 5}),
                     ("stream.data", {"stream": 2, "data": b"x"})):
            i = c.send("vm.exec", {"name": "one", "argv": ["sleep", "1000"], "stdin": True})
            c.notify(note[0], dict(note[1], call=i))
            with self.assertRaises(Error, msg=note) as caught:
                c.wait(i)
            self.assertEqual(caught.exception.code, "protocol")
        # more than the window, in pieces that are each fine
        i = c.send("vm.exec", {"name": "one", "argv": ["sleep", "1000"], "stdin": True})
        for _ in range(12):
            c.notify("stream.data", {"call": i, "stream": 0, "data": b"x" * 65536})
        with self.assertRaises(Error):
            c.wait(i)

    def test_notes_about_calls_that_are_not_there(self):
        c = self.client()
        for i in range(200):
            c.notify("stream.data", {"call": i, "stream": 0, "data": b"x"})
            c.notify("stream.signal", {"call": 2**60, "signal": 9})
            c.notify("no.such.note", {})
        self.assertEqual(c.call("version")["protocol"], 1)

    def test_two_calls_with_one_id(self):
        c = self.client()
        c.send("vm.exec", {"name": "one", "argv": ["cat"], "stdin": True})
        c.next_id = 1
        i = c.send("vm.exec", {"name": "one", "argv": ["cat"], "stdin": True})
        c.notify("stream.eof", {"call": i, "stream": 0})
        self.assertEqual(c.wait(i)["exit_code"], 0)

    def test_a_client_that_hangs_up_in_the_middle_of_everything(self):
        def one(method, params):
            c = Client(self.lab.socket)
            c.send(method, params)
            c.sock.shutdown(socket.SHUT_RDWR)
            c.sock.close()
        jobs = [("vm.ping", {"name": "one"}), ("vm.pause", {"name": "one"}), ("vm.resume", {"name": "one"}),
                ("snapshot.create", {"name": "one", "tag": "gone"}), ("vm.exec", {"name": "one", "argv": ["sleep", "3"]})]
        threads = [threading.Thread(target=one, args=j) for j in jobs * 3]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        c = self.client()
        # when these are answered, all that came before has been read, and at most one of them is still under way
        for _ in range(3):
            c.call("version")
        end = time.monotonic() + 60
        vm = c.call("vm.inspect", {"name": "one"})
        while vm["busy"] is not None and time.monotonic() < end:
            vm = c.call("vm.inspect", {"name": "one"})
        if vm["state"] == "paused":
            c.call("vm.resume", {"name": "one"})
        for s in c.call("snapshot.list")["snapshots"]:
            c.call("snapshot.rm", {"snapshots": [s["id"]]})


if __name__ == "__main__":
    main()
