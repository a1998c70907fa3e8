#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""forkd dies before each of its system calls that has a side effect; the next forkd has to account for everything.

strace kills it at the N-th openat, rename, clone, sendmsg … of a scenario (a fork of three, a standby, a removal of three, a
start …). Then forkd is started again, and the world must be one of two: without the call that was not answered, or with
all of it. Every guest answers with what it had in its memory, nothing lies about, no entry of the journal is left.

With --error the call fails with ENOSPC instead, and forkd lives on: what it refused has not happened, what it granted has,
also for a forkd that comes after it.

A first run of each scenario tells which calls there are. `--short` takes some, at random; without it all are taken.
"""

import argparse
import os
import pathlib
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from forkdlab import Lab, bin_dir  # noqa: E402
from mprpc import Client, Error  # noqa: E402

CALLS = ("openat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "clone3",
         "clone", "sendmsg", "pidfd_send_signal", "kill", "write", "pwrite64", "mount", "umount2", "connect", "memfd_create",
         "ftruncate", "setsockopt")
DISK_CALLS = ("openat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "write")
MIB = 1 << 20


class Wrong(Exception):
    """The world is not what it may be."""


class World:
    """What there is: VMs by name with their states, snapshots by tag (those without one counted)."""

    def __init__(self, vms, snaps):
        self.vms, self.snaps = dict(vms), sorted(snaps)

    def __eq__(self, other):
        return (self.vms, self.snaps) == (other.vms, other.snaps)

    def __repr__(self):
        return f"{self.vms} {self.snaps}"

    def but(self, vms=None, gone=(), snaps=(), gone_snaps=()):
        new = {n: s for n, s in self.vms.items() if n not in gone} | (vms or {})
        return World(new, [s for s in self.snaps if s not in gone_snaps] + list(snaps))


def names(base, n):
    return [f"{base}-{i}" for i in range(1, n + 1)]


# name: (calls before, the calls); a call is (method, params, what it makes of the world, and what it may when it is refused)
SCENARIOS = {
    "fork of a snapshot": ([], [
        ("vm.fork", {"source": "base", "name": "k", "count": 3}, lambda w: w.but({n: "running" for n in names("k", 3)}))]),
    "fork of a running VM": ([], [
        ("vm.fork", {"source": "v", "name": "m", "count": 2}, lambda w: w.but({n: "running" for n in names("m", 2)}, snaps=[""]))]),
    "paused fork": ([], [
        ("vm.fork", {"source": "base", "name": "q", "count": 2, "paused": True}, lambda w: w.but({n: "paused" for n in names("q", 2)}))]),
    "standby, restore": ([], [
        ("vm.standby", {"name": "v", "tag": "sv"}, lambda w: w.but({"v": "standby"}, snaps=["sv"])),
        ("vm.restore", {"name": "v"}, lambda w: w.but({"v": "running"}))]),
    "standby of a paused VM": ([], [
        ("vm.standby", {"name": "p", "sync": False}, lambda w: w.but({"p": "standby"}, snaps=[""])),
        ("vm.restore", {"name": "p"}, lambda w: w.but({"p": "running"}))]),
    "snapshot create, rm": ([], [
        ("snapshot.create", {"name": "v", "tag": "live"}, lambda w: w.but(snaps=["live"])),
        ("snapshot.rm", {"snapshots": ["live"]}, lambda w: w.but(gone_snaps=["live"]))]),
    "pause, resume": ([], [
        ("vm.pause", {"name": "v"}, lambda w: w.but({"v": "paused"})),
        ("vm.resume", {"name": "v"}, lambda w: w.but({"v": "running"}))]),
    "rm of three": ([("vm.fork", {"source": "base", "name": "k", "count": 3})], [
        ("vm.rm", {"names": names("k", 3)}, lambda w: w.but(gone=names("k", 3)))]),
    "snapshot rm --force": ([("snapshot.create", {"name": "v", "tag": "one"}), ("vm.standby", {"name": "p", "tag": "two"})], [
        ("snapshot.rm", {"snapshots": ["one", "two"], "force": True},
         lambda w: w.but({"p": "failed"}, gone_snaps=["one", "two"]),
         # refused at the second: the first is gone all the same
         lambda w: w.but(gone_snaps=["one"]))]),
    "stop, rm": ([("vm.fork", {"source": "base", "name": "s"})], [
        ("vm.stop", {"name": "s"}, lambda w: w.but({"s": "stopped"})),
        ("vm.rm", {"names": ["s"]}, lambda w: w.but(gone=["s"]))]),
    "pool create, take, set, rm": ([], [
        ("pool.create", {"name": "pool", "from": "base", "size": 1, "wait": True}, lambda w: w),
        ("pool.take", {"name": "pool", "vm": "t1"}, lambda w: w.but({"t1": "running"})),
        ("pool.set", {"name": "pool", "size": 2, "wait": True}, lambda w: w),
        ("pool.take", {"name": "pool", "vm": "t2"}, lambda w: w.but({"t2": "running"})),
        ("pool.rm", {"name": "pool"}, lambda w: w)]),
    "run": ([], [("vm.run", {"name": "b", "mem_bytes": 128 * MIB}, lambda w: w.but({"b": "running"}))]),
    "start": ([("vm.fork", {"source": "base", "name": "k", "count": 2})], None),
}
SHORT = [s for s in SCENARIOS if s != "run"]


class Tracer:
    """strace on a forkd that runs; gone when forkd is."""

    def __init__(self, pid, *args):
        self.p = subprocess.Popen(["strace", "-p", str(pid), "-y", "-s", "0", "-e", "trace=" + ",".join("?" + c for c in CALLS), *args],
                                  stderr=subprocess.PIPE)
        line = self.p.stderr.readline()
        if b"attached" not in line:
            raise RuntimeError(f"strace: {line.decode()}")

    def stop(self):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
        self.p.stderr.read()
        self.p.stderr.close()
        self.p.wait(timeout=30)


class Points:
    def __init__(self, lab):
        self.lab = lab
        self.vms = {"base": "standby", "v": "running", "p": "paused"}

    # ---- the world ----

    def prepare(self):
        lab = self.lab
        lab.ctl("run", "base", "--mem", "128M")
        lab.sh("base", "head -c 2097152 /dev/urandom > /run/data")
        self.sum = lab.text("base", "sha256sum /run/data").split()[0]
        lab.ctl("standby", "base", "--tag", "base")
        self.reset()

    def observe(self):
        return World({v["name"]: v["state"] for v in self.lab.ctl("ps")}, [s["tag"] or "" for s in self.lab.ctl("snapshot", "ls")])

    def reset(self):
        """Back to: base on standby, v running, p paused, and base's snapshot alone."""
        lab = self.lab
        for p in lab.ctl("pool", "ls"):
            self.served(p["name"])
            lab.ctl("pool", "rm", p["name"])
        world = self.observe()
        gone = [n for n, s in world.vms.items() if n not in self.vms or s == "failed"]
        if gone:
            lab.ctl("rm", *gone)
            world = self.observe()
        for name in ("v", "p"):
            state = world.vms.get(name)
            if state is None:
                lab.ctl("fork", "base", name)
            elif state == "standby":
                lab.ctl("restore", name)
            elif state == "paused":
                lab.ctl("resume", name)
            if state != "running":
                self.remembers(name)
        lab.ctl("pause", "p")
        others = [s["id"] for s in lab.ctl("snapshot", "ls") if s["tag"] != "base"]
        if others:
            lab.ctl("snapshot", "rm", *others)

    def served(self, pool):
        """What a pool that is still there hands out is sound, whatever happened to it."""
        name = self.lab.ctl("pool", "take", pool)["name"]
        self.remembers(name)
        if self.lab.text(name, "hostname") != name:
            raise Wrong(f"{name} was taken, and does not know its name")

    def remembers(self, name):
        got = self.lab.text(name, "sha256sum /run/data").split()[0]
        if got != self.sum:
            raise Wrong(f"{name} remembers something else: {got}")

    def check(self, worlds):
        """The present is one of @worlds, and sound."""
        found = self.observe()
        if found not in worlds:
            raise Wrong(f"found {found}, but expected one of {worlds}")
        doc = self.lab.ctl("doctor", "--orphans")
        if doc["orphans"]:
            raise Wrong(f"orphans: {doc['orphans']}")
        for left in ("journal", "store/tmp"):
            there = list((self.lab.state / left).iterdir())
            if there:
                raise Wrong(f"left: {there}")
        for name, state in found.vms.items():
            if state == "running" and name != "b":
                self.remembers(name)
        pools = {p["name"] for p in self.lab.ctl("pool", "ls")}
        for v in self.lab.ctl("ps", "--all"):
            if v["pool"] and (v["pool"] not in pools or v["state"] not in ("paused", "creating", "stopping")):
                raise Wrong(f"a member that nobody keeps: {v}")
        return found

    # ---- forkd ----

    def died(self, timeout):
        fd = os.pidfd_open(self.lab.forkd.pid)
        try:
            return bool(select.select([fd], [], [], timeout)[0])
        finally:
            os.close(fd)

    def crash(self):
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        self.lab.forkd = None

    def run(self, scenario, *strace):
        """The calls, under strace: the worlds that may be then, and whether forkd died."""
        before, calls = SCENARIOS[scenario]
        world = self.observe()
        possible = [world]
        tracer = Tracer(self.lab.forkd.pid, *strace)
        try:
            with Client(self.lab.socket, timeout=120) as c:
                for method, params, effect, *partly in calls:
                    possible = [world, effect(world)]
                    try:
                        c.call(method, params)
                    except Error:
                        possible = [world, *(e(world) for e in partly)]
                        return possible, False
                    world = effect(world)
                    possible = [world]
            return possible, False
        except (EOFError, ConnectionError, BrokenPipeError):
            if not self.died(30):
                raise Wrong("the connection was closed, but forkd lives")
            return possible, True
        finally:
            tracer.stop()

    def prepare_scenario(self, scenario):
        with Client(self.lab.socket, timeout=120) as c:
            for method, params in SCENARIOS[scenario][0]:
                c.call(method, params)

    def start_under(self, *strace):
        """A start, under strace: did it die?"""
        world = self.observe()
        self.crash()
        args = ["strace", "-y", "-s", "0", "-e", "trace=" + ",".join("?" + c for c in CALLS), *strace, str(bin_dir() / "forkd"),
                "--state-dir", self.lab.state, "--run-dir", self.lab.run_dir, "--config", self.lab.conf]
        with open(self.lab.log_path, "ab") as log:
            p = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.lab.env)
        died = False
        while not died:
            died = p.poll() is not None
            try:
                with Client(self.lab.socket, timeout=60) as c:
                    os.kill(c.call("info")["pid"], signal.SIGKILL)
                break
            except (OSError, EOFError):
                time.sleep(0.01)  # nothing tells of a socket that is not there yet
        p.wait(timeout=60)
        return [world], died

    # ---- points ----

    def find(self, scenario, error):
        """[(call, n)]: the calls of the scenario that change something."""
        log = self.lab.dir / "strace.log"
        self.prepare_scenario(scenario)
        if SCENARIOS[scenario][1] is None:
            worlds, _ = self.start_under("-o", str(log))
            self.lab.start()
        else:
            worlds, died = self.run(scenario, "-o", str(log))
            if died:
                raise Wrong("forkd died of being looked at")
        self.check(worlds)
        self.reset()
        count, points = {}, []
        for line in log.read_text(errors="replace").splitlines():
            m = re.match(r"(\w+)\((.*)", line)
            if not m or m[1] not in CALLS:
                continue
            call, rest = m.groups()
            count[call] = count.get(call, 0) + 1
            if (call == "openat" and "O_CREAT" not in rest) or rest.startswith("2<") or "EAGAIN" in rest:
                continue
            if error and (call not in DISK_CALLS or f"{self.lab.state}/" not in rest or ".log" in rest):
                continue
            points.append((call, count[call]))
        return points

    def point(self, scenario, call, n, error):
        """True if forkd came so far."""
        self.prepare_scenario(scenario)
        fault = f"inject={call}:" + ("error=ENOSPC" if error else "signal=SIGKILL") + f":when={n}"
        if SCENARIOS[scenario][1] is None:
            worlds, reached = self.start_under("-o", "/dev/null", "-e", fault)
        else:
            worlds, reached = self.run(scenario, "-o", "/dev/null", "-e", fault)
            if reached:
                self.lab.forkd.wait()
                self.lab.forkd = None
        if error and reached:
            raise Wrong("forkd died of a full disk")
        if error:
            found = self.observe()
            if found not in worlds:
                raise Wrong(f"found {found}, but expected one of {worlds}")
            # what it could not write down must not come back with the next one
            self.crash()
        if self.lab.forkd is None or self.lab.forkd.poll() is not None:
            self.lab.start()
        self.check(worlds)
        self.reset()
        return reached or error


