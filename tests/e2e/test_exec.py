# SPDX-License-Identifier: MIT
"""Commands in a guest: streams, exit codes, signals, timeouts, a terminal, files."""

import fcntl
import hashlib
import json
import os
import pty
import struct
import subprocess
import termios

from case import Case, MIB, main


class Exec(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.ctl("run", "x", "--mem", "128M")

    def exec_raw(self, *args, **kw):
        return subprocess.run(self.lab.argv("exec", *args, json_mode=False), capture_output=True, timeout=120, **kw)

    def test_exit_codes(self):
        for code in (0, 1, 7, 124, 255):
            self.assertEqual(self.lab.sh("x", f"exit {code}", check=False).code, code)
        self.assertEqual(self.lab.sh("x", "kill -9 $$", check=False).code, 137)
        self.assertEqual(self.lab.sh("x", "kill -15 $$", check=False).code, 143)
        self.assertEqual(self.exec_raw("x", "--", "/no/such/program").returncode, 125)
        self.assertEqual(self.exec_raw("nobody", "--", "true").returncode, 125)

    def test_stdout_and_stderr_are_apart(self):
        r = self.lab.sh("x", "echo out; echo err >&2; echo out2")
        self.assertEqual((r.out, r.err), (b"out\nout2\n", b"err\n"))

    def test_arguments_arrive_as_they_are(self):
        args = ["a b", "", "'\"$x`", "*", "ünï", "-n", "\n"]
        out = self.exec_raw("x", "--", "sh", "-c", 'for a in "$@"; do printf "<%s>" "$a"; done', "sh", *args).stdout
        self.assertEqual(out.decode(), "".join(f"<{a}>" for a in args))

    def test_stdin_and_large_streams(self):
        data = os.urandom(12 * MIB)
        r = self.lab.sh("x", "cat", stdin=data)
        self.assertEqual(hashlib.sha256(r.out).digest(), hashlib.sha256(data).digest())
        self.assertEqual(self.lab.sh("x", "wc -c").out.strip(), b"0")

    def test_timeout(self):
        r = self.exec_raw("x", "--timeout", "1", "--", "sleep", "60")
        self.assertNotEqual(r.returncode, 0)
        self.assertIn(b"time", r.stderr.lower())

    def test_background_child_does_not_hold_the_command(self):
        self.lab.sh("x", "sleep 100 & echo done", timeout=30)

    def test_json_prints_lines(self):
        p = subprocess.run(self.lab.argv("exec", "x", "--", "sh", "-c", "echo hi; exit 3"), capture_output=True, timeout=60)
        lines = [json.loads(line) for line in p.stdout.splitlines()]
        self.assertEqual(lines[-1]["exit_code"], 3)
        self.assertEqual(p.returncode, 3)
        self.assertEqual("".join(line.get("data", "") for line in lines if line.get("stream") == "stdout"), "hi\n")

    def test_terminal(self):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
        p = subprocess.Popen(self.lab.argv("exec", "x", "-i", "-t", "--", "sh", "-c", "stty size; tty; read l; echo got:$l; exit 5",
                                           json_mode=False), stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        out = b""
        while b"/dev/" not in out:
            out += os.read(master, 4096)
        os.write(master, b"hello\r")
        try:
            while True:
                chunk = os.read(master, 4096)
                if not chunk:
                    break
                out += chunk
        except OSError:
            pass
        self.assertEqual(p.wait(timeout=30), 5)
        os.close(master)
        self.assertIn(b"33 111", out)
        self.assertIn(b"got:hello", out)

    def test_files_there_and_back(self):
        data = os.urandom(5 * MIB + 123)
        src, dst = self.lab.dir / "src", self.lab.dir / "dst"
        src.write_bytes(data)
        src.chmod(0o750)
        self.lab.ctl("cp", src, "x:/run/file")
        self.assertEqual(self.lab.text("x", "sha256sum < /run/file").split()[0], hashlib.sha256(data).hexdigest())
        self.assertEqual(self.lab.text("x", "stat -c %a /run/file"), "750")
        self.lab.ctl("cp", "x:/run/file", dst)
        self.assertEqual(dst.read_bytes(), data)
        self.refused("cp", "x:/no/such/file", dst)
        self.refused("cp", src, "x:/no/such/dir/file")
        self.assertEqual(dst.read_bytes(), data)

    def test_a_client_that_goes_away_takes_its_command_along(self):
        p = subprocess.Popen(self.lab.argv("exec", "x", "--", "sh", "-c", "echo on; exec sleep 4321", json_mode=False),
                             stdout=subprocess.PIPE)
        self.assertEqual(p.stdout.readline(), b"on\n")
        p.kill()
        p.wait()
        p.stdout.close()
        self.lab.sh("x", "while pgrep -f 'sleep 4321' | grep -qv $$; do :; done", timeout=20)


if __name__ == "__main__":
    main()
