# SPDX-License-Identifier: MIT
"""The pager is killed, or stopped, below four busy guests, again and again.

Policy `kill`: every guest is dead in time, told as failed with the reason, and had seen no wrong byte until then.
Policy `recover`: every guest lives on, sees no wrong byte, and stands still only for a moment.

The decoded memory may be much less than the guests touch, so pages are taken away and faulted in all the time: whenever
the signal comes, there are guests that wait. When it comes is random: after so many faults of each guest."""

import random
import signal
import time

import busy
from forkdlab import Lab
from measure import Line, Samples

GUESTS = 4
NAMES = [f"g-{i + 1}" for i in range(GUESTS)]
KILL_S = 1.0
STALL_S = 0.5
HEARTBEAT_S = 2.0  # the default of [pager] heartbeat_ms
WAIT_S = 60        # until an end that does not come is given up
MAX_FAULTS = 40
BUDGET = "32M"
CONFIG = f"[pager]\nmemory_budget = {BUDGET}\nworkingset = off\n"
POLICIES = ("kill", "recover")
KINDS = {"SIGKILL": (signal.SIGKILL, 0), "SIGSTOP": (signal.SIGSTOP, HEARTBEAT_S)}  # and when it is noticed


class Round:
    """What one signal did."""

    def __init__(self):
        self.deaths, self.stalls, self.wrong, self.lost, self.complaints = [], [], 0, 0, []


def pager(lab):
    return lab.ctl("pager", "status")


def wait_for_faults(lab, n_faults):
    """Until every guest has waited @n_faults times for pages that nobody had: it is at work, and may wait at any moment."""
    def counts():
        return {s["session"]: s["faults"]["missing"] for s in pager(lab)["sessions"]}
    before = counts()
    def all_fault():
        now = counts()
        return all(now.get(s, 0) >= n + n_faults for s, n in before.items())
    busy.until("all guests fault", all_fault)


def round_of_kill(lab, number, n_faults, say):
    r = Round()
    lab.ctl("fork", busy.TEMPLATE, "g", "--count", str(GUESTS))
    wait_for_faults(lab, n_faults)
    vms = {v["name"]: v for v in lab.ctl("ps") if v["name"] in NAMES}
    old = pager(lab)["pid"]
    with busy.Watch([vms[n]["pid"] for n in NAMES]) as watch:
        begin = time.monotonic()
        busy.signal_by_pidfd(old, number)
        r.lost = len(watch.wait(WAIT_S))
        r.deaths = [end - begin for end in watch.ends.values()]
    for n in NAMES:
        vm = busy.until(f"{n} is told as failed", lambda n=n: (v := lab.vm(n))["state"] == "failed" and v["busy"] is None and v)
        if vm["reason"] != "pager-lost":
            r.complaints.append(f"{n}: reason {vm['reason']!r}")
        reads, wrong, lines = busy.console(vm)
        if reads == 0:
            r.complaints.append(f"{n} said nothing on its console")
        r.wrong += max(wrong, len(lines))
        r.complaints += lines
    lab.ctl("rm", *NAMES)
    say(f"last death {max(r.deaths or [WAIT_S]) * 1000:6.1f} ms")
    return r


def round_of_recovery(lab, number, n_faults, say, digest):
    r = Round()
    wait_for_faults(lab, n_faults)
    vms = {v["name"]: v for v in lab.ctl("ps") if v["name"] in NAMES}
    for n in NAMES:
        busy.report(lab, n, reset=True)
    old = pager(lab)["pid"]
    with busy.Watch([old]) as watch:
        busy.signal_by_pidfd(old, number)
        if watch.wait(WAIT_S):
            r.complaints.append(f"the old pager (pid {old}) lives on")
    busy.until("a new pager serves", lambda: (s := pager(lab))["up"] and s["pid"] != old)
    wait_for_faults(lab, 1)
    for n in NAMES:
        vm = lab.vm(n)
        if (vm["state"], vm["pid"]) != ("running", vms[n]["pid"]):
            r.lost += 1
            r.complaints.append(f"{n} is {vm['state']} ({vm['reason']})")
            continue
        told = busy.report(lab, n)
        r.wrong += told["wrong"]
        r.stalls.append(told["longest_ms"])
    if busy.digest(lab, NAMES[0]) != digest:
        r.complaints.append(f"{NAMES[0]} has another digest")
    say(f"longest stall {max(r.stalls or [0]):7.1f} ms")
    return r


