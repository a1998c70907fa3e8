# SPDX-License-Identifier: MIT
"""Kernels and rights that this host does not have, for one process: functions for subprocess' preexec_fn."""

import ctypes
import os
import resource
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_BIND, MS_REC, MS_SLAVE = 0x20000, 4096, 16384, 1 << 19
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
NR_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
BPF_PROG_LOAD = 5

# Of classic BPF: load a word, jump if equal, return.
LD, JEQ, RET = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def checked(r, what):
    if r != 0:
        raise OSError(ctypes.get_errno(), what)


def hiding(*files):
    """Each of these files is empty."""
    def enter():
        checked(LIBC.unshare(CLONE_NEWNS), "unshare")
        checked(LIBC.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "the host's mounts")
        for f in files:
            checked(LIBC.mount(b"/dev/null", f.encode(), None, MS_BIND, None), f)
    return enter


def without_bpf(errno, only_load=False):
    """bpf(2) fails with @errno: all of it, or the loading of programs, as on a kernel that is locked down."""
    def enter():
        code = [(LD, 0, 0, 0), (JEQ, 0, 3 if only_load else 1, NR_BPF)]
        if only_load:
            code += [(LD, 0, 0, 16), (JEQ, 0, 1, BPF_PROG_LOAD)]
        code += [(RET, 0, 0, ERRNO | errno), (RET, 0, 0, ALLOW)]
        filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *c) for c in code))
        prog = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(filters)))
        checked(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        checked(LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prog, 0, 0), "seccomp")
    return enter


def without_locked_memory():
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))


def as_nobody(*caps):
    """The words in front of a command that is then nobody's, with no capability but these."""
    keep = ",".join(f"+{c}" for c in caps)
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps=-all{',' if keep else ''}{keep}",
            f"--ambient-caps=-all{',' if keep else ''}{keep}"]
