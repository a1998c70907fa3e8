# SPDX-License-Identifier: MIT
"""A real Prometheus server scrapes a real forkd with real guests: every question of the dashboard and of the rules is answered,
what there must be figures of has them, they agree with what was done, and alerts fire for what really happens."""

import os
import re
import signal
import socket
import sys
import time
import xml.etree.ElementTree

from case import Case, main, until
import promtools
from grafana import DASHBOARDS, ROOT, Dashboard, metrics_of, substitute
from prometheus import Prometheus

sys.path.insert(0, str(ROOT / "tools"))
import board_svg  # noqa: E402

EVERY_S, WINDOW_S = 1, 1
MONITORING = ROOT / "docs" / "monitoring.md"
# Panels (some of their questions) that are right to be empty on a healthy host, under TCG, or in this version.
MAY_BE_EMPTY = {"Alerts that fire", "Not healthy", "Failed, and warm VMs in pools/A", "Boot and pool, p95/B",
                "Pager lost", "Guests killed"}
# Families that a healthy host, or this version, may have no series of.
NO_SERIES = set()
# Those that only the probes can tell: without them there are no series.
PROBED = {f"forkd_{m}" for m in ("uffd_wait_seconds", "uffd_waiting_seconds", "vcpu_oncpu_seconds_total", "vcpu_runqueue_seconds_total",
                                 "vcpu_memory_seconds_total", "vcpu_preemptions_total", "vcpu_exits_total", "vcpu_halts_total",
                                 "vcpu_spinning", "vcpu_stuck", "pager_thread_seconds_total")}