def lines_of(rounds, what, policy, limit_s, extra):
    """The promises as lines; those about memory and lives are not for negotiation."""
    wrong = sum(r.wrong for r in rounds)
    lost = sum(r.lost for r in rounds)
    n = len(rounds)
    done = [Line(f"{n} x {what}, {policy}: wrong pages seen by any guest", wrong, 0, unit="pages", must=True)]
    if policy == "kill":
        ends = Samples(d * 1000 for r in rounds for d in r.deaths)
        done.append(Line(f"{n} x {what}, kill: guests that outlived it", lost, 0, unit="guests", must=True))
        done.append(Line(f"{n} x {what}, kill: the last guest's end", max(ends), limit_s * 1000, unit="ms",
                         parts={"every guest's end": ends, "": extra}))
    else:
        stalls = Samples(s for r in rounds for s in r.stalls)
        done.append(Line(f"{n} x {what}, recover: guests lost", lost, 0, unit="guests", must=True))
        done.append(Line(f"{n} x {what}, recover: the longest stall, p99", stalls.quantile(0.99), limit_s * 1000, unit="ms",
                         parts={"every guest's longest stall": stalls, "": extra}))
    complaints = [c for r in rounds for c in r.complaints]
    done.append(Line(f"{n} x {what}, {policy}: other complaints", len(complaints), 0, unit="", must=True, note="; ".join(complaints[:5])))
    return done


def final_check(lab, digest):
    """Every page of every guest once more, and the pages that only the kernel keeps in a file."""
    bad = []
    for n in NAMES:
        told = busy.sweep(lab, n)
        if told["wrong"] or busy.digest(lab, n) != digest:
            bad.append(f"{n}: {told}")
    return bad


def run_rounds(lab, policy, what, number, args, digest, say):
    rng = random.Random(f"{args.seed} {policy} {what}")
    n = args.rounds or (3 if args.short else 100)
    results = []
    for i in range(n):
        def tell(text, i=i):
            say(f"{what} {policy} {i + 1:3}/{n}: {text}")
        moment = rng.randrange(1, MAX_FAULTS)
        if policy == "kill":
            results.append(round_of_kill(lab, number, moment, tell))
        else:
            results.append(round_of_recovery(lab, number, moment, tell, digest))
    return results


def guests_notice(lab):
    """Would they? One page of one guest is made zero from inside, and must be told of in all ways that are relied on."""
    lab.ctl("fork", busy.TAG, "spoilt")
    lab.sh("spoilt", "/run/churn spoil 77")
    told = busy.sweep(lab, "spoilt")
    reads, wrong, lines = busy.until("the console tells, too", lambda: (c := busy.console(lab.vm("spoilt")))[1] and c)
    lab.ctl("rm", "spoilt")
    return reads > 0 and wrong > 0 and told["zero"] > 0 and "page 77 " in lines[0]


def one_policy(lab, policy, mib, args, say):
    digest = busy.make_template(lab, mib, args.seed, policy)
    note = f"{GUESTS} guests with {mib} MiB of pattern, {BUDGET} of it decoded at most"
    done = [Line("guests that do not notice a page of zeros", 0 if guests_notice(lab) else 1, 0, unit="guests", must=True)]
    if policy == "recover":
        lab.ctl("fork", busy.TEMPLATE, "g", "--count", str(GUESTS))
    for what in args.signal or KINDS:
        number, noticed = KINDS[what]
        results = run_rounds(lab, policy, what, number, args, digest, say)
        limit = STALL_S if policy == "recover" and not noticed else noticed + KILL_S
        done += lines_of(results, f"{what} of the pager", policy, limit, note)
    if policy == "recover":
        bad = final_check(lab, digest)
        done.append(Line("after all recoveries: guests with a wrong page or digest", len(bad), 0, unit="guests", must=True,
                         note="; ".join(bad)))
    busy.remove_all_but(lab)
    lab.ctl("snapshot", "rm", busy.TAG)
    return done


def campaign(args, say):
    """All rounds of all four kinds; returns the lines."""
    done = []
    with Lab(store="4G", config=CONFIG) as lab:
        for policy in args.policy or POLICIES:
            done += one_policy(lab, policy, 64 if args.short else 256, args, say)
        lab.end()
        left = lab.leftovers()
    done.append(Line("pager's losses: left behind", len(left), 0, unit="things", must=True, note="; ".join(left)))
    return done
