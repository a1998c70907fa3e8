# SPDX-License-Identifier: MIT
"""run, pause, resume, standby, restore, stop, rm: each state, each field of the interface."""

import os
import subprocess
import time

from case import Case, main


class Lifecycle(Case):
    def test_1_run_tells_what_it_made(self):
        vm = self.lab.ctl("run", "one", "--mem", "128M", "--vcpus", "2", "--accel", "tcg")
        self.assertEqual((vm["name"], vm["state"]), ("one", "running"))
        self.assertGreater(vm["boot_ms"], 0)
        seen = self.lab.vm("one")
        for field in ("name", "id", "state", "reason", "vmm", "accel", "pid", "mem_bytes", "snapshot", "parent", "generation",
                      "guest_ip", "host_ip", "on_pager_loss"):
            self.assertIn(field, seen)
        self.assertEqual((seen["accel"], seen["mem_bytes"], seen["generation"]), ("tcg", 128 << 20, 0))
        self.assertEqual(self.lab.text("one", "nproc"), "2")
        self.assertEqual(self.lab.text("one", "hostname"), "one")
        self.assertEqual([v["name"] for v in self.lab.ctl("ps")], ["one"])

    def test_2_pause_and_resume(self):
        self.lab.ctl("pause", "one")
        self.assertEqual(self.state("one"), "paused")
        stopped = self.lab.sh("one", "true", check=False)
        self.assertEqual(stopped.code, 125)
        self.assertIn(b"paused", stopped.err)
        self.lab.ctl("resume", "one")
        self.assertEqual(self.lab.text("one", "echo alive"), "alive")

    def test_3_standby_frees_everything_and_restore_brings_it_back(self):
        before = self.lab.vm("one")
        saved = self.lab.ctl("standby", "one", "--tag", "first")
        for field in ("snapshot", "pause_ms", "total_ms", "dirty_bytes", "stored_bytes", "durable"):
            self.assertIn(field, saved)
        self.assertTrue(saved["durable"])
        self.assertLess(saved["stored_bytes"], before["mem_bytes"] / 2)
        down = self.lab.vm("one")
        self.assertEqual((down["state"], down["pid"], down["snapshot"]), ("standby", None, saved["snapshot"]))
        with self.assertRaises(ProcessLookupError):
            os.kill(before["pid"], 0)
        back = self.lab.ctl("restore", "one")
        for field in ("name", "total_ms", "load_ms", "ack_ms"):
            self.assertIn(field, back)
        self.assertEqual(self.lab.text("one", "cat /proc/sys/kernel/hostname"), "one")
        self.assertEqual(self.lab.vm("one")["generation"], 1)

    def test_4_snapshot_show(self):
        snap = self.lab.ctl("snapshot", "show", "first")
        for field in ("id", "tag", "path", "parent", "depth", "created", "durable", "ram_bytes", "dirty_bytes", "stored_bytes",
                      "unique_bytes", "disks", "vmm", "vmm_version", "pages"):
            self.assertIn(field, snap)
        self.assertEqual(snap["pages"]["zero"] + snap["pages"]["stored"], snap["ram_bytes"] // 4096)
        self.assertLess(abs(snap["created"] - time.time()), 300)
        self.assertTrue(self.lab.ctl("snapshot", "verify", "first")["ok"])

    def test_5_clock_is_right_after_standby(self):
        self.lab.ctl("standby", "one")
        self.lab.ctl("restore", "one")
        self.assertLess(abs(int(self.lab.text("one", "date +%s")) - time.time()), 5)

    def test_6_stop_and_rm(self):
        self.lab.ctl("stop", "one")
        vm = self.lab.vm("one")
        self.assertEqual((vm["state"], vm["pid"]), ("stopped", None))
        self.lab.ctl("rm", "one")
        self.refused("inspect", "one", code="not-found")
        self.assertEqual(self.lab.ctl("ps"), [])

    def test_7_logs_show_the_console(self):
        self.lab.ctl("run", "talks", "--mem", "128M")
        out = subprocess.run(self.lab.argv("logs", "talks", json_mode=False), capture_output=True, check=True).stdout
        self.assertIn(b"forkd-agent: ready", out)
        self.lab.ctl("rm", "talks")


if __name__ == "__main__":
    main()
