# SPDX-License-Identifier: MIT
"""forkd's wire with a client that is not ours and with what no client should send: a forkd without guest assets, so
that every build, also a sanitized one, can afford it. test_bad_input does the same to a forkd with VMs."""

import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))

from forkdlab import Lab


class Interop(unittest.TestCase):
    def test_interop(self):
        script = pathlib.Path(__file__).with_name("rpc_interop.py")
        with Lab(setup=False) as lab:
            def descriptors():
                lab.ctl("version")
                return len(os.listdir(f"/proc/{lab.forkd.pid}/fd"))

            for _ in range(2):
                before = descriptors()
                p = subprocess.run(["/usr/bin/python3", script, lab.socket], capture_output=True, text=True, timeout=100)
                self.assertEqual(p.returncode, 0, p.stdout + p.stderr)
                # Connections that were just closed may still be on their way out of the loop.
                self.assertLessEqual(descriptors(), before + 2)
            self.assertEqual(lab.terminate(), 0)


if __name__ == "__main__":
    unittest.main()
