# SPDX-License-Identifier: MIT
"""Warm clones and shells: what is there before it is asked for, against the same by hand."""

import contextlib
import threading
import time

from floor import Floor
from lines import BASE, DIRTY, clone
from measure import Line, Samples
from mprpc import Client

POOL = "bench"
FULL_S = 120
BURST = 50
HANDS = 8  # how many guests of the floor wait at once; a pool of as many


def pool_doc(lab, name=POOL):
    doc = lab.ctl("pool", "ls")
    found, = (p for p in (doc if isinstance(doc, list) else doc["pools"]) if p["name"] == name)
    return found


def wait_full(lab, size):
    deadline = time.monotonic() + FULL_S
    while pool_doc(lab)["warm"] < size:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the pool is not full after {FULL_S} s: {pool_doc(lab)}")
        time.sleep(0.02)


@contextlib.contextmanager
def pool(lab, size):
    lab.ctl("pool", "create", POOL, "--from", BASE, "--size", size)
    try:
        wait_full(lab, size)
        yield
    finally:
        lab.ctl("pool", "rm", POOL)


def take_one(lab, name, times, cold):
    begin = time.monotonic()
    taken = lab.ctl("pool", "take", POOL, name)
    times["client"].append((time.monotonic() - begin) * 1e3)
    times["take"].append(taken["take_ms"])
    cold.append(not taken["warm"])


def take_against_floor(lab, base, n):
    """A take from a full pool, nothing else to do, and takes one after the other while it fills up again."""
    quiet, busy = ({k: Samples() for k in ("take", "client")} for _ in range(2))
    cold = []
    theirs = {k: Samples() for k in ("total", "resume")}
    named = Samples()
    rounds = max(1, n // HANDS)
    with Floor(lab, base["id"], DIRTY) as floor, pool(lab, HANDS):
        for i in range(rounds):
            floor.ask(f"warm {2 * HANDS}")
            for j in range(HANDS):
                wait_full(lab, HANDS)
                answer = floor.ask("take")
                for k, samples in theirs.items():
                    samples.append(answer[f"{k}_ms"])
                named.append(floor.ask("name")["total_ms"])
                take_one(lab, f"taken-{i}-{j}", quiet, cold)
            names = [f"taken-{i}-{j}" for j in range(HANDS)]
            lab.ctl("rm", *names)
            wait_full(lab, HANDS)
            for j in range(HANDS // 2):
                take_one(lab, names[j], busy, cold)
            lab.ctl("rm", *names[:HANDS // 2])
    if any(cold):
        raise RuntimeError(f"{sum(cold)} takes from a pool with warm clones were not warm")
    floor_p50 = theirs["total"].p50
    parts = {"forkd: request to answer (take_ms)": quiet["take"], "forkctl's whole life": quiet["client"],
             "forkd: take_ms, while the pool fills up again": busy["take"],
             "floor: cont and one echo": theirs["total"], "floor: of it cont": theirs["resume"],
             "by hand: cont and a wake-up with an identity": named}
    what = f"take of a warm clone, against cont and one echo by hand ({floor_p50:.2f} ms)"
    return [
        Line(f"{what}: p50", quiet["take"].p50 / floor_p50, 2, parts=parts,
             note=f"against cont and the identity: {quiet['take'].p50 / named.p50:.2f} x"),
        Line(f"{what}: p99", quiet["take"].quantile(0.99) / floor_p50, 5),
        Line("takes while the pool fills up again, against takes from a full one: p50", busy["take"].p50 / quiet["take"].p50, 2),
    ]


def takes_at_once(lab, base, size):
    """As many clients as the pool has clones, each with a connection of its own, at the same moment."""
    answers, gate = [None] * size, threading.Barrier(size + 1)

    def client(i):
        with Client(lab.socket, timeout=300) as c:
            gate.wait()
            begin = time.monotonic()
            try:
                doc = c.call("pool.take", {"name": POOL, "vm": f"burst-{i}"})
            except Exception as e:  # told below, with the number of the others
                doc = e
            answers[i] = (doc, (time.monotonic() - begin) * 1e3)

    with pool(lab, size):
        threads = [threading.Thread(target=client, args=(i,), daemon=True) for i in range(size)]
        for t in threads:
            t.start()
        gate.wait()
        for t in threads:
            t.join(timeout=300)
        docs = [a[0] for a in answers if a and isinstance(a[0], dict)]
        for doc in docs[:: max(1, size // 5)]:
            lab.sh(doc["name"], "true")
        failed = [str(a[0]) if a else "no answer" for a in answers if not a or not isinstance(a[0], dict)]
        if docs:
            lab.ctl("rm", *(d["name"] for d in docs))
    if len({d["id"] for d in docs}) != len(docs):
        raise RuntimeError("a clone was handed out twice")
    took = Samples(a[1] for a in answers if a and isinstance(a[0], dict))
    return [Line(f"{size} takes at once: served", len(docs), size, at_least=True, unit="takes", must=True, parts={
        "request to answer, ms": took, "of them warm": sum(d["warm"] for d in docs),
        "forkd: take_ms": Samples(d["take_ms"] for d in docs)}, note="; ".join(failed[:3]))]


# ---- shells ----

def shells(lab):
    """Processes that wait for device state: how many are ready, and what became of others."""
    return lab.ctl("stats")["shells"]


def wait_shell(lab):
    deadline = time.monotonic() + FULL_S
    while shells(lab)["ready"] == 0 or shells(lab)["starting"] > 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no shell after {FULL_S} s")
        time.sleep(0.02)


def shell_fork_against_load(lab, base, n):
    """A fork with a shell ready, against a QEMU that was started by hand before."""
    ours = {k: Samples() for k in ("wall", "total", "load", "ack")}
    theirs = {k: Samples() for k in ("total", "load", "ack")}
    with clone(lab, "keeper"), Floor(lab, base["id"], DIRTY) as floor:
        floor.ask("load")
        wait_shell(lab)
        before = shells(lab)
        for i in range(n):
            wait_shell(lab)
            answer = floor.ask("load")
            for k, samples in theirs.items():
                samples.append(answer[f"{k}_ms"])
            with clone(lab, f"shell-{i}") as (times, forked):
                ours["wall"].append(forked["wall_ms"])
                for k in ("total", "load", "ack"):
                    ours[k].append(times[f"{k}_ms"])
        after = shells(lab)
    if after["used"] - before["used"] < n:
        raise RuntimeError(f"{n} forks with a shell ready did not all use one: {before}, {after}")
    return [Line("fork with a shell ready, against loading and the first answer of a QEMU started before", ours["wall"].p50 / theirs["total"].p50,
                 1.15, parts={
                     "forkd: request to answer (wall_ms)": ours["wall"],
                     "forkd: the clone (total_ms)": ours["total"],
                     "forkd: until the state is loaded (load_ms)": ours["load"],
                     "forkd: loaded to acknowledged (ack_ms)": ours["ack"],
                     "by hand: load, to acknowledged": theirs["total"],
                     "by hand: until the state is loaded": theirs["load"],
                     "by hand: loaded to acknowledged": theirs["ack"],
                 })]
