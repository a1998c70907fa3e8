# SPDX-License-Identifier: MIT
"""Takes the pictures of the page in docs/images: a real forkd, a template, a chain of snapshots, clones at work, and one that has
gone wrong: its kernel has panicked, and it spins. Needs what tools/packages-test.txt lists.

    tools/page_picture.py [FOLDER]
"""

import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lib"))
from browser import Browser, shrink  # noqa: E402
from forkdlab import Lab  # noqa: E402

READS = "while :; do head -c 3000000 /dev/urandom | sha256sum; sleep 0.%d; done > /dev/null 2>&1 &"
PANIC = "echo 0 > /proc/sys/kernel/panic; (sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &"


def scene(lab):
    lab.ctl("run", "base", "--mem", "192M")
    lab.sh("base", "head -c 24000000 /dev/urandom > /run/data")
    lab.ctl("standby", "base", "--tag", "base")
    parent = "base"
    for i, tag in enumerate(("runtime", "web-app", None, None, None, None, None, "web-warm")):
        lab.ctl("fork", parent, "builder")
        lab.sh("builder", f"head -c {(i + 1) * 150000} /dev/urandom > /run/layer-{i}")
        parent = lab.ctl("standby", "builder", *(("--tag", tag) if tag else ()))["snapshot"]
        lab.ctl("rm", "builder")
    lab.ctl("fork", "runtime", "db")
    lab.sh("db", "head -c 9000000 /dev/urandom > /run/tables")
    lab.ctl("standby", "db", "--tag", "db-warm")
    lab.ctl("fork", "web-warm", "web", "--count", "9")
    lab.ctl("fork", "db-warm", "db-test", "--count", "3")
    lab.ctl("fork", "web-app", "ci", "--count", "2")
    lab.ctl("pause", "web-9")
    for name, pause in (("web-1", 4), ("web-2", 8), ("db-test-1", 6)):
        lab.sh(name, READS % pause)


def work(lab, seconds):
    """Clones come and go, as in a day of theirs."""
    end, n = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        n += 1
        lab.ctl("fork", "web-warm", f"job-{n}")
        lab.sh(f"job-{n}", "sha256sum /run/data /bin/busybox > /dev/null")
        lab.ctl("standby" if n % 3 == 0 else "rm", f"job-{n}")
        if n % 3 == 0:
            lab.ctl("restore", f"job-{n}")
            lab.ctl("rm", f"job-{n}")
        time.sleep(1.5)


def until(what, timeout=60):
    end = time.monotonic() + timeout
    while not what():
        if time.monotonic() > end:
            raise AssertionError("it did not come to pass")
        time.sleep(.2)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "images")
    folder.mkdir(parents=True, exist_ok=True)
    with Lab(store="4G") as lab, Browser(1280, 1000) as b:
        scene(lab)
        work(lab, 170)
        b.driver.get(f"http://{lab.metrics_address()}/")
        work(lab, 50)
        lab.sh("web-4", PANIC)
        until(lambda: "spinning" in b.js("return document.getElementById('problems').innerText"), 60)
        time.sleep(4)  # sorted by now, and drawn
        whole = b.js("return document.getElementById('pager').getBoundingClientRect().top + scrollY")
        b.resize(1280, int(whole) - 20)
        time.sleep(1.5)
        b.picture(folder / "page.png")
        b.media(prefers_color_scheme="dark")
        b.resize(375, 1000, mobile=True, scale=1)
        time.sleep(2.5)
        b.picture(folder / "page-phone.png")
        for name in ("page.png", "page-phone.png"):
            shrink(folder / name)
        for level, message in b.console():
            print(level, message)


if __name__ == "__main__":
    main()
