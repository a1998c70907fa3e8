#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""What a VMM that was taken over would try. It runs where QEMU is to run, in QEMU's place and jail, writes down what became
of each attempt as one line of JSON, and then is QEMU. Standard library only; the test puts TARGETS in front.

An attempt that is refused gives the name of its errno; one that succeeds gives "done"."""
import ctypes
import errno
import json
import os
import socket
import sys

TARGETS = {}  # replaced: {"pids": {name: pid}, "paths": {name: path}, "sockets": [path]}
REAL = "/usr/bin/qemu-system-x86_64"

libc = ctypes.CDLL(None, use_errno=True)
NR = {"process_vm_readv": 310, "pidfd_open": 434, "userfaultfd": 323, "bpf": 321, "io_uring_setup": 425, "clone3": 435,
      "open_tree": 428, "fsopen": 430, "keyctl": 250, "perf_event_open": 298}
PAGER_FD = 9  # QEMU_FD_PAGER


def call(name, *args):
    ctypes.set_errno(0)
    r = libc.syscall(NR[name], *args) if name in NR else getattr(libc, name)(*args)
    return "done" if r >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def attempt(f, *args):
    try:
        f(*args)
        return "done"
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))
    except ValueError:  # what the module resource makes of EPERM
        return "EPERM"


def connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)


def become_root():
    """A program of root's with the setuid bit, if the host has one."""
    for name in ("su", "mount", "passwd", "chsh", "newgrp"):
        path = f"/usr/bin/{name}"
        if os.path.exists(path) and os.stat(path).st_mode & 0o4000:
            return path
    return None


def image_fd():
    """The image's memory, as it came from the pager; it stays there for QEMU."""
    with socket.socket(fileno=os.dup(PAGER_FD)) as s:
        _, came, _, _ = s.recvmsg(1, socket.CMSG_SPACE(64 * 4), socket.MSG_PEEK)
    return int.from_bytes(came[0][2][:4], "little")


def run_setuid(path):
    """It is run; what counts is who it is then. Its own /proc entry is closed to us only if it were another user's."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(r, 0)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.execv(path, [path])
    uids = None
    try:
        while True:
            with open(f"/proc/{pid}/status") as f:
                text = f.read()
            name = text.split("Name:\t")[1].split("\n")[0]
            if name != "python3" or "zombie" in text:
                uids = text.split("Uid:\t")[1].split("\n")[0].split()
                break
    except (OSError, IndexError):
        pass
    os.close(w)
    os.close(r)
    os.waitpid(pid, 0)
    return "still itself" if uids and set(uids) == {str(os.getuid())} else f"users {uids}"


def main():
    if sys.argv[1:2] == ["--version"]:
        os.execv(REAL, [REAL, "--version"])
    found = {"status": {}, "got": {}}
    with open("/proc/self/status") as f:
        for line in f:
            key, _, value = line.partition(":")
            if key in ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp") or key.startswith("Cap"):
                found["status"][key] = value.split()
    got = found["got"]
    found["root"] = sorted(os.listdir("/"))
    found["dev"] = sorted(os.listdir("/dev"))
    found["etc"] = sorted(os.listdir("/etc"))
    found["processes"] = sorted(int(p) for p in os.listdir("/proc") if p.isdigit())
    # files
    for name, path in TARGETS.get("paths", {}).items():
        got[f"read {name}"] = attempt(os.open, path, os.O_RDONLY)
        got[f"write {name}"] = attempt(os.open, path, os.O_WRONLY)
    for where in ("/", "/usr", "/usr/bin", "/dev", "/etc", "/proc"):
        got[f"create a file in {where}"] = attempt(os.open, f"{where}/x", os.O_WRONLY | os.O_CREAT)
    got["open /dev/kvm"] = attempt(os.open, "/dev/kvm", os.O_RDWR)
    got["make a device"] = attempt(os.mknod, "/dev/x", 0o020666, os.makedev(1, 1))
    got["leave the root directory"] = attempt(os.chroot, "/usr")
    # sockets and the network
    for path in TARGETS.get("sockets", []):
        got[f"connect to {os.path.basename(path)}"] = attempt(connect, path)
    for family in ("AF_INET", "AF_INET6", "AF_PACKET", "AF_NETLINK", "AF_VSOCK"):
        got[f"socket {family}"] = attempt(lambda f: socket.socket(f, socket.SOCK_DGRAM), getattr(socket, family))
    # other processes
    for name, pid in TARGETS.get("pids", {}).items():
        got[f"signal {name}"] = attempt(os.kill, pid, 0)
        got[f"pidfd of {name}"] = call("pidfd_open", pid, 0)
        got[f"trace {name}"] = call("ptrace", 0x4206, pid, 0, 0)  # PTRACE_SEIZE
        buf = ctypes.create_string_buffer(64)
        got[f"read the memory of {name}"] = call("process_vm_readv", pid, ctypes.byref(buf), 1, ctypes.byref(buf), 1, 0)
        got[f"look at {name}"] = attempt(os.listdir, f"/proc/{pid}/fd")
    # the image that clones share
    if "-incoming" in sys.argv:
        image = image_fd()
        got["open the image again, for writing"] = attempt(os.open, f"/proc/self/fd/{image}", os.O_RDWR)
        got["open the image again, for reading"] = attempt(os.open, f"/proc/self/fd/{image}", os.O_RDONLY)
        got["write to the image"] = attempt(os.pwrite, image, b"x" * 4096, 0)
        got["loosen the image's mode"] = attempt(os.fchmod, image, 0o666)
        got["cut the image"] = attempt(os.ftruncate, image, 0)
        os.close(image)
    # privileges
    got["mount"] = call("mount", b"x", b"/proc", b"tmpfs", 0, None)
    got["unmount"] = call("umount2", b"/proc", 2)
    got["a mount by descriptor"] = call("fsopen", b"tmpfs", 0)
    got["a copy of a mount"] = call("open_tree", -100, b"/", 1)
    got["a user namespace"] = call("unshare", 0x10000000)
    got["a mount namespace"] = call("unshare", 0x00020000)
    got["a namespace by clone3"] = call("clone3", ctypes.byref(ctypes.create_string_buffer(88)), 88)
    got["become root"] = attempt(os.setuid, 0)
    got["join root's group"] = attempt(os.setgroups, [0])
    got["another host name"] = call("sethostname", b"x", 1)
    got["bpf"] = call("bpf", 0, None, 0)
    got["io_uring"] = call("io_uring_setup", 1, ctypes.byref(ctypes.create_string_buffer(120)))
    got["perf"] = call("perf_event_open", ctypes.byref(ctypes.create_string_buffer(128)), 0, -1, -1, 0)
    got["keys"] = call("keyctl", 0, -3, 0)
    got["more files than allowed"] = attempt(__import__("resource").setrlimit, 7, (1 << 20, 1 << 20))
    setuid = become_root()
    found["setuid"] = run_setuid(setuid) if setuid else None
    os.write(1, ("JAIL " + json.dumps(found) + "\n").encode())
    os.execv(REAL, [REAL, *sys.argv[1:]])


main()
