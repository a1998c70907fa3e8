#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What forkd does, shown on a real VM: boot, standby, eight clones that remember and go their own ways.

Exits 0 only if every clone had exactly the original's memory and none saw another's changes.
"""

import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "lib"))
from forkdlab import MIB, Lab  # noqa: E402

CLONES = 8
# A process whose state lives only in its memory: a secret, and a count of the times it was asked.
KEEPER = """
mkfifo /run/ask /run/answer
secret=$(head -c 32 /dev/urandom | sha256sum | cut -c1-64)
n=0
while read -r word < /run/ask; do n=$((n + 1)); echo "$secret $n $word" > /run/answer; done
"""


def say(text):
    print(text, flush=True)


def ask(lab, vm, word):
    secret, n, echoed = lab.text(vm, f"echo {word} > /run/ask; cat /run/answer").split()
    assert echoed == word
    return secret, int(n)


def mib(n):
    return f"{n / MIB:.1f} MiB"


def warm_up(lab):
    say("2. The VM makes 32 MiB of random data and starts a process that keeps a secret in its memory …")
    lab.sh("original", "head -c 33554432 /dev/urandom > /run/data")
    lab.sh("original", "cat > /run/keeper", stdin=KEEPER.encode())
    lab.sh("original", "setsid sh /run/keeper < /dev/null > /dev/null 2>&1 &")
    digest = lab.text("original", "sha256sum /run/data").split()[0]
    secret, n = ask(lab, "original", "hello")
    say(f"   sha256 {digest[:16]}…, secret {secret[:16]}…, asked {n} time")
    return digest, secret, n


def check_clones(lab, names, digest, secret, n):
    """Each clone remembers; then each is changed, and none sees another's change."""
    identical = independent = 0
    seen = set()
    for name in names:
        mine, count = ask(lab, name, f"i-am-{name}")
        same = lab.text(name, "sha256sum /run/data").split()[0] == digest
        identical += same and mine == secret and count == n + 1
        lab.sh(name, f"echo {name} > /run/mark; dd if=/dev/urandom of=/run/data bs=4096 count=16 conv=notrunc 2>/dev/null")
        seen.add((lab.text(name, "sha256sum /run/data"), lab.text(name, "hostname"), lab.text(name, "cat /etc/machine-id"),
                  lab.text(name, "head -c 16 /dev/urandom | sha256sum")))
    for name in names:
        others = [s for s in seen if s[1] == name]
        independent += lab.text(name, "cat /run/mark") == name and len(others) == 1
    # data, machine-id and random numbers: no two clones have the same
    for field in (0, 2, 3):
        if len({s[field] for s in seen}) != len(names):
            independent = 0
    return identical, independent


def run(lab):
    say("1. A Linux VM boots …")
    vm = lab.ctl("run", "original", "--mem", "256M")
    say(f"   running after {vm['boot_ms'] / 1000:.1f} s ({lab.vm('original')['accel']})")
    digest, secret, n = warm_up(lab)

    say("3. It goes on standby: its memory becomes a compressed snapshot, its process ends …")
    saved = lab.ctl("standby", "original", "--tag", "original")
    say(f"   {mib(256 * MIB)} of RAM in {mib(saved['stored_bytes'])}, guest paused {saved['pause_ms']:.0f} ms, "
        f"all done in {saved['total_ms']:.0f} ms")
    assert lab.vm("original")["pid"] is None

    say(f"4. The snapshot is forked into {CLONES} clones …")
    forked = lab.ctl("fork", "original", "clone", "--count", CLONES)
    say(f"   all answered after {forked['wall_ms']:.0f} ms")
    clones = forked["clones"]
    names = [c["name"] for c in clones]
    private = {c["name"]: lab.private_bytes(lab.vm(c["name"])["pid"]) for c in clones}
    identical, independent = check_clones(lab, names, digest, secret, n)

    say("5. Each clone goes on standby in its turn, as a child of the first snapshot …")
    stored = {name: lab.ctl("standby", name)["stored_bytes"] for name in names}
    say("")
    say("clone      first answer   private memory   disk")
    for c in clones:
        name = c["name"]
        say(f"{name:<9} {c['total_ms']:9.1f} ms   {mib(private[name]):>14}   {mib(stored[name]):>8}")
    say("")
    say(f"memory identical: {identical}/{CLONES}, independent: {independent}/{CLONES}")
    return identical == CLONES and independent == CLONES


def main():
    started = time.monotonic()
    if os.geteuid() != 0:
        sys.exit("demo: forkd needs root (userfaultfd, mounts, cgroups): run 'sudo make demo'")
    say("0. Guest kernel, initramfs and store are prepared, and a private forkd is started …")
    lab = Lab()
    with lab:
        ok = run(lab)
        lab.end()
        left = lab.leftovers()
    if left:
        say("left behind: " + ", ".join(left))
        ok = False
    say(f"{'done' if ok else 'FAILED'} in {time.monotonic() - started:.0f} s")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
