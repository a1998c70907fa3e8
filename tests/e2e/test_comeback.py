# SPDX-License-Identifier: MIT
"""forkd comes back to VMs in every condition: many of them, VMMs that are stopped or talk to somebody else, agents that are
mute. No guest notices, and nobody waits for the one that hangs."""

import os
import pathlib
import select
import signal
import socket
import time

from case import Case, main

MANY = 50
# Hundredths of a second, from the kernel's clock: the longest time that this loop did not run.
WATCH = """
last=; max=0
while read now rest < /proc/uptime; do
  now=${now%.*}${now#*.}
  [ -n "$last" ] && [ $((now - last)) -gt $max ] && max=$((now - last)) && echo $max > /run/gap
  [ -e /run/again ] && rm /run/again && max=0 && echo 0 > /run/gap
  last=$now
done
"""


class Comeback(Case):
    lab_options = {"store": "2G"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "128M")
        cls.lab.sh("base", "head -c 1048576 /dev/urandom > /run/data")
        cls.lab.sh("base", "cat > /run/watch", stdin=WATCH.encode())
        cls.sum = cls.lab.text("base", "sha256sum /run/data")
        cls.lab.ctl("standby", "base", "--tag", "base")

    def restart(self, how):
        """Ends forkd and starts it again; how long the start took, in seconds."""
        if how == "kill":
            self.lab.forkd.kill()
            self.lab.forkd.wait()
        else:
            self.lab.terminate()
        begun = time.monotonic()
        self.lab.start()
        return time.monotonic() - begun

    def pids(self):
        return {v["name"]: (v["pid"], v["state"]) for v in self.lab.ctl("ps")}

    def until_idle(self, name, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            vm = self.lab.vm(name)
            if vm["busy"] is None:
                return vm
            time.sleep(0.05)  # a person polls like that, too: nothing tells of the end of a chore
        self.fail(f"{name} is still busy: {vm}")

    def test_1_many_vms(self):
        self.lab.ctl("fork", "base", "c", "--count", str(MANY))
        before = self.pids()
        took = {}
        for how in ("terminate", "kill"):
            took[how] = self.restart(how)
            self.assertEqual(self.pids(), before)
        for i in (1, MANY // 2, MANY):
            self.assertEqual(self.lab.text(f"c-{i}", "sha256sum /run/data"), self.sum)
        print(f"{MANY} running VMs: ready after {took['terminate']:.2f} s (SIGTERM), {took['kill']:.2f} s (SIGKILL)")
        self.assertLess(max(took.values()), 20)
        self.assertEqual(self.lab.ctl("doctor", "--orphans")["orphans"], [])
        self.lab.ctl("rm", *[f"c-{i}" for i in range(1, MANY + 1)])

    def gap(self, during):
        """The longest gap in the guest's loop while @during runs and for a moment after."""
        self.lab.sh("g", "touch /run/again; while [ -e /run/again ]; do :; done")
        during()
        self.lab.sh("g", "true")
        return int(self.lab.text("g", "cat /run/gap")) / 100

    def test_2_a_guest_does_not_notice(self):
        self.lab.ctl("fork", "base", "g")
        self.lab.sh("g", "setsid sh /run/watch < /dev/null > /dev/null 2>&1 &")
        uptime = float(self.lab.text("g", "cut -d' ' -f1 /proc/uptime"))
        idle, restarts = [], []
        for how in ("terminate", "kill", "terminate", "kill"):
            idle.append(self.gap(lambda: time.sleep(0.3)))  # as long as a restart takes, and nothing happens
            restarts.append(self.gap(lambda how=how: self.restart(how)))
        print(f"longest gap in a guest's loop: {max(restarts):.2f} s over restarts, {max(idle):.2f} s without")
        self.assertLess(max(restarts), max(idle) + 1.0)
        self.assertGreater(float(self.lab.text("g", "cut -d' ' -f1 /proc/uptime")), uptime)
        self.lab.ctl("rm", "g")

    def test_3_vmms_and_agents_that_do_not_answer(self):
        names = ("stopped", "hung", "taken", "mute", "fine")
        for n in names:
            self.lab.ctl("fork", "base", n)
        vms = {n: self.lab.vm(n) for n in names}
        # an agent that sleeps for a while
        self.lab.sh("mute", "agent=$(pidof forkd-agent); (sleep 1; kill -STOP $agent; echo > /run/asleep; sleep 15; kill -CONT $agent) > /dev/null 2>&1 &")
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        fds = {n: os.pidfd_open(vms[n]["pid"]) for n in ("stopped", "hung")}
        for fd in fds.values():
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
        # somebody else talks to this one's VMM, which serves one at a time
        qmp = [s for s in pathlib.Path(self.lab.run_dir / "vms" / vms["taken"]["id"]).iterdir() if "qmp" in s.name]
        other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        other.connect(str(qmp[0]))
        self.assertTrue(other.recv(100))
        begun = time.monotonic()
        self.lab.start()
        took = time.monotonic() - begun
        print(f"ready after {took:.2f} s, with VMMs that do not answer")
        self.assertLess(took, 25)
        # nobody waits for them
        self.assertEqual(self.lab.text("fine", "sha256sum /run/data"), self.sum)
        self.assertEqual(self.lab.vm("stopped")["busy"], "taking back")
        self.assertEqual(self.lab.vm("stopped")["state"], "running")
        # they come back, and are what they were
        signal.pidfd_send_signal(fds["stopped"], signal.SIGCONT)
        other.close()
        for n in ("stopped", "taken", "mute"):
            vm = self.until_idle(n, 40)
            self.assertEqual((vm["state"], vm["pid"]), ("running", vms[n]["pid"]))
            if n == "mute":
                self.lab.sh("mute", "true", check=False)  # wakes it, should it still sleep
            self.assertEqual(self.lab.text(n, "sha256sum /run/data"), self.sum)
        # but not for ever
        self.assertTrue(select.select([fds["hung"]], [], [], 60)[0], "a VMM that never answers lives")
        vm = self.until_idle("hung", 20)
        self.assertEqual(vm["state"], "failed")
        self.assertIn("could not be taken back", vm["reason"])
        for fd in fds.values():
            os.close(fd)
        self.assertEqual(self.lab.ctl("doctor", "--orphans")["orphans"], [])

    def test_4_a_forkd_that_ends_while_it_takes_back(self):
        vm = self.lab.vm("fine")
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        fd = os.pidfd_open(vm["pid"])
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
        self.lab.start()
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        signal.pidfd_send_signal(fd, signal.SIGCONT)
        os.close(fd)
        self.lab.start()
        self.assertEqual(self.lab.vm("fine")["pid"], vm["pid"])
        self.assertEqual(self.lab.text("fine", "sha256sum /run/data"), self.sum)

    def test_5_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
