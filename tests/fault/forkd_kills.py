# SPDX-License-Identifier: MIT
"""forkd is killed at random moments while four clients do random things, and started again, and again.

After each start all clients stand still and the world is looked at: every VM that a client was told of is there in a state
that the answers explain, every VM that runs answers and has the memory it must have, nothing lives that forkd does not know.
Calls that were never answered may have happened or not (history.py), but two clones that were asked for at once are both
there or neither."""

import random
import threading
import time

import busy
import history
import mix
import world
from forkdlab import Lab
from measure import Line, Samples

CLIENTS = 4
LONGEST_S = 1.5  # between a start and the next kill


class Barrier:
    """Where clients wait while there is no forkd."""

    def __init__(self):
        self.cond, self.waiting, self.epoch, self.ready, self.over = threading.Condition(), set(), 0, 0.0, False

    def comes_back(self, worker):
        with self.cond:
            epoch = self.epoch
            self.waiting.add(worker)
            self.cond.notify_all()
            self.cond.wait_for(lambda: self.epoch > epoch or self.over)
            return self.ready

    def all_wait(self, workers):
        with self.cond:
            return self.cond.wait_for(lambda: all(w in self.waiting or not w.is_alive() for w in workers), mix.DEADLINE)

    def open(self, ready, over=False):
        """Lets them go on; if it is @over nobody waits any more."""
        with self.cond:
            self.epoch, self.ready, self.waiting, self.over = self.epoch + 1, ready, set(), over
            self.cond.notify_all()


def halves(lab, workers):
    """Pairs of clones of which one is there."""
    names = {v["name"] for v in lab.ctl("ps")}
    pairs = [[c.name for c in w.open_calls] for w in workers if len(w.open_calls) == 2 and w.open_calls[1].kind == "create"]
    return [f"of {a} and {b} there is one" for a, b in pairs if (a in names) != (b in names)]


class Kills:
    def __init__(self, lab, seed):
        self.lab, self.rng, self.barrier = lab, random.Random(f"{seed} kills"), Barrier()
        self.stop = threading.Event()
        self.workers = [mix.Worker(lab, seed, i, 1 << 30, self.stop, self.barrier.comes_back) for i in range(CLIENTS)]
        self.odd, self.silent, self.looks = [], [], []
        self.starts, self.unanswered = Samples(), 0

    def round(self):
        lab = self.lab
        self.stop.wait(self.rng.uniform(0.02, LONGEST_S))  # a moment like any other
        lab.forkd.kill()
        lab.forkd.wait()
        if not self.barrier.all_wait(self.workers):
            self.odd.append("a client did not notice that its forkd is gone")
        begin = time.monotonic()
        lab.start()
        ready = time.monotonic()
        self.starts.append((ready - begin) * 1000)
        self.unanswered += sum(bool(w.open_calls) for w in self.workers)
        busy.until("agents are back", lambda: not any(v["busy"] for v in lab.ctl("ps")))
        self.odd += world.complaints(lab) + halves(lab, self.workers)
        self.silent += mix.look(lab, self.looks, mix.all_names(lab))
        self.barrier.open(ready)

    def end(self):
        """Lets the clients finish what they are at."""
        self.stop.set()
        for w in self.workers:
            w.join()

    def problems(self):
        return [p for w in self.workers for p in w.problems]

    def calls(self):
        return [c for w in self.workers for c in w.calls] + self.looks


def campaign(args, say):
    n = args.rounds or (6 if args.short else 50)
    with Lab(store="4G") as lab:
        mix.make_origin(lab)
        k = Kills(lab, args.seed)
        for w in k.workers:
            w.start()
        try:
            for i in range(n):
                k.round()
                say(f"kill {i + 1:3}/{n}: back in {k.starts[-1]:6.0f} ms, {len(lab.ctl('ps'))} VMs")
        finally:
            k.stop.set()
            k.barrier.open(time.monotonic(), over=True)
            k.end()
        k.silent += mix.look(lab, k.looks, mix.all_names(lab), wake=True) if not k.problems() else []
        bad = history.check([c for c in k.calls() if c.end is not None])
        k.odd += world.complaints(lab) + world.empty_store(lab)
        lab.end()
        k.odd += lab.leftovers()
    for text in bad + k.problems() + k.odd + k.silent:
        say(text)
    ops = sum(w.done for w in k.workers)
    what = f"{n} x SIGKILL of forkd in {ops} operations"
    return [
        Line(f"{what}: VMs and answers that the model does not explain", len(bad), 0, unit="", must=True, note="; ".join(bad)[:600]),
        Line(f"{what}: orphans, and what forkd says that is not so", len(k.odd), 0, unit="", must=True, note="; ".join(k.odd)[:600]),
        Line(f"{what}: survivors that do not answer an exec", len(k.silent), 0, unit="VMs", must=True, note="; ".join(k.silent)[:600]),
        Line(f"{what}: clients that got stuck", len(k.problems()), 0, unit="", must=True, note="; ".join(k.problems())[:600]),
        Line(f"{what}: the next forkd is ready, p95", k.starts.p95, 5000, unit="ms", parts={"start": k.starts, "calls without an answer": k.unanswered}),
    ]
