#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The campaigns: faults injected into a private forkd below busy guests, again and again, with figures.

Each line says `met` or `MISSED`. What is about lives, memory and things left behind must be met: else the exit code is 1.
A time that was missed on a busy host does not fail the run unless it was missed by a lot (--strict: at all).
docs/reliability.md explains each campaign and has its figures.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1] / "lib")]
import cycles  # noqa: E402
import forkd_kills  # noqa: E402
import operations  # noqa: E402
import pager_loss  # noqa: E402
import spin  # noqa: E402
from forkdlab import bin_dir  # noqa: E402
from measure import available_mib, host, warm_memory  # noqa: E402

CAMPAIGNS = {"pager-loss": pager_loss.campaign, "forkd-kills": forkd_kills.campaign, "cycles": cycles.campaign,
             "operations": operations.campaign, "spin": spin.campaign}
BY_A_LOT = 5  # times what was wanted
WARM_MIB = 2048


def why_not():
    if os.geteuid() != 0:
        return "not root"
    if not os.path.exists("/dev/userfaultfd"):
        return "no /dev/userfaultfd"
    if not shutil.which("qemu-system-x86_64"):
        return "no qemu-system-x86_64"
    return None


def failed(line, strict):
    if line.met:
        return False
    return line.must or strict or line.value > BY_A_LOT * line.target


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--short", action="store_true", help="a few rounds of everything, for `make test`")
    p.add_argument("--strict", action="store_true", help="every missed line fails the run")
    p.add_argument("--only", action="append", choices=list(CAMPAIGNS), help="only this; may be repeated")
    p.add_argument("--rounds", type=int, default=0, metavar="N", help="as many rounds of each")
    p.add_argument("--policy", action="append", choices=pager_loss.POLICIES, help="pager-loss: only this policy")
    p.add_argument("--signal", action="append", choices=list(pager_loss.KINDS), help="pager-loss: only this signal")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of everything that is random; printed, and repeats a run")
    p.add_argument("--quiet", action="store_true", help="no line for each round")
    p.add_argument("--json", metavar="FILE", help="write all figures there too")
    args = p.parse_args()
    args.seed = args.seed or random.SystemRandom().randrange(1, 1 << 32)
    return args


def main():
    args = parse()
    reason = why_not()
    if reason:
        print(f"SKIPPED: {reason}")
        return 1 if os.environ.get("FORKD_TEST_NO_SKIP") == "1" else 0
    if not (bin_dir().parent / "fault" / "churn").exists():
        sys.exit("fault: the guests' program is missing: build with 'make', or set FORKD_BIN_DIR")
    # Told to end, everything that was started is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say = (lambda text: None) if args.quiet else (lambda text: print(text, flush=True))
    info, done, started = host("tcg"), [], time.monotonic()
    print(f"seed {args.seed}; {info['cpus']} x {info['cpu']}, Linux {info['kernel']}, {info['qemu']}; load {info['load_before']}\n", flush=True)
    warm_memory(min(WARM_MIB // (4 if args.short else 1), available_mib() // 2))
    for name in args.only or CAMPAIGNS:
        begun = time.monotonic()
        lines = CAMPAIGNS[name](args, say)
        print(f"\n{name}: {time.monotonic() - begun:.0f} s", flush=True)
        for line in lines:
            line.show()
            done.append((name, line))
    info["load_after"] = round(os.getloadavg()[0], 2)
    bad = [line for _, line in done if failed(line, args.strict)]
    missed = sum(not line.met for _, line in done)
    print(f"{len(done) - missed} met, {missed} missed, {len(bad)} of them failures, in {time.monotonic() - started:.0f} s; seed {args.seed}")
    if args.json:
        doc = {"host": info, "seed": args.seed, "short": args.short, "lines": [{"id": name, **line.doc()} for name, line in done]}
        pathlib.Path(args.json).write_text(json.dumps(doc, indent=2) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
