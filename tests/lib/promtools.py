# SPDX-License-Identifier: MIT
"""Prometheus' own programs, to judge what forkd says with: promtool and the server, from Debian's package.

The package is fetched and unpacked into a cache below the build tree, never installed: its service would listen on this
host. One that is in PATH already is taken as it is.

    promtools.program("promtool")     its path, or Unavailable with the reason
    promtools.check_metrics(text)     what `promtool check metrics` has to say about it, "" if nothing
    promtools.or_skip("promtool")     for tests: skips with the reason; FORKD_TEST_NO_SKIP=1 turns that into a failure

As a program it fetches them, for ctest's fixture `prometheus`.
"""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "prometheus"
FETCH_SECONDS = 180


class Unavailable(Exception):
    pass


def cache_dir():
    return pathlib.Path(os.environ.get("FORKD_TOOLS_CACHE", ROOT / "build" / "cache")) / PACKAGE


def run(argv, cwd):
    try:
        p = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FETCH_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable(f"{argv[0]}: {e}") from e
    if p.returncode != 0:
        said = [line for line in (p.stderr or p.stdout).splitlines() if line.strip()]
        raise Unavailable(f"{' '.join(argv[:2])} {PACKAGE}: {said[-1] if said else f'exit code {p.returncode}'}")


def fetch(into):
    """The unpacked package at @into: complete, or not there."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=into.parent) as tmp:
        run(["apt-get", "download", PACKAGE], tmp)
        package = next(pathlib.Path(tmp).glob("*.deb"))
        run(["dpkg-deb", "-x", str(package), os.path.join(tmp, "tree")], tmp)
        os.rename(os.path.join(tmp, "tree"), into)


def program(name):
    """The path of "promtool" or "prometheus". Unavailable: no archive, no network, no apt."""
    installed = shutil.which(name)
    if installed:
        return installed
    tree = cache_dir()
    tree.parent.mkdir(parents=True, exist_ok=True)
    with open(tree.parent / f".{PACKAGE}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            fetch(tree)
    path = tree / "usr" / "bin" / name
    if not path.exists():
        raise Unavailable(f"Debian's package {PACKAGE} has no {name}")
    return str(path)


def or_skip(name):
    """Its path; a test that cannot have it is skipped."""
    try:
        return program(name)
    except Unavailable as e:
        if os.environ.get("FORKD_TEST_NO_SKIP") == "1":
            raise
        print(f"SKIPPED: no {name}: {e}", flush=True)
        raise unittest.SkipTest(f"no {name}: {e}") from e


def check_metrics(text):
    """Everything that `promtool check metrics` complains of in @text, which is "" when it has no complaint."""
    p = subprocess.run([program("promtool"), "check", "metrics"], input=text.encode(), stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, timeout=60)
    said = p.stdout.decode(errors="replace").strip()
    return said or ("" if p.returncode == 0 else f"exit code {p.returncode}")


def main():
    try:
        print(program("promtool"))
        print(program("prometheus"))
    except Unavailable as e:
        if os.environ.get("FORKD_TEST_NO_SKIP") == "1":
            sys.exit(f"no {PACKAGE}: {e}")
        print(f"SKIPPED: no {PACKAGE}: {e}")


if __name__ == "__main__":
    main()
