#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""What forkd gets for a pager when it must not: it says hello as one, and then does what its first word says.

refuse    answers session.adopt with an error
die       ends when it is asked to adopt
mute      never answers that
garbage   answers it with bytes that are no message
file      its flight recorder is a file that it could make shorter below forkd's feet
forget    adopts (it says) all of them, answers no fault, and knows of none
late      adopts (it says) the first session, and ends at the second
half      adopts (it says) the first session, and answers the second with bytes that are no message
both      adopts (it says) the first session, and when forkd has taken note of that, the old pager ends, and then this one
after     adopts all of three (it says), and ends when it has taken the old one's place, which does not answer then. The good
          program is back on the disk by then.
"""

import array
import fcntl
import os
import pathlib
import select
import signal
import socket
import struct
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import mprpc  # noqa: E402

SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, SHRINK, GROW


def flight(mode):
    as_file = mode == "file"
    fd = tempfile.mkstemp()[0] if as_file else os.memfd_create("flight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, struct.pack("<IHH", 0x4c464b46, 1, 0).ljust(4096, b"\0"))
    if as_file:
        os.unlink(os.readlink(f"/proc/self/fd/{fd}"))
    else:
        fcntl.fcntl(fd, 1033, SEALS)  # F_ADD_SEALS
    return fd


def option(name):
    return sys.argv[sys.argv.index(name) + 1]


def old_pager():
    """Its pid stands in the file beside our socket."""
    return int(pathlib.Path(option("--control").removesuffix(".sock.next") + ".pid").read_text().split()[0])


def end_of(pid):
    fd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([fd], [], [], 30)
    os.close(fd)


def end_in_its_place(old, conn):
    """When our socket has the old one's name: another process lets the old one go on when we have ended, and forkd has
    been told."""
    while os.path.exists(option("--control")):
        time.sleep(0.001)
    me = os.pidfd_open(os.getpid())
    if os.fork() == 0:
        conn.close()
        select.select([me], [], [], 30)
        time.sleep(0.3)
        os.kill(old, signal.SIGCONT)
    os._exit(9)


def serve(mode):
    listener = socket.socket(fileno=3)
    conn, _ = listener.accept()
    buf, adopted, old = b"", 0, 0
    while True:
        data, anc, _, _ = conn.recvmsg(65536, socket.CMSG_SPACE(16 * 4))
        for level, kind, raw in anc:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                for fd in array.array("i", raw[:len(raw) // 4 * 4]):
                    os.close(fd)
        if not data:
            return
        buf += data
        while buf:
            reader = mprpc.Reader(buf)
            try:
                _, msgid, method, _ = reader.value()
            except mprpc.Short:
                break
            buf = buf[reader.pos:]
            error, result, fds = None, {}, []
            if method == "hello":
                result = {"pid": os.getpid(), "version": "bad", "protocol": 1}
            elif method == "flight":
                result, fds = {"fds": 1}, [flight(mode)]
            elif method == "heartbeat":
                if mode == "both":  # asked only of one that has a session
                    end_of(old_pager())
                    os._exit(9)
                result = {"workers": [], "oldest_fault_ms": 0}
            elif method == "session.adopt":
                adopted += 1
                if mode == "die" or (mode == "late" and adopted == 2):
                    os._exit(9)
                if mode == "mute":
                    continue
                if mode == "both" and adopted > 1:
                    continue
                if mode == "after" and adopted == 3:
                    program = pathlib.Path(sys.argv[2])
                    program.with_suffix(".good").rename(program)
                    old = old_pager()
                    os.kill(old, signal.SIGSTOP)
                if mode == "garbage" or (mode == "half" and adopted == 2):
                    conn.sendall(b"\xc1" * 64)
                    continue
                if mode == "refuse":
                    error, result = {"code": "invalid", "message": "no, thank you", "hint": ""}, None
            socket.send_fds(conn, [mprpc.pack([1, msgid, error, result])], fds)
            if old:
                end_in_its_place(old, conn)


if __name__ == "__main__":
    serve(sys.argv[1])
