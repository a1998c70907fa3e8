# SPDX-License-Identifier: MIT
"""The other sides of the comparisons: the floor (fork_floor.c), and what a user would do instead."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

from forkdlab import bin_dir

TIMEOUT_S = 120


def bench_dir():
    """fork_floor and libfloor-map lie beside bin/."""
    return bin_dir().resolve().parent / "bench"


class Floor:
    """The same QEMU on an uncompressed RAM file in tmpfs, started by hand, without forkd and pager."""

    def __init__(self, lab, snapshot, dirty_bytes):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="forkd-floor-", dir="/dev/shm"))
        self.process = None
        self.ram = self.dir / "ram"
        self.args = [bench_dir() / "fork_floor", "--store", lab.state / "store", "--snapshot", snapshot, "--ram", self.ram,
                     "--lib", bench_dir() / "libfloor-map.so", "--dir", self.dir, "--dirty", str(dirty_bytes)]
        self.lab, self.snapshot = lab, snapshot

    def __enter__(self):
        try:
            self.lab.ctl("snapshot", "memory", self.snapshot, "-o", self.ram)
            self.process = subprocess.Popen(self.args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.stdin.close()
            self.process.wait(timeout=TIMEOUT_S)
        shutil.rmtree(self.dir, ignore_errors=True)

    def ask(self, command, meanwhile=lambda: None):
        """One round: `fork`, `save`, or `wake PATH` while the caller resumes that guest."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        meanwhile()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"fork_floor ended (exit {self.process.wait(timeout=TIMEOUT_S)})")
        return json.loads(answer)


class Qmp:
    """A QEMU by hand, with its control channel. QEMU connects to us, so there is nothing to wait for in a loop."""

    def __init__(self, argv, directory, pass_fds=()):
        path = pathlib.Path(directory) / "qmp"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, open(pathlib.Path(directory) / "log", "ab") as log:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(TIMEOUT_S)
            self.started = time.monotonic()
            self.process = subprocess.Popen([*argv, "-chardev", f"socket,id=qmp,path={path}", "-mon", "chardev=qmp,mode=control"],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=pass_fds)
            try:
                conn, _ = listener.accept()
            except BaseException:
                self.end()
                raise
        conn.settimeout(TIMEOUT_S)
        self.conn, self.file = conn, conn.makefile("r")
        json.loads(self.file.readline())
        self.events = []
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        self.conn.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            message = self._read()
            if "event" not in message:
                if "error" in message:
                    raise RuntimeError(f"QEMU: {command}: {message['error']}")
                return message["return"]
            self.events.append(message)

    def capabilities(self, *wanted):
        self.call("migrate-set-capabilities", capabilities=[{"capability": name, "state": on} for name, on in wanted])

    def wait(self, wanted):
        """Until an event for which wanted(event) is true, also one that came before."""
        while True:
            event = self.events.pop(0) if self.events else self._read()
            if "event" in event and wanted(event):
                return event

    def _read(self):
        line = self.file.readline()
        if not line:
            raise RuntimeError("QEMU hung up")
        return json.loads(line)

    def end(self):
        self.process.kill()
        self.process.wait(timeout=TIMEOUT_S)
        if hasattr(self, "conn"):
            self.file.close()
            self.conn.close()


def migration_done(event):
    if event["event"] != "MIGRATION":
        return False
    if event["data"]["status"] == "failed":
        raise RuntimeError("QEMU: the migration failed")
    return event["data"]["status"] == "completed"


def plain_argv(pid, memory, agent):
    """The arguments of a clone of forkd's, with other memory and without what forkd passes as descriptors. The
    sandbox goes: a user's `exec:` needs to spawn."""
    words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    argv, i = [words[0]], 1
    while i < len(words):
        option, value = words[i], words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("-") else None
        i += 1 if value is None else 2
        if option in ("-sandbox", "-S", "-incoming", "-add-fd", "-mon") or value and value.startswith("socket,id=qmp"):
            continue
        if option == "-bios":
            value = "qboot.rom"  # by name again, from QEMU's own directory
        elif value and value.startswith("memory-backend-file"):
            value = memory
        elif value and value.startswith("file,id=console"):
            value = "null,id=console"
        elif value and value.startswith("socket,id=agent"):
            value = agent
        argv += [option] if value is None else [option, value]
    return [*argv, "-S", "-incoming", "defer"]


class Rival:
    """What a user would do instead: QEMU's own full state, through zstd, restored from `exec:`."""

    def __init__(self, lab, snapshot, ram, pid, ram_bytes):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="forkd-rival-", dir="/dev/shm"))
        self.pid, self.ram_bytes = pid, ram_bytes
        self.file = self.dir / "full.zst"
        try:
            self._make(lab, snapshot, ram)
            self.argv = plain_argv(pid, f"memory-backend-ram,id=ram,size={ram_bytes}B",
                                   f"socket,id=agent,path={self.dir}/agent,server=on,wait=off")
        except BaseException:
            self.__exit__()
            raise

    def _make(self, lab, snapshot, ram):
        """The very guest that forkd's snapshot holds, memory included, as QEMU would have saved it."""
        copy = self.dir / "ram"
        shutil.copyfile(ram, copy)
        state = lab.state / "store" / "snapshots" / snapshot / "vmstate"
        q = Qmp(plain_argv(self.pid, f"memory-backend-file,id=ram,size={self.ram_bytes}B,share=on,mem-path={copy}", "null,id=agent"),
                self.dir)
        try:
            q.capabilities(("x-ignore-shared", True), ("events", True))
            q.call("migrate-incoming", uri=f"exec:zstd -dc {state}")
            q.wait(migration_done)
            q.capabilities(("x-ignore-shared", False))
            q.call("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            q.call("migrate", uri=f"exec:zstd -3 -q -o {self.file}")
            q.wait(migration_done)
        finally:
            q.end()
        copy.unlink()

    def restore(self, floor):
        """Milliseconds from the spawn: to the state loaded, to the vCPUs running, to the agent's acknowledgement of
        the same wake-up that forkd's clones get."""
        q = Qmp(self.argv, self.dir)
        times = {}

        def mark(name):
            times[name] = (time.monotonic() - q.started) * 1e3

        def resume():
            q.call("cont")
            q.wait(lambda e: e["event"] == "RESUME")
            mark("running")

        try:
            q.capabilities(("events", True))
            q.call("migrate-incoming", uri=f"exec:zstd -dc {self.file}")
            q.wait(migration_done)
            mark("load")
            floor.ask(f"wake {self.dir}/agent", meanwhile=resume)
            mark("ack")
            return times
        finally:
            q.end()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.dir, ignore_errors=True)
