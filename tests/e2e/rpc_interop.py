# SPDX-License-Identifier: MIT
"""Drives a forkd (argument: its socket) with a MessagePack-RPC client that is not ours, pynvim's; then sends what no
client should. Every request gets an answer or a closed connection, and forkd goes on serving the others.

Exits 0 if all of it holds. Needs Debian's python3-pynvim and python3-msgpack.
"""

import select
import socket
import sys

import msgpack
from pynvim.msgpack_rpc import socket_session


class RpcError(Exception):
    def __init__(self, error):
        super().__init__(str(error))
        self.error = error


def session(path):
    s = socket_session(path)
    s.error_wrapper = RpcError
    return s


def code_of(s, method, *args):
    try:
        s.request(method, *args)
    except RpcError as e:
        assert set(e.error) >= {"code", "message", "hint"}, e.error
        return e.error["code"]
    raise AssertionError(f"{method} {args} was not refused")


def with_another_client(path):
    """Its params are argument lists: [map], or [] for none."""
    s = session(path)
    assert s.request("version")["protocol"] == 1
    assert s.request("version", {})["version"]
    info = s.request("info", {})
    assert path.startswith(info["run_dir"]), info
    names = [vm["name"] for vm in s.request("vm.list", {})["vms"]]
    for name in names:
        assert s.request("vm.inspect", {"name": name})["name"] == name
    assert code_of(s, "no.such.method", {}) == "protocol"
    assert code_of(s, "vm.inspect", {"name": "nobody"}) == "not-found"
    assert code_of(s, "vm.inspect", {}) == "invalid"
    assert code_of(s, "vm.inspect", {"name": 7}) == "invalid"
    assert code_of(s, "vm.inspect", "nobody") == "protocol"
    assert code_of(s, "vm.inspect", {"name": "x"}, {"name": "y"}) == "protocol"
    assert code_of(s, "vm.fork", {"source": "nobody", "count": -1}) == "invalid"
    assert code_of(s, "vm.fork", {"source": "nobody", "count": 1 << 63}) == "invalid"
    assert code_of(s, "vm.rm", {"names": []}) == "invalid"
    assert code_of(s, "vm.rm", {"names": [None]}) == "invalid"
    assert code_of(s, "vm.exec", {"name": names[0], "argv": ["x"] * 5000} if names else {"name": "nobody"}) in (
        "limit", "wrong-state", "not-found", "agent-failed")
    s.close()


def raw(path, data):
    """Sends @data, ends the sending side, and returns all that comes back; None if nothing ends within 20 s."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.setblocking(False)
        got, sent = b"", 0
        while True:
            readable, writable, _ = select.select([s], [s] if sent < len(data) else [], [], 20)
            if not readable and not writable:
                return None
            if writable:
                try:
                    sent += s.send(data[sent:sent + 65536])
                except (BrokenPipeError, ConnectionResetError):
                    data = data[:sent]
                if sent == len(data):
                    try:
                        s.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass
            if readable:
                try:
                    piece = s.recv(65536)
                except ConnectionResetError:
                    return got
                if not piece:
                    return got
                got += piece


def messages(data):
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
    unpacker.feed(data)
    return list(unpacker)


def what_no_client_should_send(path):
    ok = msgpack.packb([0, 1, "version", {}])
    cases = {
        "garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "the byte that is never used": b"\xc1" * 100,
        "a map": msgpack.packb({"method": "version"}),
        "a number": msgpack.packb(7),
        "an empty array": msgpack.packb([]),
        "an unknown type": msgpack.packb([9, 1, "version", {}]),
        "a request that is too short": msgpack.packb([0, 1, "version"]),
        "a negative id": msgpack.packb([0, -1, "version", {}]),
        "an answer to nothing": msgpack.packb([1, 77, None, {}]),
        "deep nesting": b"\x91" * 100000,
        "an array of four billion": b"\xdd\xff\xff\xff\xff",
        "a string of four billion": b"\x94\x00\x01\xdb\xff\xff\xff\xff" + b"x" * 100000,
        "five megabytes": msgpack.packb([0, 1, "version", {"x": "y" * (5 << 20)}]),
        "a cut message": ok[:-1],
        "a method that is no name": msgpack.packb([0, 1, "v" * 65, {}]),
        "descriptors that were not sent": msgpack.packb([0, 1, "snapshot.memory", {"snapshot": "x", "fds": 16}]),
    }
    for name, data in cases.items():
        assert raw(path, data) is not None, f"{name}: the connection stays open without an answer"
        # a whole request in front of it is answered all the same
        answers = messages(raw(path, ok + data))
        assert answers and answers[0][:3] == [1, 1, None], f"{name}: {answers}"
    assert messages(raw(path, cases["five megabytes"]))[-1][2]["code"] == "protocol"
    assert messages(raw(path, cases["garbage"]))[-1][2]["code"] == "protocol"


def many_at_once(path):
    """A thousand requests in one go are answered, each once."""
    data = b"".join(msgpack.packb([0, i, "version", {}]) for i in range(1000))
    assert sorted(m[1] for m in messages(raw(path, data))) == list(range(1000))
    # a byte at a time, too
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        for byte in msgpack.packb([0, 5, "version", {}]):
            s.sendall(bytes([byte]))
        assert messages(s.recv(65536))[0][1] == 5
    # connections that say nothing do not keep others out
    idle = []
    try:
        for _ in range(100):
            idle.append(socket.socket(socket.AF_UNIX))
            idle[-1].connect(path)
        assert session(path).request("version")["protocol"] == 1
    finally:
        for s in idle:
            s.close()


def main():
    path = sys.argv[1]
    with_another_client(path)
    what_no_client_should_send(path)
    many_at_once(path)
    with_another_client(path)
    print("ok")


if __name__ == "__main__":
    main()