def why_not():
    if os.geteuid() != 0:
        return "not root"
    if not shutil.which("strace"):
        return "no strace"
    if not shutil.which("qemu-system-x86_64"):
        return "no qemu-system-x86_64"
    if not os.path.exists("/dev/userfaultfd"):
        return "no /dev/userfaultfd"
    return None


def choose(found, budget, rng):
    """Spread over the scenarios, and in each over its calls."""
    chosen, scenarios = [], list(found)
    while len(chosen) < budget and any(found.values()):
        s = scenarios[len(chosen) % len(scenarios)]
        if found[s]:
            p = rng.choice(found[s])
            found[s].remove(p)
            chosen.append((s, *p))
        else:
            scenarios.remove(s)
    return chosen


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--short", action="store_true", help="for `make test`: 20 points, of some scenarios")
    p.add_argument("--points", type=int, default=0, metavar="N", help="so many, at random, instead of all")
    p.add_argument("--scenario", action="append", choices=list(SCENARIOS))
    p.add_argument("--at", metavar="CALL:N", help="only this point of the one scenario")
    p.add_argument("--error", action="store_true", help="the call fails with ENOSPC, and forkd lives on")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    reason = why_not()
    if reason and os.environ.get("FORKD_TEST_NO_SKIP") != "1":
        print(f"SKIPPED: {reason}")
        return 0
    seed = a.seed or random.SystemRandom().randrange(1, 1 << 32)
    rng = random.Random(seed)
    print(f"seed {seed}", flush=True)
    scenarios = a.scenario or (rng.sample(SHORT, 4) if a.short else list(SCENARIOS))
    if a.error:
        scenarios = [s for s in scenarios if SCENARIOS[s][1] is not None]
    wrong, reached, begun = 0, 0, time.monotonic()
    with Lab(store="1G") as lab:
        k = Points(lab)
        k.prepare()
        if a.at:
            points = [(scenarios[0], a.at.split(":")[0], int(a.at.split(":")[1]))]
        else:
            found = {s: k.find(s, a.error) for s in scenarios}
            for s, f in found.items():
                print(f"{s}: {len(f)} points", flush=True)
            budget = a.points or (20 if a.short else 1 << 30)
            points = choose(found, budget, rng)
        for i, (s, call, n) in enumerate(points):
            if i and i % 50 == 0:
                print(f"{i} of {len(points)} points, {wrong} wrong", flush=True)
            try:
                reached += k.point(s, call, n, a.error)
            except (Wrong, AssertionError, RuntimeError) as e:
                wrong += 1
                print(f"WRONG: {s}, {call}:{n}: {e}", flush=True)
                if a.short or a.at:
                    raise
                # begin anew: the world is not to be trusted
                if lab.forkd is None or lab.forkd.poll() is not None:
                    lab.start()
                k.reset()
        lab.end()
        left = lab.leftovers()
    print(f"{len(points)} points, {reached} reached, {wrong} wrong, {time.monotonic() - begun:.0f} s")
    if left:
        print(f"left: {left}")
    # calls differ a little from run to run, but most must be met
    return 1 if wrong or left or reached * 2 < len(points) else 0


if __name__ == "__main__":
    sys.exit(main())
