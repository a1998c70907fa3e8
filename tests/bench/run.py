#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The benchmarks: what forkd promises about its speed and memory, as ratios measured in one run.

Each line says `met` or `MISSED`; the exit code is 0 in both cases, for a busy host can miss what an idle one
meets. It is 1 when something could not be measured, or what any host must meet is missed: that everybody is served.
docs/benchmarks.md explains each line.
"""

import argparse
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1] / "lib")]
import floor  # noqa: E402
import lines  # noqa: E402
import live_lines  # noqa: E402
import many_lines  # noqa: E402
import pool_lines  # noqa: E402
import watched  # noqa: E402
from forkdlab import MIB, Lab  # noqa: E402
from measure import available_mib, host, markdown, warm_memory  # noqa: E402

DEFAULTS = ""
# The same, with a pager that has decoded nothing yet.
FRESH = "# fresh\n"
# Decoded memory goes with its last clone, so that a first clone can be had again and again.
FORGETFUL = "[pager]\nidle_image_seconds = 0\n"
# And nothing is fetched ahead: what a guest reads is a fault.
SERVED = "[pager]\nidle_image_seconds = 0\nworkingset = off\n"
STORE = "8G"  # deleted snapshots keep their room for as long as the pager has them open
WARM_MIB = 2048
GROUPS = ["fork", "standby", "idle", "chain", "idle-cost", "agreement", "pool", "shell", "live", "generations", "slope", "hundred", "first", "pager"]
BALLAST_MIB = 32


def why_not(args):
    if os.geteuid() != 0:
        return "not root"
    if not os.path.exists("/dev/userfaultfd"):
        return "no /dev/userfaultfd"
    for program in () if args.only == ["pager"] else ("qemu-system-x86_64", "zstd"):
        if not shutil.which(program):
            return f"no {program}"
    return None


def make_base(lab):
    """A warm guest: booted, with 32 MiB of data that cannot be compressed, then on standby as the base."""
    lab.ctl("run", "original", "--mem", "256M")
    accel = lab.vm("original")["accel"]
    lab.sh("original", f"head -c {BALLAST_MIB * MIB} /dev/urandom > /run/data")
    lab.ctl("standby", "original", "--tag", lines.BASE)
    return lab.ctl("snapshot", "show", lines.BASE), accel


def pager_lines(args):
    """The promises about the pager alone: uffd-bench measures and prints them."""
    what = ["next-clone", "cpu"] if args.quick else ["all"]  # in small they have a test of their own
    how = ["--quick"] if args.quick else ["--rounds", str(max(2, args.rounds // 4))]
    sys.stdout.flush()
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        subprocess.run([floor.bench_dir() / "uffd-bench", "line", *what, *how, "--json", f.name], stdout=sys.stdout.fileno(), check=True)
        return json.load(f)["lines"]


def plan(args):
    """(name, configuration, what to run), in the order of the configurations."""
    n = 2 if args.quick else args.rounds
    steps = [
        ("fork", DEFAULTS, lambda lab, base: lines.fork_against_floor(lab, base, n)),
        ("standby", DEFAULTS, lambda lab, base: lines.standby_against_save(lab, base, n)),
        ("idle", DEFAULTS, lambda lab, base: lines.idle_clones(lab, base, 1 if args.quick else 5)),
        ("chain", DEFAULTS, lambda lab, base: lines.chain_links(lab, base, 1 if args.quick else max(4, n // 2))),
        ("idle-cost", DEFAULTS, lambda lab, base: watched.idle_cost(lab, lines.BASE, 2 if args.quick else 30)),
        ("pool", DEFAULTS, lambda lab, base: pool_lines.take_against_floor(lab, base, 8 if args.quick else max(96, 5 * n))),
        ("pool", DEFAULTS, lambda lab, base: pool_lines.takes_at_once(lab, base, 8 if args.quick else pool_lines.BURST)),
        ("shell", DEFAULTS, lambda lab, base: pool_lines.shell_fork_against_load(lab, base, n)),
        ("live", DEFAULTS, lambda lab, base: live_lines.live_pause(lab, base, n, *(("256M", 32) if args.quick else ()))),
        ("slope", DEFAULTS, lambda lab, base: many_lines.slope(lab, base, n, *((4,) if args.quick else ()))),
        ("generations", FRESH, lambda lab, base: live_lines.live_chain(lab, base, *((3, 2) if args.quick else ()))),
        ("hundred", FRESH, lambda lab, base: many_lines.many_alive(lab, base, 20 if args.quick else 100, 2 if args.quick else 10)),
        ("agreement", SERVED, lambda lab, base: watched.agreement(lab, 1 if args.quick else 2, *(("256M", 64) if args.quick else ("1G", 420)))),
        ("first", FORGETFUL, lambda lab, base: lines.first_clone_against_rival(lab, base, n)),
    ]
    return [s for s in steps if not args.only or s[0] in args.only]


def run_lab(config, steps, info):
    """One private forkd, one base, several lines; returns their documents."""
    done = []
    lab = Lab(config=config, store=STORE)
    with lab:
        base, accel = make_base(lab)
        if not info:
            info.update(host(accel))
            print(f"{info['cpus']} x {info['cpu']}, Linux {info['kernel']}, {info['qemu']}, {accel}; load {info['load_before']}\n",
                  flush=True)
        for name, _, fn in steps:
            for line in fn(lab, base):
                line.show()
                done.append({"id": name, "must": line.must, **line.doc()})
        lab.end()
        left = lab.leftovers()
    if left:
        raise RuntimeError("left behind: " + ", ".join(left))
    return done


def measure(args):
    info, done = {}, []
    warm_memory(min(WARM_MIB // (4 if args.quick else 1), available_mib() // 2))
    for config, steps in itertools.groupby(plan(args), key=lambda s: s[1]):
        done += run_lab(config, list(steps), info)
    if not args.only or "pager" in args.only:
        info = info or host("no guest")
        done += pager_lines(args)
    info["load_after"] = round(os.getloadavg()[0], 2)
    return {"host": info, "quick": args.quick, "lines": done}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="two rounds of everything: does it run at all?")
    p.add_argument("--rounds", type=int, default=20, metavar="N", help="rounds of each comparison (20)")
    p.add_argument("--only", action="append", choices=GROUPS, metavar="GROUP",
                   help="only this; may be repeated: " + ", ".join(GROUPS))
    p.add_argument("--json", metavar="FILE", help="write all figures there too ('-': to stdout, instead of the tables)")
    p.add_argument("--markdown", metavar="FILE", help="and as a table for docs/benchmarks.md")
    args = p.parse_args()
    if args.rounds < 2:
        p.error("--rounds must be at least 2")
    reason = why_not(args)
    if reason:
        print(f"SKIPPED: {reason}")
        return 1 if os.environ.get("FORKD_TEST_NO_SKIP") == "1" else 0
    for file in ("fork_floor", "libfloor-map.so", "uffd-bench"):
        if not (floor.bench_dir() / file).exists():
            sys.exit(f"bench: {floor.bench_dir() / file} is missing: build with 'make', or set FORKD_BIN_DIR")
    started = time.monotonic()
    stdout = sys.stdout
    if args.json == "-":
        sys.stdout = sys.stderr
    doc = measure(args)
    missed = sum(not line.get("met", True) for line in doc["lines"])
    print(f"{len(doc['lines']) - missed} met, {missed} missed, in {time.monotonic() - started:.0f} s")
    if args.json == "-":
        json.dump(doc, stdout, indent=2)
        stdout.write("\n")
    elif args.json:
        pathlib.Path(args.json).write_text(json.dumps(doc, indent=2) + "\n")
    if args.markdown:
        pathlib.Path(args.markdown).write_text(markdown(doc["lines"]))
    return int(any(line.get("must") and not line["met"] for line in doc["lines"]))


if __name__ == "__main__":
    sys.exit(main())
