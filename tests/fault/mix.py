# SPDX-License-Identifier: MIT
"""Clients that do random things with a few VMs and write down what they asked, when, and what they were told."""

import random
import threading
import time

from history import ORIGIN, UNANSWERED, Call
from mprpc import Client, Error

TAG = "origin"
NAMES = [f"vm{i}" for i in range(10)]
DEADLINE = 60  # for every call: who waits longer has found a deadlock
WEIGHTS = {"fork": 8, "fork_vm": 6, "fork_two": 3, "fork_paused": 3, "standby": 12, "restore": 16, "pause": 7, "resume": 10, "stop": 4,
           "rm": 6, "set": 18, "get": 24, "inspect": 10, "snapshot": 4, "list": 2, "verify": 1}


class Stuck(Exception):
    """A call had no answer within the deadline."""


def make_origin(lab, mem="96M"):
    """The template: its memory says ORIGIN. On standby; all others come from it."""
    lab.ctl("run", "template", "--mem", mem)
    lab.sh("template", f"echo {ORIGIN} > /run/token")
    lab.ctl("standby", "template", "--tag", TAG)


class Worker(threading.Thread):
    """One client. Ends after @n_ops, or when @stop is set."""

    def __init__(self, lab, seed, number, n_ops, stop=None, comes_back=None, names=NAMES):
        super().__init__(name=f"client {number}")
        self.lab, self.number, self.n_ops, self.names = lab, number, n_ops, names
        self.rng = random.Random(f"{seed} client {number}")
        # Told when the connection is gone; waits for the next forkd, and returns the moment from which on that was ready.
        self.stop, self.comes_back = stop or threading.Event(), comes_back
        self.calls, self.open_calls, self.problems, self.done = [], [], [], 0
        self.slowest = 0.0
        self.client = None

    def run(self):
        try:
            while self.done < self.n_ops and not self.stop.is_set():
                self.one()
                self.done += 1
        except Exception as e:  # whatever it is, the campaign must hear of it  # noqa: BLE001
            self.problems.append(f"{self.name}: {type(e).__name__}: {e}")
        finally:
            if self.client:
                self.client.sock.close()

    # ---- one request ----

    def request(self, method, params):
        """(error code or "ok", result, why). EOFError: forkd went away."""
        begin = time.monotonic()
        try:
            if not self.client:
                self.client = Client(self.lab.socket, DEADLINE)
            return "ok", self.client.call(method, params), ""
        except Error as e:
            return e.code, None, str(e)
        except TimeoutError as e:
            raise Stuck(f"{method} {params} was not answered within {DEADLINE} s") from e
        finally:
            self.slowest = max(self.slowest, time.monotonic() - begin)

    def perform(self, calls, method, params, seen=None):
        """Asks, and writes down the answer in each of @calls, which are what it means for each name."""
        self.open_calls = calls
        self.calls += calls
        try:
            result, doc, why = self.request(method, params)
        except (EOFError, OSError):
            if self.comes_back is None:
                raise
            self.client = None
            ready = self.comes_back(self)  # returns when the next forkd is ready, since then
            for c in calls:
                c.answered(ready, UNANSWERED)
            self.open_calls = []
            return None
        now = time.monotonic()
        for c in calls:
            c.answered(now, result, seen(doc) if seen and doc is not None else None, why)
        self.open_calls = []
        return doc

    def call(self, kind, name, arg=None):
        return Call(kind, name, time.monotonic(), arg)

    # ---- what there is to do ----

    def one(self):
        what = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        getattr(self, "do_" + what)(self.rng.choice(self.names))

    def simple(self, kind, name):
        self.perform([self.call(kind, name)], f"vm.{kind}", {"name": name})

    def do_standby(self, name):
        self.simple("standby", name)

    def do_restore(self, name):
        self.simple("restore", name)

    def do_pause(self, name):
        self.simple("pause", name)

    def do_resume(self, name):
        self.simple("resume", name)

    def do_stop(self, name):
        self.simple("stop", name)

    def do_rm(self, name):
        self.perform([self.call("rm", name)], "vm.rm", {"names": [name]})

    def do_inspect(self, name):
        self.perform([self.call("inspect", name)], "vm.inspect", {"name": name}, lambda d: d["state"])

    def do_fork(self, name, paused=False):
        self.perform([self.call("create", name, {"from": None, "paused": paused})], "vm.fork",
                     {"source": TAG, "name": name, "paused": paused})

    def do_fork_paused(self, name):
        self.do_fork(name, True)

    def do_fork_two(self, name):
        """All or none, under names that are this client's alone."""
        name = f"{name}x{self.number}"
        calls = [self.call("create", f"{name}-{i}", {"from": None, "paused": False}) for i in (1, 2)]
        self.perform(calls, "vm.fork", {"source": TAG, "name": name, "count": 2})
        results = {c.result for c in calls}
        if results == {"exists"}:  # one of them was there, nobody is told which: as if it had not been asked
            for c in calls:
                c.result = "source-failed"
        for i in (1, 2):
            self.perform([self.call("rm", f"{name}-{i}")], "vm.rm", {"names": [f"{name}-{i}"]})

    def do_fork_vm(self, name):
        source = self.rng.choice([n for n in self.names if n != name])
        create, origin = self.call("create", name, {"from": source, "paused": False}), self.call("source", source)
        self.perform([create, origin], "vm.fork", {"source": source, "name": name})
        if create.result in ("ok", UNANSWERED):
            return
        if create.result == "exists":
            origin.result = "source-failed"  # nobody asked it
        else:
            create.result = "source-failed"  # the name was free

    def command(self, kind, name, script, arg=None, seen=None):
        c = self.call(kind, name, arg)
        if self.client:
            self.client.notes.clear()  # of one that was cut after it had said something
        doc = self.perform([c], "vm.exec", {"name": name, "argv": ["/bin/sh", "-c", script], "timeout_s": 15.0})
        if doc is None:
            return
        out = b"".join(n[1]["data"] for n in self.client.notes if n[0] == "stream.data")
        if doc.get("exit_code") != 0:  # its guest was ended meanwhile
            c.result, c.why = "cut", str(doc)
        elif seen:
            c.seen = seen(out)

    def do_set(self, name):
        token = f"{self.number}.{len(self.calls)}"
        self.command("set", name, f"echo {token} > /run/.{token} && mv /run/.{token} /run/token", token)

    def do_get(self, name):
        self.command("get", name, "cat /run/token", seen=lambda out: out.decode(errors="replace").strip())

    def do_snapshot(self, name):
        doc = self.perform([self.call("snapshot", name)], "snapshot.create", {"name": name, "sync": False})
        if doc:
            self.perform([], "snapshot.rm", {"snapshots": [doc["snapshot"]]})

    def do_list(self, name):
        self.perform([], "vm.list", {})
        self.perform([], "snapshot.list", {})

    def do_verify(self, name):
        self.perform([], "snapshot.verify", {"snapshot": TAG})


def look(lab, history, names, wake=False):
    """Everybody else is idle: every VM is asked for its state, and its memory read if it runs; if @wake the others are
    brought back first. All that goes into the history, too. Returns what could not be done with a VM that lives."""
    w = Worker(lab, 0, "look", 0)
    for name in names:
        w.do_inspect(name)
        state = w.calls[-1].seen
        if wake and state == "paused":
            w.do_resume(name)
        elif wake and state in ("standby", "stopped"):
            w.do_restore(name)
        if state == "running" or wake and state is not None:
            w.do_get(name)
    if w.client:
        w.client.sock.close()
    history += w.calls
    return [str(c) for c in w.calls if c.kind == "get" and c.result != "ok"]


def all_names(lab):
    """Those that are there by now, and those that might be."""
    return sorted({v["name"] for v in lab.ctl("ps")} - {"template"} | set(NAMES))
