#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""docs/images/dashboard.png: forkd's Grafana dashboard, drawn from a real run that a real Prometheus has recorded.

    tools/dashboard_picture.py OUT.png [--rows N] [--seconds S] [--svg OUT.svg]

A private forkd, guests that work, go on standby and come back; then one that crashes and burns its core, and a pager that is stopped for
some seconds below the others. Needs root, QEMU, what tools/packages-test.txt lists, and Debian's package of Prometheus, which is
fetched and not installed.
"""

import argparse
import os
import pathlib
import re
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lib"))
from browser import Browser  # noqa: E402
from forkdlab import Lab  # noqa: E402
from grafana import DASHBOARDS, Dashboard, substitute  # noqa: E402
from prometheus import Prometheus  # noqa: E402
import board_svg  # noqa: E402
import png_palette  # noqa: E402

CONFIG = "[metrics]\nlisten = 127.0.0.1:0\n\n[monitor]\nwindow_ms = 1000\n\n[pager]\nheartbeat_ms = 60000\n"
SCRAPE_S = 1
READ = "sha256sum /run/data > /dev/null"
# Computes for a while, sleeps for a while, and reads memory that it may not have yet.
JOB = f"while :; do {READ}; sleep 3; done < /dev/null > /dev/null 2>&1 &"
CRASH = "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger"


class Run:
    def __init__(self, lab, seconds):
        self.lab, self.seconds, self.start = lab, seconds, time.time()

    def until(self, part):
        """Waits for that part of the time: the picture's axis, not a test's clock."""
        time.sleep(max(0.0, self.start + self.seconds * part - time.time()))

    def cycle(self):
        """Forks, and one that goes on standby and comes back."""
        self.lab.ctl("fork", "web", "job", "--count", "3")
        for i in (1, 2, 3):
            self.lab.sh(f"job-{i}", READ)
        self.lab.ctl("standby", "job-1")
        self.lab.ctl("restore", "job-1")
        self.lab.sh("job-1", READ)
        self.lab.ctl("rm", "job-1", "job-2", "job-3")

    def stop_pager(self, seconds):
        pager = self.lab.ctl("pager", "status")["pid"]
        self.lab.ctl("fork", "web", "late")
        os.kill(pager, signal.SIGSTOP)
        try:
            self.lab.sh("late", READ + " &", check=False, timeout=5)
            time.sleep(seconds)
        finally:
            os.kill(pager, signal.SIGCONT)

    def play(self):
        self.lab.ctl("run", "web")
        self.lab.sh("web", "head -c 33554432 /dev/urandom > /run/data; " + JOB)
        self.lab.ctl("standby", "web")
        self.lab.ctl("restore", "web")
        self.lab.ctl("fork", "web", "api", "--count", "2")
        self.lab.ctl("run", "ci")
        n = 0
        while time.time() < self.start + 0.55 * self.seconds:
            self.cycle()
            n += 1
            self.until(n * 0.06 + 0.1)
        self.lab.sh("ci", CRASH, check=False, timeout=3)
        self.until(0.68)
        self.stop_pager(self.seconds * 0.06)
        self.until(0.82)
        self.lab.ctl("rm", "ci", "late")
        self.cycle()
        self.until(1)


def ask(prom, start, end, step):
    def expression(target):
        return substitute(target["expr"], max(4 * SCRAPE_S, step + SCRAPE_S), round(end - start))

    return (lambda t: prom.query_range(expression(t), start, end, step)), (lambda t: prom.query(expression(t), end))


def photograph(svg, out):
    """The SVG as a PNG, by a browser that has no window."""
    width, height = re.search(r'width="(\d+)" height="(\d+)"', svg).groups()
    with tempfile.TemporaryDirectory(prefix="forkd-picture-") as d, Browser(int(width), int(height)) as browser:
        page = pathlib.Path(d) / "page.html"
        page.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{svg}')
        browser.driver.get(page.as_uri())
        browser.picture(out)
    png_palette.reduce(out)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("out", type=pathlib.Path)
    p.add_argument("--rows", type=int, help="only the first so many rows")
    p.add_argument("--seconds", type=int, default=240)
    p.add_argument("--svg", help="keep the drawing, too")
    args = p.parse_args()
    with Lab(config=CONFIG) as lab:
        address = lab.metrics_address()
        with Prometheus({"forkd": [address]}, rules=DASHBOARDS / "alerts.yml", every=SCRAPE_S) as prom:
            run = Run(lab, args.seconds)
            run.play()
            end, step = time.time(), max(1, args.seconds // 120)
            svg = board_svg.draw(Dashboard(), f"a real run of {args.seconds} s, drawn by tools/dashboard_picture.py", run.start, end, step,
                                 *ask(prom, run.start, end, step), rows=args.rows)
    if args.svg:
        pathlib.Path(args.svg).write_text(svg)
    photograph(svg, args.out)
    print(f"{args.out}: {os.path.getsize(args.out) // 1024} KiB")


if __name__ == "__main__":
    main()
