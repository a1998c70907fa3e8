# SPDX-License-Identifier: MIT
"""Guests that burn their CPU for nothing, guests that compute, and what forkd says of both."""

import subprocess
import threading
import time

from forkdlab import bin_dir
from mprpc import Client, Error

# The moment before it begins is told by the console's file, from outside. The agent gets no CPU any more: the command is not answered.
SPINS = {
    "panic": "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger",
    "realtime": "exec /run/spin",  # tests/fault/guest/spin.c
}
# A process that never waits, and several: these are healthy.
JOBS = {
    "hash": "sha256sum /dev/zero > /dev/null 2>&1 &",
    "loop": "sh -c 'while :; do :; done' > /dev/null 2>&1 &",
    "crowd": "for i in 1 2 3 4; do sha256sum /dev/zero > /dev/null 2>&1 & done",
    "forks": "sh -c 'while :; do /bin/true; done' > /dev/null 2>&1 &",
}


def template(lab, name, data_mib=0):
    """A VM on standby, from which guests are forked that can do all of this. Returns the digest of its data, random bytes in memory."""
    lab.ctl("run", name, "--mem", "128M")
    lab.ctl("cp", str(bin_dir().parent / "fault" / "spin"), f"{name}:/run/spin")
    lab.sh(name, f"chmod 755 /run/spin; head -c {data_mib << 20} /dev/urandom > /run/data")
    digest = lab.text(name, "sha256sum /run/data").split()[0]
    lab.ctl("standby", name)
    return digest


class Events(threading.Thread):
    """Everything that a forkd tells, as it comes: each with `seen`, when we had it (the clock of files and of forkd's own time_ns)."""

    def __init__(self, lab):
        super().__init__(name="events", daemon=True)
        self.lab, self.all, self.changed, self.ended = lab, [], threading.Condition(), False

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended = True
        self.join()

    def run(self):
        after = 0
        while not self.ended:
            try:
                with Client(self.lab.socket, 30) as c:
                    while not self.ended:
                        answer = c.call("events", {"after": after, "wait_ms": 500})
                        after = answer["next"]
                        with self.changed:
                            self.all += [dict(e, seen=time.time()) for e in answer["events"]]
                            self.changed.notify_all()
            except (OSError, EOFError, Error):
                after = 0
                time.sleep(0.1)

    def why_no_probes(self):
        """None if there are probes; forkd says one or the other before anything else."""
        end = time.monotonic() + 30
        with self.changed:
            while not self.all and self.changed.wait(max(0, end - time.monotonic())):
                pass
        return None if self.find("probes.ready") else (self.find("probes.absent") or [{"text": "the configuration says so"}])[0]["text"]

    def find(self, kind, name=None, since=0):
        return [e for e in self.all if e["kind"] == kind and name in (None, e["name"]) and e["time_ns"] / 1e9 >= since]

    def wait(self, kind, name=None, seconds=30, since=0):
        """The first of these, or an AssertionError."""
        end = time.monotonic() + seconds
        with self.changed:
            while not self.find(kind, name, since):
                if not self.changed.wait(max(0, end - time.monotonic())):
                    raise AssertionError(f"no {kind} of {name} within {seconds} s; there were {self.all[-10:]}")
        return self.find(kind, name, since)[0]


def begin(lab, name, how):
    """The guest begins to spin. Its command, which is never answered; kill it with end()."""
    return subprocess.Popen(lab.argv("exec", name, "--", "/bin/sh", "-c", SPINS[how]), stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=lab.env)


def end(command):
    command.kill()
    command.wait()


def began(lab, name):
    """When the guest wrote to its console last: just before it began."""
    return (lab.state / "vms" / lab.vm(name)["id"] / "console.log").stat().st_mtime
