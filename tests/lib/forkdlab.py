# SPDX-License-Identifier: MIT
"""A private forkd for a test or a benchmark: its own directories, started and ended by us.

Everything that a Lab starts is known by its own process id or directory and is ended on leaving the `with`
block, also after a failure. `leftovers()` then tells what is still there that should not be.
"""

import functools
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20


def bin_dir():
    """Where the programs under test are: FORKD_BIN_DIR, or the release build's."""
    return pathlib.Path(os.environ.get("FORKD_BIN_DIR", ROOT / "build" / "bin"))


def sanitized():
    """Are the programs under test built with a sanitizer, whose memory says nothing about theirs?"""
    data = (bin_dir() / "forkd").read_bytes()
    return b"__asan_init" in data or b"__tsan_init" in data


@functools.cache
def confinable():
    """Can this host confine VMMs? In a plain chroot it cannot: its root is no mount."""
    p = subprocess.run([bin_dir() / "forkctl", "--json", "doctor"], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    checks = {c["name"]: c for c in json.loads(p.stdout or "{}").get("checks", [])}
    return "jail" not in checks or checks["jail"]["status"] == "ok"


class Refused(Exception):
    """forkctl said no: .code is its exit code, .error the error object."""

    def __init__(self, args, code, error):
        super().__init__(f"forkctl {' '.join(args)}: exit {code}: {error.get('message')} ({error.get('hint')})")
        self.code, self.error = code, error


class Result:
    """What a command in a guest printed and how it ended."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


class Lab:
    def __init__(self, store="2G", config="", env=None, setup=True, at=None):
        self.at = at  # this directory, which must not be there yet, instead of one with a name of its own
        self.store, self.config, self.setup_wanted = store, config, setup
        self.env = dict(os.environ)
        if os.environ.get("FORKD_LAB_CACHE"):
            self.env["FORKD_CACHE_DIR"] = os.environ["FORKD_LAB_CACHE"]
        self.env.update(env or {})
        self.forkd = None
        self.preexec = None  # called in forkd's process before it becomes forkd
        self.children = []

    def __enter__(self):
        if self.at:
            os.mkdir(self.at)
        self.dir = pathlib.Path(self.at or tempfile.mkdtemp(prefix="forkd-", dir=os.environ.get("FORKD_LAB_DIR", "/tmp"))).resolve()
        self.state, self.run_dir = self.dir / "state", self.dir / "run"
        self.socket = self.run_dir / "forkd.sock"
        self.conf = self.dir / "forkd.conf"
        if os.geteuid() == 0 and "jail" not in self.config and not confinable():
            print("VMMs cannot be confined here (forkctl doctor tells why): they run without a jail", file=sys.stderr)
            self.config += "\n[security]\njail = off\n"
        if "[metrics]" not in self.config: # many forkds run side by side
            self.config += "\n[metrics]\nlisten = 127.0.0.1:0\n"
        self.conf.write_text(self.config)
        self.log_path = self.dir / "forkd.log"
        try:
            if self.setup_wanted:
                self.ctl("setup", "--state-dir", str(self.state), "--store-size", self.store)
            self.start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, exc, tb):
        if kind is not None and self.log_path.exists():
            sys.stderr.write(f"---- end of {self.log_path}\n")
            sys.stderr.write("\n".join(self.log_path.read_text(errors="replace").splitlines()[-40:]) + "\n")
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
        try:
            self.end()
        finally:
            self.kill_remains()
            shutil.rmtree(self.dir, ignore_errors=True)

    # ---- forkd itself ----

    def start(self):
        """Starts forkd and waits until it says that it is ready (the protocol of sd_notify)."""
        note = self.dir / "notify"
        note.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(str(note))
            s.settimeout(60)
            with open(self.log_path, "ab") as log:
                self.forkd = subprocess.Popen(
                    [bin_dir() / "forkd", "--state-dir", self.state, "--run-dir", self.run_dir, "--config", self.conf,
                     "--log-level", os.environ.get("FORKD_LAB_LOG", "info")],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(self.env, NOTIFY_SOCKET=str(note)),
                    preexec_fn=self.preexec)
            self.wait_ready(s)

    def wait_ready(self, s):
        """Other notes may come before the one that is waited for."""
        pidfd = os.pidfd_open(self.forkd.pid)
        end, note = time.monotonic() + 60, b""
        try:
            while b"READY=1" not in note:
                ready, _, _ = select.select([s, pidfd], [], [], max(0, end - time.monotonic()))
                if s not in ready:
                    what = f"exit code {self.forkd.wait()}" if ready else "not within 60 s"
                    raise RuntimeError(f"forkd did not start ({what}): " + self.log_path.read_text(errors="replace")[-2000:])
                note = s.recv(4096)
        finally:
            os.close(pidfd)

    def terminate(self):
        """SIGTERM: forkd goes, its VMs stay."""
        self.forkd.send_signal(signal.SIGTERM)
        code = self.forkd.wait(timeout=60)
        self.expect_clean(code)
        self.forkd = None
        return code

    def expect_clean(self, code):
        """A forkd that is told to go exits with 0; a sanitizer's complaint at the end would not."""
        if code != 0:
            self.forkd = None
            raise AssertionError(f"forkd exited with {code}:\n{self.log_path.read_text(errors='replace')[-6000:]}")

    def end(self):
        """Everything down, in order."""
        if self.forkd is None and self.lives():
            self.start()
        if self.forkd is None:
            return
        if self.forkd.poll() is None:
            try:
                self.ctl("rm", "--all")
                self.ctl("shutdown", "--all")
                self.expect_clean(self.forkd.wait(timeout=60))
            except (Refused, subprocess.TimeoutExpired) as e:
                sys.stderr.write(f"shutdown: {e}\n")
                self.forkd.kill()
                self.forkd.wait()
        self.forkd = None

    # ---- forkctl ----

    def argv(self, *args, json_mode=True):
        return [str(bin_dir() / "forkctl"), "--socket", str(self.socket), *(["--json"] if json_mode else []), *map(str, args)]

    def ctl(self, *args, timeout=600):
        """Runs forkctl --json; returns the document, or raises Refused."""
        p = subprocess.run(self.argv(*args), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env=self.env)
        text = p.stdout.decode(errors="replace")
        try:
            doc = json.loads(text) if text.strip() else {}
        except ValueError:
            raise AssertionError(f"forkctl {args} printed no JSON document: {text[:500]!r} {p.stderr[:500]!r}")
        # `snapshot verify` and `doctor` exit with 1 when what they found is bad; that is an answer, not a refusal
        if p.returncode == 1 and doc and "error" not in doc:
            return doc
        if p.returncode != 0:
            raise Refused([str(a) for a in args], p.returncode, (doc or {}).get("error", {"message": p.stderr.decode()}))
        return doc

    def sh(self, name, script, check=True, timeout=120, stdin=None):
        """Runs a shell script in the guest; stdout and stderr as bytes."""
        p = subprocess.run(self.argv("exec", name, *(["-i"] if stdin is not None else []), "--timeout", timeout, "--",
                                     "/bin/sh", "-c", script, json_mode=False),
                           input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
                           capture_output=True, timeout=timeout + 30, env=self.env)
        if check and p.returncode != 0:
            raise AssertionError(f"{name}: {script!r}: exit {p.returncode}: {p.stdout[-300:]!r} {p.stderr[-300:]!r}")
        return Result(p.returncode, p.stdout, p.stderr)

    def text(self, name, script, **kw):
        return self.sh(name, script, **kw).out.decode().strip()

    def vm(self, name):
        return self.ctl("inspect", name)[0]

    # ---- what Prometheus sees ----

    def metrics_address(self):
        """HOST:PORT, or unix:PATH, as this forkd has logged it last."""
        said = re.findall(r"metrics are at (?:http://)?(\S+?)(?:/metrics)?$", self.log_path.read_text(errors="replace"), re.M)
        if not said:
            raise AssertionError("forkd has said of no address for its metrics")
        return said[-1]

    def get(self, path="/metrics", timeout=20):
        """GET: (status, body as text)."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics_address()}{path}", timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def metrics(self):
        """One scrape: {name: {frozenset of (label, value): number}}."""
        status, text = self.get()
        if status != 200:
            raise AssertionError(f"/metrics: {status}: {text[:300]}")
        return parse_metrics(text)

    # ---- looking from outside ----

    def private_bytes(self, pid):
        """Anonymous bytes of guest RAM: what this VM alone pays. The mapping is the private one of the image."""
        return sum(m["Anonymous"] for m in guest_ram_mappings(pid))

    def processes(self):
        """Process ids that name our directory, by path boundary, in their arguments."""
        mine = []
        needle = str(self.dir)
        for p in pathlib.Path("/proc").iterdir():
            if not p.name.isdigit() or int(p.name) == os.getpid():
                continue
            try:
                words = (p / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(f"{needle}/" in w or w.endswith(needle) for w in words):
                mine.append(int(p.name))
        return mine

    def marked(self):
        """Process ids that our forkd has marked as its own: a confined VMM names no directory of ours."""
        mark = f"FORKD_INSTANCE={instance(self.state)}".encode()
        found = []
        for p in pathlib.Path("/proc").iterdir():
            try:
                if p.name.isdigit() and mark in (p / "environ").read_bytes().split(b"\0"):
                    found.append(int(p.name))
            except OSError:
                continue
        return found

    def vmm_groups(self):
        """({id of a VM: pids}, {id of a VMM shell: pids}) by the cgroups that are not empty. Whatever is no living VM's is a shell
        only if forkd says that it has so many, and has started it itself: else it is in the first, by the name of its group."""
        owners = {v["cgroup"]: v["id"] for v in self.ctl("ps") if v["cgroup"]}
        groups = {}
        for base in cgroups(self.state):
            for d in base.iterdir():
                if re.fullmatch("[0-9a-f]{16}", d.name) and (pids := [int(p) for p in (d / "cgroup.procs").read_text().split()]):
                    groups[d.name] = pids
        count = self.shells()
        vms = {owners[g]: pids for g, pids in groups.items() if g in owners}
        others = {g: pids for g, pids in groups.items() if g not in owners}
        ours = {g: pids for g, pids in others.items() if parent_of(pids[0]) == self.forkd.pid}
        if len(ours) > count["ready"] + count["starting"]:
            ours = {}
        vms.update({g: pids for g, pids in others.items() if g not in ours})
        return vms, ours

    def shells(self):
        return self.ctl("stats")["shells"]

    def wait_shells(self, n=2, timeout=30):
        """Until @n shells are ready and none is on its way: [vmm] shells for each shape in use."""
        end = time.monotonic() + timeout
        while (s := self.shells())["ready"] != n or s["starting"]:
            if time.monotonic() > end:
                raise AssertionError(f"{n} shells are not ready: {s}")
            time.sleep(0.02)
        return s

    def lives(self):
        return [p for p in self.processes()]

    def workers(self):
        """The process ids of this forkd's workers."""
        found = []
        for p in pathlib.Path("/proc").iterdir():
            if p.name.isdigit():
                try:
                    fields = (p / "stat").read_text().rsplit(")", 1)[1].split()
                    if int(fields[1]) == self.forkd.pid and b"--worker" in (p / "cmdline").read_bytes():
                        found.append(int(p.name))
                except OSError:
                    pass
        return found

    def kill_remains(self):
        for pid in {*self.processes(), *self.marked()}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for line in reversed(pathlib.Path("/proc/self/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{self.dir}/"):
                subprocess.run(["umount", "-l", line.split()[1]], check=False)

    def leftovers(self):
        """What is still there after end(): processes, mounts, loop devices, sockets, cgroups. A loop device goes when the last who
        has it or its file system open has let go of it, which a busy host does when it comes to it: that is waited for."""
        end = time.monotonic() + 60
        while (found := self.remains()) and all(f.startswith("loop device") for f in found) and time.monotonic() < end:
            time.sleep(0.02)
        return found

    def remains(self):
        found = [f"process {p}" for p in self.processes()]
        found += [f"mount {m.split()[1]}" for m in pathlib.Path("/proc/self/mounts").read_text().splitlines()
                  if m.split()[1].startswith(f"{self.dir}/")]
        for b in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                if b.read_text().startswith(f"{self.dir}/"):
                    found.append(f"loop device {b}")
            except OSError:
                pass
        found += [f"socket {s}" for s in self.run_dir.rglob("*") if s.is_socket()]
        found += [f"cgroup {c}" for c in cgroups(self.state)]
        return found


def parent_of(pid):
    """0 if it has ended."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return 0


def parse_metrics(text):
    """Prometheus' text format, as far as forkd writes it: {name: {frozenset of (label, value): number}}."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, labels, value = re.fullmatch(r"([a-z_:]+)(?:\{(.*)\})? (\S+)", line).groups()
            pairs = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""))
            if pairs in found.setdefault(name, {}):
                raise AssertionError(f"told twice: {line}")
            found[name][pairs] = float(value)
    return found


def instance(state_dir):
    """Names forkd's cgroup: FNV-1a of the state directory's path."""
    h = 14695981039346656037
    for byte in str(state_dir).encode():
        h = ((h ^ byte) * 1099511628211) % (1 << 64)
    return f"{h:016x}"


def cgroups(state_dir):
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        dev, where, kind = line.split()[:3]
        if kind == "cgroup2":
            yield from pathlib.Path(where).glob(f"*{instance(state_dir)}*")


def guest_ram_mappings(pid):
    """The mappings of guest RAM in a VMM: from its layout file's point of view the largest private ones."""
    maps, current = [], None
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            fields = line.split(None, 5)
            current = {"name": fields[5] if len(fields) > 5 else "", "perms": fields[1]}
            maps.append(current)
        elif line.endswith(" kB"):
            current[first[:-1]] = int(line.split()[1]) * 1024
    return [m for m in maps if "memfd:forkd-image" in m["name"] and "p" in m["perms"]]
