# SPDX-License-Identifier: MIT
"""Guests that burn a core for nothing, and guests whose pager stands still, are named within two windows, each of them; guests that
compute, sleep, fork, go on standby and come back, on a host that has too little CPU for all of them, never are."""

import os
import signal
import threading
import time

import spinlab
from forkdlab import Lab, Refused
from measure import Line, Samples

WINDOW = 1.0  # a fifth of the default: the shorter, the easier is it to be wrong
CONFIG = f"[monitor]\nwindow_ms = {WINDOW * 1000:.0f}\n[pager]\nheartbeat_ms = 60000\n"
HEALTHY_SECONDS = 600
DATA_MIB, SLICE_MIB = 32, 2
BUSY = list(spinlab.JOBS)


def spin(lab, events, name, how):
    """How many windows until it was named; None: it was not."""
    lab.ctl("fork", "t", name)
    before = time.time()
    command = spinlab.begin(lab, name, how)
    try:
        e = events.wait("vcpu.spinning", name, seconds=10 * WINDOW + 10, since=before)
        return (e["time_ns"] / 1e9 - spinlab.began(lab, name)) / WINDOW
    except AssertionError:
        return None
    finally:
        spinlab.end(command)
        lab.ctl("rm", name)


def stick(lab, events, name, n):
    """Each reads a part that nobody has read: what others have is there, and is got without the pager."""
    lab.ctl("fork", "t", name)
    pager = lab.ctl("pager", "status")["pid"]
    before = time.time()
    lab.sh(name, f"(sleep 0.2; dd if=/run/data bs={SLICE_MIB}M skip={n % (DATA_MIB // SLICE_MIB)} count=1) > /dev/null 2>&1 &")
    os.kill(pager, signal.SIGSTOP)
    try:
        e = events.wait("vcpu.stuck", name, seconds=10 * WINDOW + 10, since=before)
        # the text tells how long it had waited
        return float(e["text"].split(" for ")[-1].split()[0]) / WINDOW
    except AssertionError:
        return None
    finally:
        os.kill(pager, signal.SIGCONT)
        lab.ctl("rm", name)


def detections(lab, events, n, say):
    found = {"panic": [], "realtime": [], "stuck": []}
    lab.ctl("fork", "t", "beside")
    lab.sh("beside", spinlab.JOBS["hash"])
    for i in range(n):
        how = list(found)[i % 3]
        windows = stick(lab, events, f"s{i}", i // 3) if how == "stuck" else spin(lab, events, f"s{i}", how)
        found[how].append(windows)
        say(f"{how}: " + ("not named" if windows is None else f"named after {windows:.2f} windows"))
    lab.ctl("rm", "beside")
    return found


class Churn(threading.Thread):
    """Does @what again and again until the end; a refusal for want of memory or because somebody else has the VM is none."""

    def __init__(self, what, end):
        super().__init__(daemon=True)
        self.what, self.end, self.n, self.problem = what, end, 0, None

    def run(self):
        try:
            while time.monotonic() < self.end:
                try:
                    self.what(self.n)
                except Refused as e:
                    if e.error.get("code") not in ("busy", "limit", "no-space"):
                        raise
                self.n += 1
        except Exception as e:  # the campaign must hear of it, whatever it is  # noqa: BLE001
            self.problem = f"{type(e).__name__}: {e}"


def healthy(lab, seconds, say):
    """Twice as many busy guests as cores, and everything that forkd does with guests beside them."""
    for job in BUSY:
        lab.ctl("fork", "t", f"busy-{job}")
        lab.sh(f"busy-{job}", spinlab.JOBS[job])

    def storm(n):
        lab.ctl("fork", "t", "storm", "--count", "4")
        lab.ctl("rm", *(f"storm-{i + 1}" for i in range(4)))

    mine = {job: threading.Lock() for job in BUSY}  # the two that follow would undo each other's doing

    def away_and_back(n):
        job = BUSY[n % len(BUSY)]
        with mine[job]:
            lab.ctl("standby", f"busy-{job}", "--no-sync")
            lab.ctl("restore", f"busy-{job}")
        time.sleep(2 * WINDOW)

    def paused(n):
        job = BUSY[(n + 2) % len(BUSY)]
        with mine[job]:
            lab.ctl("pause", f"busy-{job}")
            time.sleep(WINDOW)
            lab.ctl("resume", f"busy-{job}")
        time.sleep(2 * WINDOW)

    end = time.monotonic() + seconds
    all_ = [Churn(what, end) for what in (storm, away_and_back, paused)]
    for c in all_:
        c.start()
    for c in all_:
        c.join()
    say(f"healthy: {all_[0].n} storms of 4 forks, {all_[1].n} standbys, {all_[2].n} pauses below {len(BUSY)} busy guests")
    return [c.problem for c in all_ if c.problem]


def campaign(args, say):
    n = args.rounds or (3 if args.short else 21)
    with Lab(store="4G", config=CONFIG) as lab, spinlab.Events(lab) as events:
        reason = events.why_no_probes()
        if reason:
            if os.environ.get("FORKD_TEST_NO_SKIP") == "1":
                raise AssertionError(f"no probes: {reason}")
            say(f"nothing is watched here: {reason}")
            return []
        spinlab.template(lab, "t", DATA_MIB)
        found = detections(lab, events, n, say)
        begun = time.time()
        problems = healthy(lab, 15 if args.short else HEALTHY_SECONDS, say)
        took = time.time() - begun
        alarms = [e for e in events.all if e["kind"] in ("vcpu.spinning", "vcpu.stuck") and e["time_ns"] / 1e9 >= begun]
        false = alarms + events.find("vcpu.spinning", "beside")  # it may be stuck, when the pager stands still
        lab.end()
        left = lab.leftovers()
    for e in false:
        say(f"{e['name']}: {e['kind']}: {e['text']}")
    named = [w for k in found for w in found[k] if w is not None]
    return [
        Line(f"{n} guests that spin or are stuck: not named", n - len(named), 0, unit="", must=True),
        Line("the longest until one was named", max(named, default=0), 2, unit="windows", must=not args.short,
             parts={k: Samples(w for w in v if w is not None) for k, v in found.items() if any(w is not None for w in v)}),
        Line(f"false alarms in {took:.0f} s of mixed healthy load", len(false), 0, unit="", must=True,
             note="; ".join(f"{e['name']}: {e['text']}" for e in false)[:600]),
        Line("what went wrong beside that, or was left", len(problems) + len(left), 0, unit="", must=True, note="; ".join(problems + left)[:600]),
    ]
