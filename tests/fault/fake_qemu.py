#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""A VMM that takes a connection and then does not behave: FORKD_QEMU points to a copy of this. How, says the size of the
guest's memory: 96 MiB are the first of ANSWERS, 97 MiB the second. The listening QMP socket is inherited, as by QEMU; its
descriptor stands in the arguments, too."""

import os
import re
import select
import socket
import sys

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}\r\n'
ANSWERS = {
    "mute": [],
    "garbage": [bytes(range(1, 256)) * 16 + b"\r\n"],
    "endless": [b'{"QMP": "' + b"x" * (1 << 20)] + [b"x" * (1 << 20)] * 64,
    "deep": [b"[" * 100000 + b"\r\n"],
    "greets": [GREETING],
    "wrong-answers": [GREETING, b'{"return": {}, "id": 999999}\r\n{"return": []}\r\n{"error": 7}\r\n{"event": {}}\r\n{"id": null}\r\n' * 100],
}


def main():
    if sys.argv[1:2] == ["--version"]:
        os.execv("/usr/bin/qemu-system-x86_64", ["qemu-system-x86_64", "--version"])
    text = " ".join(sys.argv)
    fd = int(re.search(r"socket,id=qmp,fd=(\d+)", text).group(1))
    mode = list(ANSWERS)[(int(re.search(r"size=(\d+)B", text).group(1)) >> 20) - 96]
    conn, _ = socket.socket(fileno=fd).accept()
    try:
        for part in ANSWERS[mode]:
            conn.sendall(part)
    except OSError:
        pass
    while True:  # until it is killed
        select.select([], [], [])


if __name__ == "__main__":
    main()
