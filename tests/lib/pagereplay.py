# SPDX-License-Identifier: MIT
"""Made-up documents for forkd's page, and a server on loopback that sends them: for what no real forkd can show in a test of a
minute (hundreds of VMs, deep chains, what a hostile guest would like to be called)."""

import http.server
import json
import queue
import random
import threading
import time


def hist(r, n, centre):
    """@n times around 2^@centre ns."""
    buckets = {}
    for _ in range(min(n, 300)):
        i = min(max(int(r.gauss(centre, 1.6)), 10), 36)
        buckets[i] = buckets.get(i, 0) + max(1, n // 300)
    return as_hist(buckets)


def as_hist(buckets):
    """{log2 of ns: n}, as the document has it."""
    total, ordered = sum(buckets.values()), sorted(buckets.items())

    def at(q):
        seen = 0
        for i, n in ordered:
            seen += n
            if seen >= q * total:
                return 2 ** i / 1e9
        return 0

    return {"count": total, "sum_s": sum(2 ** i * n for i, n in ordered) / 1e9, "max_s": at(1), "p50_s": at(.5), "p90_s": at(.9),
            "p99_s": at(.99), "buckets": [[2 ** i / 1e9, n] for i, n in ordered]}


def more(h, r, n, centre):
    """The histogram a second later, with @n more."""
    buckets = {round(__import__("math").log2(le * 1e9)): c for le, c in h["buckets"]}
    for _ in range(n):
        i = min(max(int(r.gauss(centre, 1.6)), 10), 36)
        buckets[i] = buckets.get(i, 0) + 1
    return as_hist(buckets)


def snapshot_id(i):
    return f"{i * 0x9e3779b97f4a7c15 % 2 ** 64:016x}"


def snapshot(i, parent=None, tag=None, depth=0):
    return {"id": snapshot_id(i), "tag": tag, "parent": snapshot_id(parent) if parent is not None else None, "depth": depth,
            "created": 1.7e9 + i, "ram_bytes": 256 << 20, "stored_bytes": (54 << 20) if parent is None else (1 + i % 7) << 19}


def vm(r, i, name, snap=None, state="running", health="ok", vcpus=1, **other):
    alive = state in ("running", "paused", "booting")
    busy = r.random() * .7 if alive else 0
    v = {"name": name, "id": f"{0x1000 + i:016x}", "state": state, "reason": None, "vmm": "qemu", "accel": "tcg", "pid": 4000 + i if alive else None,
         "mem_bytes": 256 << 20, "snapshot": snapshot_id(snap) if snap is not None else None, "parent": None, "generation": 1,
         "on_pager_loss": "kill", "watched": alive, "ended_ms": None, "session": "serving" if alive and snap is not None else "none",
         "health": health if alive else "unknown", "why": None, "wait": hist(r, 200 if alive else 0, 18), "waiting_ms": 0,
         "vcpus": [{"vcpu": c, "tid": 5000 + 8 * i + c, "state": "oncpu" if busy > .4 else "idle", "oncpu_s": 10 * busy, "runqueue_s": .4, "memory_s": .2,
                    "idle_s": 90, "oncpu": busy, "runqueue": busy / 9, "memory": busy / 14, "preempted": 120, "slept": 4000, "exits": 0, "halts": 0,
                    "waiting_ms": 0, "spinning": False, "stuck": False, "why": None} for c in range(vcpus)] if alive else [],
         "others": {"threads": 3, "oncpu_s": 1, "runqueue_s": .1, "memory_s": 0, "waits": 4}}
    v.update(other)
    return v


def document(vms=(), snapshots=(), **other):
    r = random.Random(7)
    thread = {"tid": 1, "oncpu_s": 3, "runqueue_s": 1, "lock_s": 0, "disk_s": .5, "idle_s": 50}
    d = {"now_ms": 1.7e12, "uptime_ms": 4.2e6, "version": "0.1.0", "metrics_address": "127.0.0.1:9464", "metrics_error": None, "window_ms": 5000,
         "probes": {"ok": True, "method": "sched_switch", "kvm": False, "reason": None, "hint": None, "processes": len(vms) + 1, "max_processes": 1024,
                    "threads": 4 * len(vms), "max_threads": 8192, "overflows": 0, "recycled": 0, "missed": 0, "unwatched_vms": 0},
         "vms": list(vms),
         "pager": {"up": True, "pid": 321, "deaths": 0, "hangs": 0, "recovered": 0, "killed": 0, "upgrades": 0,
                   "faults": {"decoded": 5121, "present": 800, "zero": 210}, "present_bytes": 96 << 20, "budget_bytes": 1 << 30, "sessions": len(vms),
                   "images": 3, "oldest_fault_ms": 0, "wait": hist(r, 900, 18), "service": hist(r, 900, 16),
                   "threads": [{"name": "fault-0", "role": "fault", "oncpu": .22, "runqueue": .04, "lock": .01, "disk": .07, **thread},
                               {"name": "fault-1", "role": "fault", "oncpu": .41, "runqueue": .12, "lock": 0, "disk": .03, **thread},
                               {"name": "fill", "role": "fill", "oncpu": .1, "runqueue": .02, "lock": 0, "disk": .2, **thread},
                               {"name": "uffd-pager", "role": "control", "oncpu": .01, "runqueue": 0, "lock": 0, "disk": 0, **thread}],
                   "served": [{"vm": v["name"], "image": v["snapshot"], "faults": v["wait"]["count"], "pages_installed": 8000, "oldest_fault_ms": 0, "wait": v["wait"]}
                              for v in vms if v["session"] == "serving"]},
         "operations": {"boot": hist(r, 3, 30), "standby": hist(r, 40, 27), "restore": hist(r, 22, 26), "fork": hist(r, 240, 27), "pool_take": hist(r, 0, 20)},
         "failed": {"boot": 0, "standby": 1, "restore": 0, "fork": 0, "pool_take": 0},
         "snapshots": list(snapshots), "pools": [], "store": {"total": 40 << 30, "free": 31 << 30, "snapshots": 3 << 30, "vms": 1 << 30},
         "host": {"mem_total_bytes": 16 << 30, "mem_available_bytes": 9 << 30, "cpus": 8}}
    d.update(other)
    return d


class Replay:
    """Serves @page (bytes) with @policy at /, and at /live whatever send() is given; `with Replay(page, policy) as r: r.url`."""

    def __init__(self, page, policy):
        self.page, self.policy = page, policy
        self.listeners, self.lock, self.first, self.refuse = set(), threading.Lock(), [], False

    def __enter__(self):
        replay = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *a):
                pass

            def do_GET(self):
                if self.path == "/live":
                    return replay.live(self)
                self.send_response(200 if self.path == "/" else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Security-Policy", replay.policy)
                self.end_headers()
                self.wfile.write(replay.page if self.path == "/" else b"no")

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *a):
        self.hang_up()
        self.server.shutdown()
        self.server.server_close()

    def live(self, h):
        if self.refuse:
            h.send_response(503)
            h.end_headers()
            return
        h.send_response(200)
        h.send_header("Content-Type", "text/event-stream")
        h.end_headers()
        mine = queue.Queue()
        with self.lock:
            self.listeners.add(mine)
            for m in self.first:
                mine.put(m)
        try:
            while (m := mine.get()) is not None:
                h.wfile.write(m)
                h.wfile.flush()
        except OSError:
            pass
        finally:
            with self.lock:
                self.listeners.discard(mine)

    def hang_up(self):
        with self.lock:
            for q in self.listeners:
                q.put(None)

    def send(self, doc, kind="picture"):
        m = f"event: {kind}\ndata: {json.dumps(doc)}\n\n".encode()
        with self.lock:
            if kind == "picture":
                self.first = [x for x in self.first if not x.startswith(b"event: picture")]
            self.first.append(m)
            for q in self.listeners:
                q.put(m)

    def wait_for_listener(self, timeout=20):
        end = time.monotonic() + timeout
        while not self.listeners:
            if time.monotonic() > end:
                raise AssertionError("nobody listens")
            time.sleep(.02)
