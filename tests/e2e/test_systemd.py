# SPDX-License-Identifier: MIT
"""The test is systemd: forkd runs in what its unit leaves it of rights, is installed where packages put it, says READY, pings
its watchdog, is killed when it does not, and is started again. A guest notices nothing of all that."""

import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import tempfile
import time

from case import Case, main, why_not
from forkdlab import ROOT, Lab
from unitfile import HEADER, Unit, sandbox

UNIT = pathlib.Path(os.environ.get("FORKD_UNIT", ROOT / "build" / "release" / "packaging" / "forkd.service"))
BUILD = UNIT.parents[1]
WATCHDOG_S = 2.0

# Counts, and notes the longest time between two of its steps in hundredths of a second.
COUNTER = """
n=0; worst=0; read -r last rest < /proc/uptime; last=${last%.*}${last#*.}
while :; do
  read -r now rest < /proc/uptime; now=${now%.*}${now#*.}
  gap=$((now - last)); last=$now; n=$((n + 1))
  [ $gap -gt $worst ] && worst=$gap
  echo $n $worst > /run/counter.new; mv /run/counter.new /run/counter
  sleep 0.02
done
"""


class Manager:
    """The side of the service manager: a notify socket, a main process, a clock."""

    def __init__(self, lab, unit):
        self.lab, self.enter = lab, sandbox(unit)
        self.path = lab.dir / "manager"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(self.path))

    def start(self):
        env = dict(self.lab.env, NOTIFY_SOCKET=str(self.path), WATCHDOG_USEC=str(int(WATCHDOG_S * 1e6)))
        with open(self.lab.log_path, "ab") as log:
            self.lab.forkd = subprocess.Popen(
                [os.environ["FORKD_BIN_DIR"] + "/forkd", "--state-dir", self.lab.state, "--run-dir", self.lab.run_dir, "--config",
                 self.lab.conf], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, preexec_fn=self.enter)
        return self.until("READY=1", 60)

    def hear(self, seconds):
        """The next datagram's lines, or None."""
        return self.sock.recv(4096).decode().split("\n") if select.select([self.sock], [], [], seconds)[0] else None

    def until(self, word, seconds):
        """All lines up to the one that begins with @word."""
        heard, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            lines = self.hear(0.5)
            if lines:
                heard += lines
                if any(x.startswith(word) for x in lines):
                    return heard
            elif self.lab.forkd.poll() is not None:
                break
        raise AssertionError(f"no {word}: {heard}, forkd: {self.lab.forkd.poll()}\n" + self.lab.log_path.read_text()[-3000:])

    def kill(self):
        """What systemd does to a main process that does not ping."""
        self.lab.forkd.send_signal(signal.SIGABRT)
        self.lab.forkd.send_signal(signal.SIGCONT)
        return self.lab.forkd.wait(timeout=30)


def installed():
    """Everything, installed below a directory of its own as a package would be; links to the two programs in one place.
    Returns the directory and where in it the unit says that forkd's configuration is."""
    dest = pathlib.Path(tempfile.mkdtemp(prefix="forkd-install-"))
    dest.chmod(0o755)
    subprocess.run(["cmake", "--install", BUILD], env=dict(os.environ, DESTDIR=str(dest)), check=True, stdout=subprocess.DEVNULL)
    unit, = dest.rglob("lib/systemd/system/forkd.service")
    program, option, conf = Unit(unit).get("ExecStart").split()
    assert option == "--config"
    links = dest / "links"
    links.mkdir()
    (links / "forkd").symlink_to(f"{dest}{program}")
    (links / "forkctl").symlink_to(next(dest.rglob("bin/forkctl")))
    return dest, pathlib.Path(f"{dest}{conf}")


