# SPDX-License-Identifier: MIT
"""VMMs and the pager have what they need and nothing else. A program that tries all it can think of runs in QEMU's place, in
QEMU's jail, before it goes on as QEMU (docs/security.md)."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import unittest

from case import Case, MIB, main, sanitized
from forkdlab import Lab, confinable

HOSTILE = pathlib.Path(__file__).with_name("hostile_vmm.py")
NOBODYS = range(1879048192, 2147352576)  # systemd's docs/UIDS-GIDS.md
SEEN = ["bin", "dev", "etc", "lib", "lib32", "lib64", "proc", "usr"]
REFUSED = {"ENOENT", "EPERM", "EACCES", "ESRCH", "EROFS", "ENOSYS", "EAFNOSUPPORT", "EBADF", "EINVAL"}


def status(pid):
    """/proc/<pid>/status, by its keys."""
    return {k: v.split() for k, _, v in (x.partition(":") for x in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())}


def skip_if_not_confinable():
    if not confinable() and os.environ.get("FORKD_TEST_NO_SKIP") != "1":
        print("SKIPPED: this host cannot confine VMMs: forkctl doctor tells why")
        raise unittest.SkipTest("no jail")


class Jail(Case):
    lab_options = {"store": "1G"}

    @classmethod
    def setUpClass(cls):
        skip_if_not_confinable()
        super().setUpClass()
        disk = cls.lab.dir / "disk"
        with open(disk, "wb") as f:
            f.truncate(16 * MIB)
        cls.lab.ctl("run", "base", "--mem", "128M", "--disk", disk)

    # ---- from outside ----

    def check_confined(self, pid, seccomp="2"):
        s = status(pid)
        uid = int(s["Uid"][0])
        self.assertIn(uid, NOBODYS)
        self.assertEqual(set(s["Uid"] + s["Gid"]), {str(uid)})
        self.assertEqual(s["Groups"], [])
        for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertEqual(int(s[key][0], 16), 0, key)
        self.assertEqual((s["NoNewPrivs"], s["Seccomp"]), (["1"], [seccomp]))
        return uid

    def namespaces(self, pid):
        return {n: os.readlink(f"/proc/{pid}/ns/{n}") for n in ("mnt", "pid", "net", "ipc", "uts")}

    def test_vmms_from_outside(self):
        self.lab.ctl("fork", "base", "c1")
        pids = [self.lab.vm(n)["pid"] for n in ("base", "c1")]
        uids = [self.check_confined(p) for p in pids]
        self.assertNotEqual(*uids)
        ours, one, two = (self.namespaces(p) for p in ("self", *pids))
        for kind in ours:
            self.assertNotEqual(one[kind], ours[kind])
            if kind != "net":  # is empty, and common to all
                self.assertNotEqual(one[kind], two[kind])
        for pid in pids:
            self.assertEqual(sorted(os.listdir(f"/proc/{pid}/root")), [n for n in SEEN if n in ("dev", "etc", "proc", "usr")
                             or os.path.lexists(f"/{n}")])
            self.assertEqual(status(pid)["NSpid"][-1], "1")
            mounts = pathlib.Path(f"/proc/{pid}/mounts").read_text().splitlines()
            self.assertEqual([m for m in mounts if "ro" not in m.split()[3].split(",")], [])
            limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
            self.assertRegex(limits, r"Max core file size +0 +0 ")
            cmdline = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            self.assertNotIn(str(self.lab.dir), cmdline)
        # No directory or file of forkd's is one that these users could enter or read.
        for d in (self.lab.state / "vms", self.lab.run_dir):
            self.assertEqual(os.stat(d).st_mode & 0o007, 0)
        self.lab.ctl("rm", "c1")

    def test_the_pager_from_outside(self):
        self.lab.ctl("fork", "base", "c2")
        pid = next(p for p in self.lab.processes() if b"uffd-pager" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes())
        seccomp = "0" if sanitized() else "2"  # a sanitizer's runtime calls what the list has not
        self.check_confined(pid, seccomp)
        tasks = [p.name for p in pathlib.Path(f"/proc/{pid}/task").iterdir()]
        self.assertGreater(len(tasks), 3)
        for t in tasks:  # capabilities and filters are each thread's own
            self.check_confined(f"{pid}/task/{t}", seccomp)
        self.assertEqual(os.listdir(f"/proc/{pid}/root"), ["proc"])
        nice = [int((pathlib.Path(f"/proc/{pid}/task/{t}/stat").read_text().rsplit(")", 1)[1].split())[16]) for t in tasks
                if (pathlib.Path(f"/proc/{pid}/task/{t}/comm").read_text().startswith("fault-"))]
        self.assertTrue(nice)
        self.assertEqual(set(nice), {-10})
        # The image's memory is the pager's alone: no other user opens it again.
        fd = next(f for f in pathlib.Path(f"/proc/{pid}/fd").iterdir() if "memfd:forkd-image" in os.readlink(f))
        self.assertEqual((os.stat(fd).st_mode & 0o777, os.stat(fd).st_uid), (0o400, int(status(pid)["Uid"][0])))
        self.lab.ctl("rm", "c2")

    # ---- from inside ----

    def reports(self, name):
        text = (self.lab.state / "vms" / self.lab.vm(name)["id"] / "vmm.log").read_text()
        return [json.loads(x[5:]) for x in text.splitlines() if x.startswith("JAIL ")]

    def with_hostile(self):
        self.lab.ctl("fork", "base", "other")  # has a pager
        base = self.lab.vm("base")
        pager = next(p for p in self.lab.processes() if b"uffd-pager" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes())
        disk = next((self.lab.state / "store" / "vms" / base["id"]).glob("disk-0.img"))
        targets = {
            "pids": {"forkd": self.lab.forkd.pid, "the pager": pager, "another VMM": base["pid"]},
            "paths": {"another VM's disk": str(disk), "the state directory": str(self.lab.state),
                      "a record": str(self.lab.state / "vms" / base["id"] / "record"), "the configuration": str(self.lab.conf),
                      "/etc/shadow": "/etc/shadow", "/etc/passwd": "/etc/passwd", "the host's root": "/proc/1/root/etc/shadow",
                      "/dev/mem": "/dev/mem", "/dev/userfaultfd": "/dev/userfaultfd", "/sys": "/sys"},
            "sockets": [str(self.lab.socket), str(self.lab.run_dir / "pager.sock"),
                        str(self.lab.run_dir / "vms" / base["id"] / "qmp.sock"),
                        str(self.lab.run_dir / "vms" / base["id"] / "agent.sock")],
        }
        path = self.lab.dir / "qemu-of-ours"
        path.write_text(re.sub(r"^TARGETS = .*$", "TARGETS = " + repr(targets).replace("\\", "\\\\"), HOSTILE.read_text(), flags=re.M))
        path.chmod(0o755)
        self.lab.env["FORKD_QEMU"] = str(path)
        self.lab.terminate()
        self.lab.start()

    def check_report(self, report):
        self.assertEqual([(k, v) for k, v in report["got"].items() if v not in REFUSED], [])
        self.assertEqual([n for n in report["root"] if n not in (*SEEN, self.lab.dir.parts[1])], [])
        self.assertEqual(report["dev"], [n for n in ("kvm", "null", "random", "urandom", "zero") if os.path.exists(f"/dev/{n}")])
        self.assertEqual(report["processes"], [1])
        self.assertEqual([n for n in report["etc"] if n not in ("alternatives", "ld.so.cache")], [])
        self.assertIn(report["setuid"], ("still itself", None))
        s = report["status"]
        self.assertEqual({int(s[k][0], 16) for k in s if k.startswith("Cap")}, {0})
        self.assertEqual((s["NoNewPrivs"], s["Seccomp"]), (["1"], ["2"]))

    def test_a_vmm_that_was_taken_over(self):
        if not os.path.exists("/usr/bin/python3"):
            self.skipTest("no /usr/bin/python3 for the program that tries it")
        try:
            self.with_hostile()
            self.lab.ctl("run", "evil", "--mem", "128M")
            self.lab.ctl("fork", "evil", "worse")
            booted, clone = self.reports("evil"), self.reports("worse")
            self.assertEqual((len(booted), len(clone)), (1, 1))
            self.check_report(booted[0])
            self.check_report(clone[0])
            self.assertEqual(clone[0]["got"]["open the image again, for writing"], "EACCES")
            self.assertEqual(clone[0]["got"]["write to the image"], "EBADF")
            self.assertEqual({v for k, v in clone[0]["got"].items() if k.startswith("signal ")}, {"ESRCH"})
            # It was a QEMU like any other after that.
            self.assertEqual(self.lab.text("worse", "echo on"), "on")
            self.lab.ctl("rm", "evil", "worse", "other")
        finally:
            self.lab.env.pop("FORKD_QEMU", None)
            self.lab.terminate()
            self.lab.start()

    # ---- settings, and a forkd that comes back ----

    def test_the_user_stays_with_the_vm(self):
        self.lab.ctl("fork", "base", "c3")
        uid = self.check_confined(self.lab.vm("c3")["pid"])
        self.lab.forkd.kill()
        self.lab.forkd.wait()
        self.lab.start()
        self.assertEqual(self.check_confined(self.lab.vm("c3")["pid"]), uid)
        self.lab.ctl("fork", "base", "c4")
        self.assertNotIn(self.check_confined(self.lab.vm("c4")["pid"]),
                         (uid, self.check_confined(self.lab.vm("base")["pid"])))
        self.assertEqual(self.lab.text("c3", "echo on"), "on")
        self.lab.ctl("rm", "c3", "c4")

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [], self.lab.log_path.read_text()[-1500:])


class Settings(Case):
    lab_options = {"config": "[security]\njail = off\n"}

    def test_without_a_jail(self):
        self.lab.ctl("run", "plain", "--mem", "128M")
        self.lab.ctl("fork", "plain", "c")
        s = status(self.lab.vm("c")["pid"])
        self.assertEqual((s["Uid"][0], s["NoNewPrivs"], s["Seccomp"]), ("0", ["1"], ["2"]))
        self.assertEqual(self.lab.text("c", "echo on"), "on")
        self.lab.ctl("rm", "--all")

    def test_users_as_configured_and_paths_that_are_shown(self):
        other = self.lab.dir / "other"
        (other / "bin").mkdir(parents=True)
        shutil.copy("/usr/bin/qemu-system-x86_64", other / "bin" / "qemu")
        for where in ("lib", "share"):  # it looks for its modules and firmware beside itself
            (other / where).symlink_to(f"/usr/{where}")
        with Lab(setup=True, store="512M", config=f"[security]\nuid_base = 1000000\nvisible = {other}\n",
                 env={"FORKD_QEMU": str(other / "bin" / "qemu")}) as lab:
            lab.ctl("run", "a", "--mem", "128M")
            pid = lab.vm("a")["pid"]
            self.assertEqual(status(pid)["Uid"][0], "1000016")
            self.assertEqual(os.listdir(f"/proc/{pid}/root{other}/bin"), ["qemu"])
            self.assertFalse(os.path.exists(f"/proc/{pid}/root{lab.state}"))
            lab.ctl("rm", "--all")
        with Lab(setup=True, store="512M", config="[security]\nvisible = /no/such/path\n") as lab:
            p = subprocess.run(lab.argv("run", "a", "--mem", "128M"), capture_output=True, text=True)
            self.assertEqual(p.returncode, 1)
            self.assertIn("/no/such/path", p.stdout)


if __name__ == "__main__":
    main()
