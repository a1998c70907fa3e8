# SPDX-License-Identifier: MIT
"""The unit file by systemd's own judges, and the things in it that a well-meant change would break."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lib"))
from unitfile import Unit, expand  # noqa: E402

UNIT = pathlib.Path(os.environ.get("FORKD_UNIT", ROOT / "build" / "release" / "packaging" / "forkd.service"))
BIN = pathlib.Path(os.environ.get("FORKD_BIN_DIR", ROOT / "build" / "bin"))
EXPOSURE = 60  # tenths; it is that, and most of what is missing needs a mount namespace: see the unit


class UnitFile(unittest.TestCase):
    def setUp(self):
        self.unit = Unit(UNIT)

    def analyze(self, *args):
        if not shutil.which("systemd-analyze"):
            self.skipTest("no systemd-analyze")
        return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True, timeout=30)

    def staged(self):
        """The unit with a program that is there."""
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        path = pathlib.Path(d.name) / "forkd.service"
        path.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={BIN / 'forkd'}", UNIT.read_text(), flags=re.M))
        return path

    def test_systemd_understands_all_of_it(self):
        p = self.analyze("verify", "--man=no", "--recursive-errors=no", str(self.staged()))
        ours = [x for x in (p.stdout + p.stderr).splitlines() if "forkd" in x]
        self.assertEqual((p.returncode, ours), (0, []), p.stderr)

    def test_exposure(self):
        p = self.analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", str(self.staged()))
        print((p.stdout.strip().splitlines() or [p.stderr])[-1])
        self.assertEqual(p.returncode, 0, p.stdout)

    def test_no_mount_namespace_of_its_own(self):
        """forkd's mount of the store must be its successor's, too: the unit says why."""
        namespaced = """ProtectSystem ProtectHome PrivateTmp PrivateDevices PrivateMounts ProtectKernelTunables ProtectKernelModules
            ProtectKernelLogs ProtectControlGroups ProtectProc ProcSubset ReadOnlyPaths ReadWritePaths InaccessiblePaths ExecPaths
            NoExecPaths TemporaryFileSystem BindPaths BindReadOnlyPaths MountFlags RootDirectory RootImage DynamicUser
            PrivateUsers PrivateNetwork PrivateIPC MountImages ExtensionImages LogNamespace""".split()
        self.assertEqual([n for n in namespaced if n in self.unit.settings], [])

    def test_what_would_end_guests_is_not_there(self):
        self.assertEqual(self.unit.get("KillMode"), "process")
        self.assertEqual(self.unit.get("RuntimeDirectoryPreserve"), "yes")
        self.assertEqual(self.unit.get("OOMPolicy"), "continue")
        for name in ("MemoryDenyWriteExecute", "RestrictNamespaces", "ExecStop", "PIDFile"):
            self.assertNotIn(name, self.unit.settings)

    def test_no_network_but_loopback(self):
        self.assertEqual(set(self.unit.words("RestrictAddressFamilies")), {"AF_UNIX", "AF_INET", "AF_INET6"})
        self.assertEqual(self.unit.get("IPAddressDeny"), "any")
        self.assertEqual(self.unit.words("IPAddressAllow"), ["localhost"])

    def test_probes_are_let(self):
        """They are programs in the kernel: the capabilities for that, and the two calls that load and attach them."""
        self.assertLessEqual({"CAP_BPF", "CAP_PERFMON"}, set(self.unit.words("CapabilityBoundingSet")))
        first, *rest = self.unit.words("SystemCallFilter")
        self.assertTrue(first.startswith("~"))
        if shutil.which("systemd-analyze"):
            self.assertFalse({"bpf", "perf_event_open"} & set(expand([first[1:], *rest])))

    def test_every_capability_has_its_reason(self):
        comments = " ".join(x for x in UNIT.read_text().splitlines() if x.startswith("#"))
        for cap in self.unit.words("CapabilityBoundingSet"):
            self.assertRegex(comments, rf"\b{cap.removeprefix('CAP_')}\b")

    def test_every_setting_of_forkd_is_told_in_every_place(self):
        source = (ROOT / "forkd" / "config.c").read_text()
        names = set(re.findall(r'\{ "(?:\w+)", "(\w+)", offsetof', source)) | set(re.findall(r'strcmp\(name, "(\w+)"\)', source))
        self.assertGreater(len(names), 10)
        conf = (ROOT / "packaging" / "forkd.conf").read_text()
        self.assertEqual(names, set(re.findall(r"^#?(\w+) =", conf, re.M)))
        for place in ("docs/operations.md", "docs/man/forkd.8"):
            text = (ROOT / place).read_text()
            self.assertEqual([n for n in sorted(names) if n not in text], [], place)


if __name__ == "__main__":
    unittest.main(verbosity=2)
