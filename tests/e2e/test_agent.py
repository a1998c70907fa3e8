# SPDX-License-Identifier: MIT
"""The connection to the agent: there at once after a restore or a restart of forkd, found again when the agent has died, and
never waited for beyond the time that was allowed."""

import subprocess
import time

from case import Case, main

# Root in the guest hides the port from the agent, kills it, and writes what it likes.
THIEF = """
exec < /dev/null > /dev/null 2>&1
mount -t tmpfs none /sys/class/virtio-ports
kill -9 $(pidof forkd-agent)
until cat /dev/urandom > /dev/vport0p1; do :; done
"""


class Agent(Case):
    lab_options = {"store": "1G"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "base", "--mem", "128M")
        cls.lab.ctl("standby", "base", "--tag", "warm")

    def tearDown(self):
        for vm in self.lab.ctl("ps"):
            if vm["name"] != "base":
                self.lab.ctl("rm", vm["name"])

    def run_in(self, name, script, timeout):
        """(exit code, what was said, seconds)"""
        begin = time.monotonic()
        p = subprocess.run(self.lab.argv("exec", name, "--timeout", timeout, "--", "/bin/sh", "-c", script, json_mode=False),
                           stdin=subprocess.DEVNULL, capture_output=True, timeout=120, env=self.lab.env)
        return p.returncode, (p.stdout + p.stderr).decode(errors="replace"), time.monotonic() - begin

    def test_at_once_after_a_restore(self):
        for _ in range(5):
            self.lab.ctl("restore", "base")
            self.assertEqual(self.lab.text("base", "hostname"), "base")
            self.lab.ctl("standby", "base")

    def test_at_once_after_a_restart(self):
        self.lab.ctl("fork", "warm", "r", "--count", 3)
        for end in (self.lab.terminate, self.kill, self.kill):
            end()
            self.lab.start()
            for i in (1, 2, 3):
                self.assertEqual(self.lab.text(f"r-{i}", "hostname"), f"r-{i}")

    def kill(self):
        self.lab.forkd.kill()
        self.lab.forkd.wait()

    def test_an_agent_that_died(self):
        self.lab.ctl("fork", "warm", "d")
        for _ in range(5):
            self.run_in("d", "kill -9 $(pidof forkd-agent)", 5)
            code, said, seconds = self.run_in("d", "echo here", 20)
            self.assertTrue((code, said) == (0, "here\n") or (code == 125 and "agent" in said), (code, said))
            self.assertLess(seconds, 35)
            self.assertEqual(self.lab.text("d", "echo here"), "here")

    def test_an_agent_that_says_nothing(self):
        self.lab.ctl("fork", "warm", "mute", "--count", 2)
        self.run_in("mute-1", "(sleep 0.2; kill -STOP $(pidof forkd-agent)) < /dev/null > /dev/null 2>&1 &", 10)
        code, said, seconds = self.run_in("mute-1", "while :; do sleep 1; done", 2)
        self.assertEqual(code, 125, said)
        self.assertIn("agent", said)
        self.assertLess(seconds, 35)
        self.assertEqual(self.lab.text("mute-2", "echo here"), "here")

    def test_a_guest_that_writes_garbage_to_the_port(self):
        self.lab.ctl("fork", "warm", "thief", "--count", 2)
        self.lab.sh("thief-1", "cat > /run/thief", stdin=THIEF.encode())
        self.run_in("thief-1", "setsid sh /run/thief &", 5)
        for _ in range(20):  # until the thief has it
            code, said, seconds = self.run_in("thief-1", "echo here", 2)
            self.assertLess(seconds, 35)
            if code == 125 and "has not ended" in said:
                break
        else:
            self.fail(said)
        # Whoever else asks is served meanwhile.
        _, said, seconds = self.run_in("thief-2", "echo here", 20)
        self.assertEqual(said, "here\n")
        self.assertLess(seconds, 10)
        before = self.lab.vm("thief-1")
        self.assertEqual(before["state"], "running")
        self.lab.ctl("standby", "thief-1")
        self.lab.ctl("rm", "thief-1")


if __name__ == "__main__":
    main()
