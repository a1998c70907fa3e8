# SPDX-License-Identifier: MIT
"""What every benchmark and every campaign needs: quantiles, warm memory, the host's description, tables."""

import math
import mmap
import os
import pathlib
import platform
import re
import shutil
import subprocess

MIB = 1 << 20


class Samples(list):
    """Measured values of one thing, in milliseconds unless its name says otherwise."""

    def quantile(self, q):
        """The nearest rank: always a value that was measured."""
        return sorted(self)[max(0, math.ceil(q * len(self)) - 1)]

    @property
    def p50(self):
        return self.quantile(0.5)

    @property
    def p95(self):
        return self.quantile(0.95)

    def doc(self):
        return {"p50": round(self.p50, 3), "p95": round(self.p95, 3), "p99": round(self.quantile(0.99), 3), "min": round(min(self), 3),
                "max": round(max(self), 3), "n": len(self)}

    def __str__(self):
        return f"p50 {self.p50:7.1f}  p95 {self.p95:7.1f}  max {max(self):7.1f}  n {len(self)}"


class Line:
    """One thing that is promised: a value, what it may be at most (or must be at least), and what it was made from.
    What @must be met is no matter of how busy the host is."""

    def __init__(self, what, value, target, at_least=False, unit="x", parts=None, note="", must=False):
        self.what, self.value, self.target, self.at_least, self.unit = what, value, target, at_least, unit
        self.parts, self.note, self.must = parts or {}, note, must

    @property
    def met(self):
        return self.value >= self.target if self.at_least else self.value <= self.target

    def doc(self):
        return {"what": self.what, "value": round(self.value, 3), "unit": self.unit, "target": self.target,
                "bound": "at least" if self.at_least else "at most", "met": self.met, "note": self.note,
                "parts": {k: v.doc() if isinstance(v, Samples) else v for k, v in self.parts.items()}}

    def show(self):
        bound = ">=" if self.at_least else "<="
        print(f"{'met   ' if self.met else 'MISSED'}  {self.what}: {self.value:.2f} {self.unit} (wanted {bound} {self.target:g})")
        for name, part in self.parts.items():
            print(f"          {name:<46} {part}")
        if self.note:
            print(f"          {self.note}")
        print(flush=True)


def markdown(lines):
    """The documents of lines as a table for docs/benchmarks.md: what is promised, and below it what it was made from."""
    rows = ["| | p50 | p95 | p99 | max | n |", "|---|---|---|---|---|---|"]
    for line in lines:
        wanted = ""
        if "target" in line:
            wanted = f" ({'≥' if line['bound'] == 'at least' else '≤'} {line['target']:g}), **{'met' if line['met'] else 'missed'}**"
        rows.append(f"| **{line['what']}: {line['value']:.2f} {line['unit']}**{wanted} | | | | | |")
        for name, part in line["parts"].items():
            if not isinstance(part, dict):
                rows.append(f"| {name} | {part} | | | | |")
            elif "p99" in part:
                rows.append(f"| {name} | " + " | ".join(f"{part[k]:.1f}" for k in ("p50", "p95", "p99", "max")) + f" | {part['n']} |")
            else:
                rows.append(f"| {name} ({part['unit']}) | {part['median']:.2f} | | | {part['max']:.2f} | {part['n']} |")
    return "\n".join(rows) + "\n"


def warm_memory(mib):
    """Touches memory and gives it back. A virtual host gets its memory from its own host at the first touch, which
    takes fifty times as long as any later one."""
    with mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def available_mib():
    text = pathlib.Path("/proc/meminfo").read_text()
    return int(re.search(r"MemAvailable:\s+(\d+)", text).group(1)) // 1024


def host(accel):
    model = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    qemu = "no QEMU"
    if shutil.which("qemu-system-x86_64"):
        qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    return {"cpus": os.cpu_count(), "cpu": model.group(1) if model else platform.machine(), "kernel": platform.release(),
            "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB, "qemu": qemu, "accel": accel,
            "load_before": round(os.getloadavg()[0], 2)}
