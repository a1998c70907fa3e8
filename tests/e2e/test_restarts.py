# SPDX-License-Identifier: MIT
"""forkd comes and goes, VMs stay; several forkds live side by side; one directory has one forkd."""

import os
import select
import signal
import subprocess

from case import Case, main
from forkdlab import Lab, bin_dir
from mprpc import Client


class Restarts(Case):
    def test_1_sigterm_leaves_vms_running_and_they_are_taken_back(self):
        self.warm("stays", 2)
        self.lab.ctl("standby", "stays")
        self.lab.ctl("fork", "stays", "clone", "--count", "2")
        self.lab.ctl("run", "fresh", "--mem", "128M")
        self.lab.sh("fresh", "echo kept > /run/kept")
        pids = {v["name"]: v["pid"] for v in self.lab.ctl("ps")}
        self.assertEqual(self.lab.terminate(), 0)
        for name in ("clone-1", "clone-2", "fresh"):
            os.kill(pids[name], 0)
        self.lab.start()
        self.assertEqual({v["name"]: v["pid"] for v in self.lab.ctl("ps")}, pids)
        self.assertEqual(self.lab.text("fresh", "cat /run/kept"), "kept")
        self.assertEqual(self.ask("clone-1", "again")[1], 2)
        self.assertEqual(self.lab.text("fresh", "hostname"), "fresh")

    def test_2_kill_minus_9_too(self):
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        self.lab.start()
        self.assertEqual(self.state("clone-2"), "running")
        self.lab.ctl("standby", "clone-2")
        self.lab.ctl("restore", "clone-2")
        self.assertEqual(self.lab.text("clone-2", "hostname"), "clone-2")

    def test_3_a_vm_that_ended_meanwhile_is_told_as_failed(self):
        pid = self.lab.vm("fresh")["pid"]
        self.lab.terminate()
        fd = os.pidfd_open(pid)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
        self.lab.start()
        vm = self.lab.vm("fresh")
        self.assertEqual(vm["state"], "failed")
        self.assertRegex(vm["reason"], "away|gone")

    def test_4_a_second_forkd_on_the_same_directory_says_so(self):
        p = subprocess.run([bin_dir() / "forkd", "--state-dir", self.lab.state, "--run-dir", self.lab.dir / "run2"],
                           capture_output=True, timeout=30)
        self.assertEqual(p.returncode, 1)
        self.assertIn(b"another forkd uses", p.stderr)
        self.assertEqual(self.state("clone-1"), "running")

    def test_4_nor_does_one_share_its_run_directory_or_take_one_that_is_open_to_others(self):
        p = subprocess.run([bin_dir() / "forkd", "--state-dir", self.lab.dir / "state2", "--run-dir", self.lab.run_dir],
                           capture_output=True, timeout=30)
        self.assertEqual(p.returncode, 1)
        self.assertIn(b"another forkd uses the run directory", p.stderr)
        open_dir = self.lab.dir / "open"
        open_dir.mkdir()
        open_dir.chmod(0o777)
        p = subprocess.run([bin_dir() / "forkd", "--state-dir", self.lab.dir / "state2", "--run-dir", open_dir],
                           capture_output=True, timeout=30)
        self.assertEqual(p.returncode, 1)
        self.assertIn(b"others may write", p.stderr)
        self.assertEqual(self.state("clone-1"), "running")

    def second(self, state, run):
        """Another forkd on these directories: what it says when it is refused."""
        p = subprocess.run([bin_dir() / "forkd", "--state-dir", state, "--run-dir", run], capture_output=True, timeout=30)
        self.assertEqual(p.returncode, 1, p.stderr)
        return p.stderr.decode()

    def test_4_the_same_directory_by_another_name_is_the_same(self):
        link = self.lab.dir / "link"
        link.symlink_to(self.lab.dir)
        self.assertIn("another forkd uses the state directory", self.second(link / "state", self.lab.dir / "run2"))
        self.assertIn("another forkd uses the run directory", self.second(self.lab.dir / "state2", link / "run"))
        # the other order: the first came by the link; its VMs are the ones that were there, and in the same cgroup
        before = self.lab.vm("clone-1")
        self.lab.terminate()
        state, run = self.lab.state, self.lab.run_dir
        try:
            self.lab.state, self.lab.run_dir = link / "state", link / "run"
            self.lab.start()
            self.assertEqual(self.lab.vm("clone-1")["pid"], before["pid"])
            self.assertIn("another forkd uses the state directory", self.second(state, self.lab.dir / "run2"))
            self.assertIn("another forkd uses the run directory", self.second(self.lab.dir / "state2", run))
            with Client(self.lab.socket) as c:
                info = c.call("info")
            self.assertEqual((info["state_dir"], info["run_dir"]), (str(state), str(run)))
        finally:
            self.lab.state, self.lab.run_dir = state, run
        self.assertEqual(self.lab.text("clone-1", "hostname"), "clone-1")

    def test_4_locks_of_a_dead_forkd_are_no_obstacle(self):
        """The files stay when a forkd is killed; what counts is who holds the lock."""
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        self.assertTrue((self.lab.state / "lock").exists() and (self.lab.run_dir / "forkd.lock").exists())
        self.assertTrue(self.lab.socket.is_socket())
        self.lab.start()
        self.assertEqual(self.state("clone-1"), "running")

    def test_5_forkds_side_by_side_do_not_touch_each_other(self):
        with Lab(setup=False) as other:
            other.ctl("run", "clone-1", "--mem", "128M")
            other.ctl("rm", "--all")
            other.end()
            self.assertEqual(other.leftovers(), [])
        self.assertEqual(self.ask("clone-1", "still")[1], 3)

    def test_6_pager_lost_guests_die(self):
        pager = self.lab.ctl("pager", "status")["pid"]
        fd = os.pidfd_open(self.lab.vm("clone-1")["pid"])
        os.kill(pager, signal.SIGKILL)

        self.assertTrue(select.select([fd], [], [], 5)[0], "the guest outlived its pager by more than 5 s")
        os.close(fd)
        for _ in range(100):
            vm = self.lab.vm("clone-1")
            if vm["busy"] is None:
                break
        self.assertEqual((vm["state"], vm["reason"]), ("failed", "pager-lost"))
        # and forkd goes on with a new one
        self.lab.ctl("fork", "stays", "later")
        self.assertEqual(self.ask("later", "x")[1], 2)

    def test_7_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
