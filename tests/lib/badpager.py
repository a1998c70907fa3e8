#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""What forkd gets for a pager when it must not: it says hello as one, and then does what its first word says.

refuse    answers session.adopt with an error
die       ends when it is asked to adopt
mute      never answers that
garbage   answers it with bytes that are no message
late      adopts (it says) the first session, and ends at the second
"""

import array
import fcntl
import os
import pathlib
import socket
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import mprpc  # noqa: E402

SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, SHRINK, GROW


def flight():
    fd = os.memfd_create("flight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, struct.pack("<IHH", 0x4c464b46, 1, 0).ljust(4096, b"\0"))
    fcntl.fcntl(fd, 1033, SEALS)  # F_ADD_SEALS
    return fd


def serve(mode):
    listener = socket.socket(fileno=3)
    conn, _ = listener.accept()
    buf, adopted = b"", 0
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
                result, fds = {"fds": 1}, [flight()]
            elif method == "heartbeat":
                result = {"workers": [], "oldest_fault_ms": 0}
            elif method == "session.adopt":
                adopted += 1
                if mode == "die" or (mode == "late" and adopted == 2):
                    os._exit(9)
                if mode == "mute":
                    continue
                if mode == "garbage":
                    conn.sendall(b"\xc1" * 64)
                    continue
                if mode == "refuse":
                    error, result = {"code": "invalid", "message": "no, thank you", "hint": ""}, None
            socket.send_fds(conn, [mprpc.pack([1, msgid, error, result])], fds)


if __name__ == "__main__":
    serve(sys.argv[1])
