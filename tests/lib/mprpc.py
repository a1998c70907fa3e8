# SPDX-License-Identifier: MIT
"""A MessagePack-RPC client that does what it is told, also what no decent client would do: for tests of forkd's door."""

import os
import socket
import struct


def pack(v):
    """One value; only what the protocol needs."""
    if v is None:
        return b"\xc0"
    if v is True or v is False:
        return b"\xc3" if v else b"\xc2"
    if isinstance(v, int):
        if 0 <= v < 128:
            return bytes([v])
        return b"\xcf" + struct.pack(">Q", v) if v >= 0 else b"\xd3" + struct.pack(">q", v)
    if isinstance(v, float):
        return b"\xcb" + struct.pack(">d", v)
    if isinstance(v, str):
        raw = v.encode("utf-8", "surrogateescape")
        return b"\xdb" + struct.pack(">I", len(raw)) + raw
    if isinstance(v, bytes):
        return b"\xc6" + struct.pack(">I", len(v)) + v
    if isinstance(v, (list, tuple)):
        return b"\xdd" + struct.pack(">I", len(v)) + b"".join(map(pack, v))
    if isinstance(v, dict):
        return b"\xdf" + struct.pack(">I", len(v)) + b"".join(pack(k) + pack(x) for k, x in v.items())
    raise TypeError(v)


class Short(Exception):
    """More bytes are needed."""


class Reader:
    def __init__(self, data):
        self.data, self.pos = data, 0

    def take(self, n):
        if self.pos + n > len(self.data):
            raise Short
        self.pos += n
        return self.data[self.pos - n:self.pos]

    def number(self, fmt):
        return struct.unpack(">" + fmt, self.take(struct.calcsize(fmt)))[0]

    def value(self):
        t = self.number("B")
        if t < 0x80:
            return t
        if t < 0x90:
            return self.map(t & 15)
        if t < 0xa0:
            return [self.value() for _ in range(t & 15)]
        if t < 0xc0:
            return self.take(t & 31).decode()
        if t >= 0xe0:
            return t - 256
        if t in (0xc0, 0xc2, 0xc3):
            return {0xc0: None, 0xc2: False, 0xc3: True}[t]
        if 0xc4 <= t <= 0xc6:
            return self.take(self.number("BHI"[t - 0xc4]))
        if 0xca <= t <= 0xd3:
            return self.number("fdBHIQbhiq"[t - 0xca])
        if 0xd9 <= t <= 0xdb:
            return self.take(self.number("BHI"[t - 0xd9])).decode()
        if t in (0xdc, 0xdd):
            return [self.value() for _ in range(self.number("HI"[t - 0xdc]))]
        if t in (0xde, 0xdf):
            return self.map(self.number("HI"[t - 0xde]))
        raise ValueError(hex(t))

    def map(self, n):
        return {self.value(): self.value() for _ in range(n)}


class Error(Exception):
    def __init__(self, error):
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.code, self.error = error.get("code"), error


class Client:
    def __init__(self, path, timeout=60):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.connect(str(path))  # waits for a place in the queue, which a socket with a timeout does not
        except OSError:
            self.sock.close()
            raise
        self.sock.settimeout(timeout)
        self.buf, self.next_id, self.notes, self.answers = b"", 1, [], {}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()

    def send_raw(self, data, fds=()):
        if fds:
            socket.send_fds(self.sock, [data], list(fds))
        else:
            self.sock.sendall(data)

    def send(self, method, params=None, fds=()):
        """A request; returns its id."""
        msgid, self.next_id = self.next_id, self.next_id + 1
        self.send_raw(pack([0, msgid, method, {} if params is None else params]), fds)
        return msgid

    def notify(self, method, params):
        self.send_raw(pack([2, method, params]))

    def receive(self):
        """The next message; None at the end of the stream."""
        while True:
            r = Reader(self.buf)
            try:
                v = r.value()
                self.buf = self.buf[r.pos:]
                return v
            except Short:
                data = self.sock.recv(1 << 16)
                if not data:
                    return None
                self.buf += data

    def wait(self, msgid):
        """The result of a request, or Error."""
        while msgid not in self.answers:
            m = self.receive()
            if m is None:
                raise EOFError
            if m[0] == 1:
                self.answers[m[1]] = m[2:]
            else:
                self.notes.append(m[1:])
        error, result = self.answers.pop(msgid)
        if error is not None:
            raise Error(error)
        return result

    def call(self, method, params=None, fds=()):
        return self.wait(self.send(method, params, fds))


def open_fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
