# SPDX-License-Identifier: MIT
"""Busy guests: clones of one template that was saved while it was at work. guest/churn.c tells what they do; here is
how they are made, asked and looked at from outside."""

import json
import os
import pathlib
import re
import select
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from forkdlab import Refused, bin_dir  # noqa: E402

TEMPLATE = "template"
TAG = "busy"
DEADLINE = 120
TOLD = re.compile(rb"churn: reads (\d+) wrong (\d+)")
WRONG = re.compile(rb"churn: WRONG.*")


def until(what, fn, deadline=DEADLINE):
    """Asks until the answer is true; each question is a request of its own, so nothing spins."""
    end = time.monotonic() + deadline
    while not (answer := fn()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline} s")
    return answer


def make_template(lab, mib, seed, policy="kill"):
    """A guest with @mib of pattern under way and a file of random bytes, on standby with tag TAG; returns the file's digest."""
    lab.ctl("run", TEMPLATE, "--mem", f"{mib + 96}M", "--on-pager-loss", policy)
    lab.ctl("cp", bin_dir().parent / "fault" / "churn", f"{TEMPLATE}:/run/churn")
    lab.sh(TEMPLATE, "head -c 4194304 /dev/urandom > /run/data")
    lab.sh(TEMPLATE, f"chmod 755 /run/churn && /run/churn run {mib} {seed}", timeout=DEADLINE)
    until("the template is at work", lambda: report(lab, TEMPLATE)["reads"] > 1000)
    digest = lab.text(TEMPLATE, "sha256sum /run/data").split()[0]
    lab.ctl("standby", TEMPLATE, "--tag", TAG)
    return digest


def report(lab, name, reset=False):
    return json.loads(lab.text(name, f"/run/churn report{' --reset' if reset else ''}", timeout=DEADLINE))


def sweep(lab, name):
    """Every page is looked at once more; the report after that."""
    return json.loads(lab.text(name, "/run/churn sweep", timeout=DEADLINE))


def digest(lab, name):
    return lab.text(name, "sha256sum /run/data", timeout=DEADLINE).split()[0]


def console(vm):
    """What a guest has said last on its console, also a dead one: (pages read, wrong ones, the lines that tell of those)."""
    text = (pathlib.Path(vm["dir"]) / "console.log").read_bytes()
    told = TOLD.findall(text)
    last = (int(told[-1][0]), int(told[-1][1])) if told else (0, 0)
    return *last, [w.decode(errors="replace") for w in WRONG.findall(text)]


class Watch:
    """Processes whose end is wanted, seen by pidfd: `ends` has the moment of each that has come."""

    def __init__(self, pids):
        self.fds = {os.pidfd_open(pid): pid for pid in pids}
        self.ends = {}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for fd in self.fds:
            os.close(fd)

    def wait(self, seconds):
        """Until all have ended or the time is over; returns those that live."""
        end = time.monotonic() + seconds
        poll = select.poll()
        for fd in self.fds:
            if self.fds[fd] not in self.ends:
                poll.register(fd, select.POLLIN)
        while len(self.ends) < len(self.fds) and (left := end - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                self.ends[self.fds[fd]] = time.monotonic()
                poll.unregister(fd)
        return [pid for pid in self.fds.values() if pid not in self.ends]


def signal_by_pidfd(pid, number):
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def remove_all_but(lab, *keep):
    """VMs that somebody is still busy with are waited for."""
    def gone():
        names = [v["name"] for v in lab.ctl("ps") if v["name"] not in keep]
        try:
            if names:
                lab.ctl("rm", *names)
            return True
        except Refused as e:
            if e.error["code"] != "busy":
                raise
            return False
    until("all are removed", gone)
