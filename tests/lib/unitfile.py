# SPDX-License-Identifier: MIT
"""A systemd unit as far as it can be played without systemd: its settings, and what its sandbox takes from a process.

Played are NoNewPrivileges, CapabilityBoundingSet, a SystemCallFilter that forbids, RestrictAddressFamilies, LockPersonality,
RestrictSUIDSGID (of chmod and mkdir), UMask and LimitCORE. What needs systemd itself (devices, IP filters) is not.
"""

import ctypes
import errno
import os
import pathlib
import re
import resource
import socket
import struct
import subprocess

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 24, 38, 22, 2
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LD, JEQ, JSET, RET = 0x20, 0x15, 0x45, 0x06
AUDIT_ARCH_X86_64 = 0xC000003E
HEADER = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
CAPS = pathlib.Path("/usr/include/linux/capability.h")


class Unit:
    def __init__(self, path):
        self.settings = {}
        for line in pathlib.Path(path).read_text().splitlines():
            m = re.match(r"(\w+)=(.*)", line)
            if m:
                self.settings.setdefault(m[1], []).append(m[2])

    def get(self, name):
        """The last value of a setting."""
        return self.settings[name][-1]

    def words(self, name):
        """All words of a setting that may be given several times."""
        return " ".join(self.settings.get(name, [])).split()


def syscall_numbers():
    return {m[1]: int(m[2]) for m in re.finditer(r"#define __NR_(\w+) (\d+)", HEADER.read_text())}


def expand(words):
    """System calls by name: @groups are what systemd says they are."""
    for w in words:
        if w.startswith("@"):
            out = subprocess.run(["systemd-analyze", "syscall-filter", w], capture_output=True, text=True, check=True).stdout
            yield from expand(x for x in (line.strip() for line in out.splitlines()[1:]) if x and not x.startswith("#"))
        else:
            yield w


def filter_of(unit):
    """The seccomp program: struct sock_filter by struct sock_filter."""
    numbers = syscall_numbers()
    first, *rest = unit.words("SystemCallFilter")
    assert first.startswith("~"), "only a filter that forbids can be played"
    denied = [numbers[n] for n in expand([first[1:], *rest]) if n in numbers]
    if unit.get("LockPersonality") == "yes":
        denied.append(numbers["personality"])
    families = [int(getattr(socket, name)) for name in unit.words("RestrictAddressFamilies")]
    code = [(LD, 0, 0, 4), (JEQ, 1, 0, AUDIT_ARCH_X86_64), (RET, 0, 0, ERRNO | errno.EPERM), (LD, 0, 0, 0)]
    for n in denied:
        code += [(JEQ, 0, 1, n), (RET, 0, 0, ERRNO | errno.EPERM)]
    for name in ("socket", "socketpair"):
        # if it is this one: its first argument, which is one of those or forbidden
        n = len(families)
        code += [(JEQ, 0, n + 3, numbers[name]), (LD, 0, 0, 16), *((JEQ, n - i, 0, f) for i, f in enumerate(families)),
                 (RET, 0, 0, ERRNO | errno.EAFNOSUPPORT), (RET, 0, 0, ALLOW)]
    if unit.get("RestrictSUIDSGID") == "yes":
        for name, arg in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mkdirat", 2), ("mknod", 1), ("mknodat", 2)):
            code += [(JEQ, 0, 4, numbers[name]), (LD, 0, 0, 16 + 8 * arg), (JSET, 0, 1, 0o6000), (RET, 0, 0, ERRNO | errno.EPERM),
                     (RET, 0, 0, ALLOW)]
    code.append((RET, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *c) for c in code)


def capabilities():
    return {m[1]: int(m[2]) for m in re.finditer(r"#define (CAP_\w+)\s+(\d+)$", CAPS.read_text(), re.M)}


def sandbox(unit):
    """A function for subprocess's preexec_fn."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = filter_of(unit)
    buf = ctypes.create_string_buffer(program)
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buf)))
    keep = {capabilities()[c] for c in unit.words("CapabilityBoundingSet")}
    last = int(pathlib.Path("/proc/sys/kernel/cap_last_cap").read_text())
    umask = int(unit.get("UMask"), 8)

    def prctl(*args):
        if libc.prctl(*args) != 0:
            raise OSError(ctypes.get_errno(), f"prctl{args}")

    def enter():
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for cap in range(last + 1):
            if cap not in keep:
                prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(fprog)), 0, 0)

    enter.keeps = (buf, fprog)
    return enter