class Systemd(Case):
    @classmethod
    def setUpClass(cls):
        if not why_not():
            cls.dest, cls.conf = installed()
            cls.addClassCleanup(subprocess.run, ["rm", "-rf", cls.dest], check=True)
            cls.addClassCleanup(os.environ.update, FORKD_BIN_DIR=os.environ.get("FORKD_BIN_DIR", ""))
            os.environ["FORKD_BIN_DIR"] = str(cls.dest / "links")
        super().setUpClass()
        cls.outside = cls.lab.metrics()
        cls.lab.terminate()
        cls.manager = Manager(cls.lab, Unit(UNIT))

    def counter(self):
        n, worst = self.lab.text("guest", "cat /run/counter").split()
        return int(n), int(worst) / 100

    def test_1_ready_when_clients_are_served(self):
        heard = self.manager.start()
        self.assertEqual(self.lab.ctl("ps"), [])
        self.assertIn("STATUS=0 VMs: 0 running, 0 on standby", heard + (self.manager.hear(1) or []))
        status = pathlib.Path(f"/proc/{self.lab.forkd.pid}/status").read_text()
        self.assertRegex(status, r"Seccomp:\s+2")
        self.assertRegex(status, r"NoNewPrivs:\s+1")

    def test_2_the_units_sandbox_leaves_what_vms_need(self):
        self.lab.ctl("run", "guest", "--mem", "128M")
        self.lab.sh("guest", "cat > /run/count", stdin=COUNTER.encode())
        self.lab.sh("guest", "setsid sh /run/count < /dev/null > /dev/null 2>&1 &")
        self.lab.ctl("standby", "guest")
        self.lab.ctl("fork", "guest", "clone", "--count", "2")
        self.lab.ctl("restore", "guest")
        disk = self.lab.dir / "disk"
        disk.write_bytes(b"on a disk".ljust(4096))
        self.lab.ctl("run", "d", "--mem", "128M", "--disk", disk)
        self.assertEqual(self.lab.text("d", "head -c 9 /dev/vda"), "on a disk")
        self.lab.ctl("rm", "d", "clone-1", "clone-2")
        self.assertGreater(self.counter()[0], 0)

    def test_3_the_units_sandbox_leaves_what_monitoring_needs(self):
        """Metrics are served, and the probes see as much as without the sandbox: also of a guest."""
        inside = self.lab.metrics()
        for name in ("forkd_probes_up", "forkd_probes_info"):
            self.assertEqual(inside[name], self.outside[name], name)
        if 1 in inside["forkd_probes_up"].values():
            self.assertGreater(sum(inside["forkd_vcpu_oncpu_seconds_total"].values()), 0)
            self.assertGreater(sum(inside["forkd_uffd_wait_seconds_count"].values()), 0)
        self.assertEqual(self.lab.get("/healthz"), (200, "ok\n"))

    def test_3_pings_come_in_time(self):
        while self.manager.hear(0):
            pass
        for _ in range(5):
            start = time.monotonic()
            self.manager.until("WATCHDOG=1", WATCHDOG_S)
            self.assertLess(time.monotonic() - start, WATCHDOG_S)

    def test_4_a_forkd_that_hangs_is_started_again_and_the_guest_does_not_notice(self):
        before, pid = self.counter(), self.lab.vm("guest")["pid"]
        session = subprocess.Popen(self.lab.argv("exec", "guest", "--", "sleep", "1000", json_mode=False), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.lab.env)
        self.lab.children.append(session)
        self.lab.text("guest", "until pidof sleep; do :; done")
        self.lab.forkd.send_signal(signal.SIGSTOP)
        while self.manager.hear(0):
            pass
        self.assertIsNone(self.manager.hear(WATCHDOG_S))  # nobody pings: systemd's verdict
        self.assertEqual(self.manager.kill(), -signal.SIGABRT)
        start = time.monotonic()
        self.manager.start()
        ready_s = time.monotonic() - start
        out, err = session.communicate(timeout=60)
        self.assertEqual(session.returncode, 3, (out, err))
        self.assertIn(b"forkd went away", err)
        vm = self.lab.vm("guest")
        self.assertEqual((vm["pid"], vm["state"]), (pid, "running"))
        after = self.counter()
        self.assertGreater(after[0], before[0])
        print(f"forkd was ready again after {ready_s * 1000:.0f} ms; the guest's longest gap until then: {before[1]:.2f} s, "
              f"from then on: {after[1]:.2f} s")
        # a hang of two seconds and a restart: a guest that had waited for forkd would show it
        self.assertLess(after[1], max(WATCHDOG_S, before[1] + 0.5))

    def test_5_stopping_is_told_and_guests_stay(self):
        pid = self.lab.vm("guest")["pid"]
        self.lab.forkd.send_signal(signal.SIGTERM)
        self.manager.until("STOPPING=1", 30)
        self.assertEqual(self.lab.forkd.wait(timeout=60), 0)
        os.kill(pid, 0)
        self.manager.start()
        self.assertEqual(self.lab.vm("guest")["pid"], pid)

    def test_6_children_do_not_speak_for_forkd(self):
        for pid in self.lab.processes():
            if pid != self.lab.forkd.pid:
                env = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
                self.assertNotRegex(env, rb"(NOTIFY_SOCKET|WATCHDOG_\w+)=", pid)

    def test_7_the_shipped_configuration_is_understood(self):
        """As it is installed, every setting that is commented out let in, for the group of this host."""
        text = self.conf.read_text()
        self.assertIn("\ngroup = forkd\n", text)
        conf = re.sub(r"^#(\w+ =)", r"\1", text, flags=re.M).replace("group = forkd", "group = root")
        with Lab(config=conf, setup=False) as other:
            self.assertEqual(other.ctl("ps"), [])

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    if not HEADER.exists():
        print(f"SKIPPED: no {HEADER}")
    else:
        main()