def free_port():
    """One that a forkd which is started again listens on again: 0 would be another one each time."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def documented():
    """{family: (type, labels)} of the tables in docs/monitoring.md."""
    found = {}
    for names, kind in re.findall(r"^\| (`(?:forkd|process)_[^|]*) \| ([^|]*) \|", MONITORING.read_text(), flags=re.M):
        for name, labels in re.findall(r"`(\w+)(?:\{([\w,]*)\})?`", names):
            found[name] = (kind, set(labels.split(",")) if labels else set())
    return found


class RealPrometheus(Case):
    port = free_port()
    lab_options = {"config": f"[metrics]\nlisten = 127.0.0.1:{port}\n\n[monitor]\nwindow_ms = {WINDOW_S * 1000}\n\n"
                             "[pager]\nheartbeat_ms = 60000\n"}

    @classmethod
    def setUpClass(cls):
        promtools.or_skip("prometheus")
        super().setUpClass()
        cls.address = cls.lab.metrics_address()
        cls.prom = Prometheus({"forkd": [cls.address]}, rules=DASHBOARDS / "alerts.yml", every=EVERY_S)
        cls.enterClassContext_(cls.prom)
        cls.start = time.time()
        cls.work()
        cls.probes = cls.prom.value("forkd_probes_up") == 1

    @classmethod
    def work(cls):
        """A bit of everything; then all of it has been scraped, twice."""
        cls.lab.ctl("run", "web")
        cls.lab.sh("web", "head -c 16777216 /dev/urandom > /run/data")
        for _ in range(3):
            cls.scraped()
        cls.lab.ctl("standby", "web")
        cls.lab.ctl("fork", "web", "clone", "--count", "4")
        for n in range(1, 5):
            cls.lab.sh(f"clone-{n}", "sha256sum /run/data")
        cls.lab.ctl("restore", "web")
        cls.lab.ctl("standby", "clone-4")
        cls.lab.ctl("pool", "create", "spare", "--from", cls.lab.vm("clone-4")["snapshot"], "--size", "1")
        cls.lab.ctl("pool", "take", "spare", "taken")
        cls.lab.ctl("rm", "taken")
        try:
            cls.lab.ctl("fork", "clone-4", "web")  # there is one
        except Exception:  # noqa: BLE001 the refusal is what is wanted
            pass
        for _ in range(6):
            cls.scraped()

    @classmethod
    def scraped(cls):
        """Once more, from now on."""
        def newest():
            return float(cls.prom.query("timestamp(forkd_build_info)")[0]["value"][1]) if cls.prom.query("forkd_build_info") else 0

        now = time.time()
        until(lambda: newest() > now)

    def families(self):
        """{family: type} and {family: label names} of what forkd says itself."""
        _, text = self.lab.get("/metrics")
        kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, flags=re.M))
        labels = {}
        for name, inside in re.findall(r"^(\w+?)(?:\{(.*)\})? [^ ]+$", text, flags=re.M):
            family = name if name in kinds else re.sub(r"_(?:bucket|sum|count)$", "", name)
            labels.setdefault(family, set()).update(set(re.findall(r'(\w+)="', inside)) - {"le"})
        return kinds, labels

    # ---- what is asked is answered ----

    def test_1_rules_and_target_are_well(self):
        self.assertEqual(self.prom.value('up{job="forkd"}'), 1)
        self.assertEqual(self.prom.rule_troubles(), {})
        # how fast a host is that others use, too, is not judged here
        self.assertEqual(set(self.prom.firing()) - {"ForkdSlowFaults", "ForkdSlowForks"}, set() if self.probes else {"ForkdProbesDown"})

    def test_2_every_panel_is_answered_and_has_data(self):
        span, step = round(time.time() - self.start), EVERY_S
        empty = []
        for where, expr in Dashboard().expressions():
            with self.subTest(query=where):
                asked = substitute(expr, 4 * EVERY_S, span)
                self.prom.query(asked)
                found = self.prom.query_range(asked, self.start, time.time(), step)
                unseen = not self.probes and metrics_of(asked) & PROBED
                if not found and not unseen and not {where, where.rpartition("/")[0]} & MAY_BE_EMPTY:
                    empty.append(f"{where}: {asked}")
        self.assertEqual(empty, [])

    def test_2_the_picture_has_every_panel(self):
        """tools/dashboard_picture.py knows what the dashboard has."""
        now = time.time()
        svg = board_svg.draw(Dashboard(), "a test", self.start, now, EVERY_S,
                             lambda t: self.prom.query_range(substitute(t["expr"], 4 * EVERY_S, 60), self.start, now, EVERY_S),
                             lambda t: self.prom.query(substitute(t["expr"], 4 * EVERY_S, 60)))
        drawn = {e.text for e in xml.etree.ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
        self.assertEqual({p["title"] for p in Dashboard().panels() if p["type"] != "row"} - drawn, set())
        self.assertLessEqual({"clone-1", "web", "p99", "missing", "oncpu"} if self.probes else {"missing"}, drawn)

    def test_3_every_family_is_documented_and_the_other_way_round(self):
        kinds, labels = self.families()
        told = documented()
        self.assertGreater(len(told), 50)
        self.assertEqual(set(kinds), set(told))
        for family, (kind, names) in told.items():
            with self.subTest(family=family):
                if kind in ("counter", "gauge", "histogram"):
                    self.assertEqual(kinds[family], kind)
                if family not in NO_SERIES and (self.probes or family not in PROBED):
                    self.assertEqual(labels.get(family, set()), names)

    def test_4_every_metric_that_is_asked_for_is_there(self):
        kinds, _ = self.families()
        asked = {m for _, expr in Dashboard().expressions() for m in metrics_of(expr)}
        asked |= metrics_of((DASHBOARDS / "alerts.yml").read_text())
        self.assertEqual(asked - set(kinds), set())

    def test_5_figures_are_those_of_what_was_done(self):
        for expr, expected in ((f"sum(forkd_{m}_seconds_count)", n) for m, n in (("boot", 1), ("standby", 2), ("fork", 4), ("restore", 1))):
            self.assertEqual(self.prom.value(expr), expected, expr)
        states = {r["metric"]["state"]: float(r["value"][1]) for r in self.prom.query("forkd_vms")}
        self.assertEqual((states["running"], states["standby"], states["failed"]), (4, 1, 0))
        faults = self.prom.value("sum(forkd_pager_faults_total)")
        self.assertGreater(faults, 100)
        if self.probes:
            waits = self.prom.value("sum(forkd_uffd_wait_seconds_count)")
            print(f"{waits:.0f} waits seen, {faults:.0f} faults served", file=sys.stderr)
            self.assertGreater(waits, 0)
            # the guest of each VM that is here was on a CPU
            busy = {r["metric"]["vm"] for r in self.prom.query("forkd_vcpu_oncpu_seconds_total > 0")}
            self.assertEqual(busy, {"web", "taken", *(f"clone-{n}" for n in range(1, 5))})

    # ---- alerts, for real ----

    def wait_for(self, alert, fires=True, seconds=60):
        try:
            until(lambda: (alert in self.prom.firing()) == fires, timeout=seconds)
        except AssertionError as e:
            raise AssertionError(f"{alert}: {self.prom.firing()}") from e
        return self.prom.firing().get(alert)

    def test_6_a_guest_that_waits_for_ever(self):
        """The pager is stopped, and a guest touches memory that it has not touched yet."""
        if not self.probes and os.environ.get("FORKD_TEST_NO_SKIP") != "1":
            self.skipTest("no probes on this host: forkctl doctor")
        pager = self.lab.ctl("pager", "status")["pid"]
        self.lab.ctl("fork", "clone-4", "waiter")
        os.kill(pager, signal.SIGSTOP)
        try:
            self.lab.sh("waiter", "sha256sum /run/data > /dev/null &", check=False, timeout=5)
            fired = self.wait_for("ForkdVcpuStuck")
            # the others need a page sooner or later, too
            self.assertIn(("waiter", "critical"), {(a["vm"], a["severity"]) for a in fired})
        finally:
            os.kill(pager, signal.SIGCONT)
        self.wait_for("ForkdVcpuStuck", fires=False)
        self.lab.sh("waiter", "true")

    def test_6_guest_that_spins(self):
        """Its kernel has crashed and loops. The others work, and are not taken for it."""
        if not self.probes and os.environ.get("FORKD_TEST_NO_SKIP") != "1":
            self.skipTest("no probes on this host: forkctl doctor")
        self.lab.ctl("fork", "clone-4", "crashed")
        self.lab.sh("crashed", "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger", check=False, timeout=3)
        fired = self.wait_for("ForkdVcpuSpinning")
        self.assertEqual({(a["vm"], a["vcpu"], a["severity"]) for a in fired}, {("crashed", "0", "warning")})
        self.lab.ctl("rm", "crashed")
        self.wait_for("ForkdVcpuSpinning", fires=False)

    def test_7_a_pager_that_dies_and_takes_guests_along(self):
        os.kill(self.lab.ctl("pager", "status")["pid"], signal.SIGKILL)
        killed = self.wait_for("ForkdGuestsKilled")
        self.assertEqual({a["reason"] for a in killed}, {"pager-lost"})
        self.wait_for("ForkdPagerFell")
        self.wait_for("ForkdPagerDown", fires=False)

    def test_8_forkd_that_is_down_and_comes_back(self):
        self.lab.terminate()
        self.wait_for("ForkdDown")
        self.lab.start()
        self.wait_for("ForkdDown", fires=False)
        # it has its port again
        self.assertEqual(self.lab.metrics_address(), self.address)

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()
