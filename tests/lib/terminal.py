# SPDX-License-Identifier: MIT
"""A terminal for a program under test: a pty, and what a user would see on it.

Knows what programs that are told TERM=xterm send to draw a screen of text: moving, erasing, inserting and deleting, repeating,
scrolling regions, the alternate screen. Looks of cells are not kept; anything unknown fails the test.
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

PARTS = re.compile(r"\x1b\[([?>!]?)([0-9;]*)([@-~])|\x1b[()][0-9A-B]|\x1b[=>78MDE]|\x1b\][^\x07]*\x07|[\x07\x08\t\n\r\x0e\x0f]|[^\x00-\x1f\x7f]", re.S)
PARTIAL = re.compile(r"\x1b(\[[?>!]?[0-9;]*|[()]|\][^\x07]*)?$")


class Screen:
    def __init__(self, rows, cols):
        self.resize(rows, cols)
        self.alternate, self.cursor, self.rest = False, True, ""

    def resize(self, rows, cols):
        self.rows, self.cols = rows, cols
        self.cells = [[" "] * cols for _ in range(rows)]
        self.row = self.col = 0
        self.top, self.bottom = 0, rows - 1
        self.last = " "

    def lines(self):
        return ["".join(r).rstrip() for r in self.cells]

    def feed(self, text):
        text, self.rest = self.rest + text, ""
        at = 0
        while at < len(text):
            m = PARTS.match(text, at)
            if not m:
                if PARTIAL.match(text, at):
                    self.rest = text[at:]
                    return
                raise AssertionError(f"the terminal does not know {text[at:at + 20]!r}")
            at = m.end()
            if m.group(3):
                self.control(m.group(1), [int(n) if n else 0 for n in m.group(2).split(";")], m.group(3))
            else:
                self.plain(m.group(0))

    def put(self, c):
        if self.col >= self.cols:
            self.col = 0
            self.down()
        self.cells[self.row][self.col] = self.last = c
        self.col += 1

    def scroll(self, up):
        if up:
            self.cells.insert(self.bottom + 1, [" "] * self.cols)
            del self.cells[self.top]
        else:
            del self.cells[self.bottom]
            self.cells.insert(self.top, [" "] * self.cols)

    def down(self):
        if self.row == self.bottom:
            self.scroll(up=True)
        else:
            self.row = min(self.row + 1, self.rows - 1)

    def plain(self, s):
        if s == "\r":
            self.col = 0
        elif s in ("\n", "\x1bD"):
            self.down()
        elif s == "\x08":
            self.col = max(min(self.col, self.cols - 1) - 1, 0)
        elif s == "\t":
            self.col = min(self.col // 8 * 8 + 8, self.cols - 1)
        elif s == "\x1bM":
            if self.row == self.top:
                self.scroll(up=False)
            else:
                self.row = max(self.row - 1, 0)
        elif len(s) == 1 and ord(s) >= 0x20:
            self.put(s)

    def control(self, private, args, final):
        n = max(args[0], 1)
        row = self.cells[self.row]
        if private:
            if final in "hl":
                if 1049 in args:
                    self.alternate = final == "h"
                if 25 in args:
                    self.cursor = final == "h"
        elif final in "Hf":
            self.row = min(n - 1, self.rows - 1)
            self.col = min(max(args[1] if len(args) > 1 else 1, 1) - 1, self.cols - 1)
        elif final in "ABCDGd":
            self.row += {"A": -n, "B": n}.get(final, 0)
            self.col += {"C": n, "D": -n}.get(final, 0)
            self.col = n - 1 if final == "G" else self.col
            self.row = n - 1 if final == "d" else self.row
            self.row, self.col = min(max(self.row, 0), self.rows - 1), min(max(self.col, 0), self.cols - 1)
        elif final == "J":
            first, last = {0: (self.row * self.cols + self.col, self.rows * self.cols), 1: (0, self.row * self.cols + self.col + 1),
                           2: (0, self.rows * self.cols)}[args[0]]
            for i in range(first, last):
                self.cells[i // self.cols][i % self.cols] = " "
        elif final == "K":
            first, last = {0: (self.col, self.cols), 1: (0, self.col + 1), 2: (0, self.cols)}[args[0]]
            row[first:last] = [" "] * (min(last, self.cols) - first)
        elif final == "X":
            row[self.col:self.col + n] = [" "] * len(row[self.col:self.col + n])
        elif final == "P":
            self.cells[self.row] = (row[:self.col] + row[self.col + n:] + [" "] * n)[:self.cols]
        elif final == "@":
            self.cells[self.row] = (row[:self.col] + [" "] * n + row[self.col:])[:self.cols]
        elif final == "b":
            for _ in range(n):
                self.put(self.last)
        elif final in "LM":
            for _ in range(min(n, self.bottom - self.row + 1)):
                if final == "L":
                    del self.cells[self.bottom]
                    self.cells.insert(self.row, [" "] * self.cols)
                else:
                    self.cells.insert(self.bottom + 1, [" "] * self.cols)
                    del self.cells[self.row]
        elif final in "ST":
            for _ in range(min(n, self.bottom - self.top + 1)):
                self.scroll(final == "S")
        elif final == "r":
            self.top, self.bottom = n - 1, (args[1] if len(args) > 1 and args[1] else self.rows) - 1
            self.row = self.col = 0
        elif final not in "mtlh":
            raise AssertionError(f"the terminal does not know CSI {args} {final}")


class Terminal:
    """Runs a program on a terminal of its own: it leads a session there."""

    def __init__(self, argv, rows=24, cols=80, env=None, term="xterm"):
        self.screen, self.raw = Screen(rows, cols), b""
        self.master, slave = pty.openpty()
        self.size(rows, cols)
        self.before = termios.tcgetattr(slave)
        self.slave = slave  # kept, so that its settings can be read when the program is gone

        def lead():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.p = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, preexec_fn=lead,
                                  env=dict(os.environ, LC_ALL="C.UTF-8", **(env or {}), TERM=term))
        self.text = b""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.p.poll() is None:
            self.p.kill()
        self.p.wait()
        os.close(self.master)
        os.close(self.slave)

    def size(self, rows, cols):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def resize(self, rows, cols):
        self.screen.resize(rows, cols)
        self.size(rows, cols)
        self.p.send_signal(signal.SIGWINCH)

    def press(self, keys):
        os.write(self.master, keys.encode())

    def read(self, timeout):
        """Takes what comes within @timeout; False: nothing did."""
        if not select.select([self.master], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.raw += data
        self.text += data
        end = len(self.text)
        while end > 0 and len(self.text) - end < 4:  # not half a character
            try:
                part = self.text[:end].decode()
                break
            except UnicodeDecodeError:
                end -= 1
        else:
            part, end = self.text.decode(errors="replace"), len(self.text)
        self.text = self.text[end:]
        self.screen.feed(part)
        return bool(data)

    def until(self, what, timeout=30):
        """Reads until @what, a text on the screen or a function of its lines, is true."""
        end = time.monotonic() + timeout
        test = what if callable(what) else lambda lines: any(what in line for line in lines)
        while not test(self.screen.lines()):
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{what} does not come to pass; the screen:\n" + "\n".join(self.screen.lines()))
            self.read(left)
        return self.screen.lines()

    def wait(self, timeout=30):
        """Until it has ended; its wait status as subprocess has it."""
        end = time.monotonic() + timeout
        while self.p.poll() is None:
            if time.monotonic() > end:
                raise AssertionError("the program does not end; the screen:\n" + "\n".join(self.screen.lines()))
            self.read(0.05)
        while self.read(0):
            pass
        return self.p.returncode

    def is_as_before(self):
        return termios.tcgetattr(self.slave) == self.before and not self.screen.alternate and self.screen.cursor
