# SPDX-License-Identifier: MIT
"""The dashboard and the alert rules, without a forkd: promtool judges each expression, each alert is silent when all is well
and fires when it is not, and every metric that is named has its place in docs/monitoring.md."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lib"))
import promtools  # noqa: E402
from grafana import DASHBOARDS, Dashboard, metrics_of, substitute  # noqa: E402

RULES = DASHBOARDS / "alerts.yml"
MONITORING = ROOT / "docs" / "monitoring.md"
KINDS = {"row", "stat", "timeseries", "heatmap", "state-timeline"}
HOST = "h:9464"


def promtool(*args, cwd=None):
    p = subprocess.run([promtools.or_skip("promtool"), *args], cwd=cwd, capture_output=True, text=True, timeout=60)
    return p.returncode, p.stdout + p.stderr


def alerts():
    """{alert: its lines} as they are written."""
    found = re.split(r"^      - alert: (\w+)\n", RULES.read_text(), flags=re.M)
    return dict(zip(found[1::2], found[2::2]))


def series(name, values, **labels):
    text = ", ".join(f'{k}="{v}"' for k, v in {"instance": HOST, "job": "forkd", **labels}.items())
    return {f"{name}{{{text}}}": values}


def histogram(name, a_minute, **labels):
    """@a_minute: {bound: how many come a minute that are not above it}."""
    found = {}
    for bound, n in {**a_minute, "+Inf": max(a_minute.values())}.items():
        found |= series(f"{name}_bucket", f"0+{n}x120", le=bound, **labels)
    return found | series(f"{name}_count", f"0+{max(a_minute.values())}x120", **labels)


def threads(**a_minute):
    """Seconds a minute that fault threads are in each state."""
    found = {}
    for state, s in a_minute.items():
        found |= series("forkd_pager_thread_seconds_total", f"0+{s}x120", role="fault", state=state)
    return found


HEALTHY = {
    **series("up", "1x120"),
    **series("forkd_vcpu_spinning", "0x120", vm="web", vcpu="0"),
    **series("forkd_vcpu_stuck", "0x120", vm="web", vcpu="0"),
    **histogram("forkd_uffd_wait_seconds", {"0.000262144": 500, "0.001048576": 598, "0.067108864": 600}, vm="web"),
    # one wait alone was long, and says nothing
    **histogram("forkd_uffd_wait_seconds", {"0.000262144": 0, "0.134217728": 1}, vm="rare"),
    **threads(oncpu=6, runqueue=1, lock=0, disk=1, idle=52),
    **series("forkd_guests_killed_total", "0x120", reason="pager-lost"),
    **series("forkd_operations_failed_total", "0x60 1x60", operation="fork"),
    **histogram("forkd_fork_seconds", {"0.134217728": 50, "0.268435456": 60}),
    **series("forkd_pager_up", "1x60 0x0 1x60"),
    **series("forkd_pager_oldest_fault_seconds", "0.1 0.3 0x118"),
    **series("forkd_pager_status_age_seconds", "0 15 0x118"),
    **series("forkd_pager_deaths_total", "0x120"),
    **series("forkd_pager_hangs_total", "0x120"),
    **series("forkd_pager_refaults_total", "0+60x120"),
    **series("forkd_store_bytes", "60e9-1e6x120", kind="free"),
    **series("forkd_store_bytes", "64e6x120", kind="reserve"),
    **series("forkd_store_bytes", "100e9x120", kind="total"),
    **series("forkd_admission_memory_bytes", "8e9x120", kind="available"),
    **series("forkd_admission_memory_bytes", "300e6x120", kind="reserved"),
    **series("forkd_probes_up", "1x120"),
    **series("forkd_probes_overflows_total", "0x120"),
    **series("forkd_probes_missed_total", "0x120"),
    **series("forkd_vms_unwatched", "0x120"),
    **series("forkd_metrics_unlisted_vms", "0x120"),
}

# alert: (what is otherwise, when it is silent yet, when it fires, its labels, its summary; its description, if that is made of figures)
CASES = {
    "ForkdVcpuSpinning": (series("forkd_vcpu_spinning", "0x59 1x60", vm="web", vcpu="0"), "59m", "60m",
                          {"vm": "web", "vcpu": "0", "severity": "warning"}, "vCPU 0 of web burns a core on h:9464, and nothing moves"),
    "ForkdVcpuStuck": (series("forkd_vcpu_stuck", "0x59 1x60", vm="web", vcpu="0"), "59m", "60m",
                       {"vm": "web", "vcpu": "0", "severity": "critical"}, "vCPU 0 of web on h:9464 waits for a page that does not come"),
    "ForkdSlowFaults": (histogram("forkd_uffd_wait_seconds",
                                  {"0.000262144": 500, "0.001048576": 500, "0.067108864": 500, "0.134217728": 600}, vm="web"),
                        "4m", "20m", {"vm": "web", "severity": "warning"},
                        "One wait for memory in a hundred of web on h:9464 takes more than 130.2ms",
                        "Of the time that the pager's fault threads were busy: disk 12.5%, oncpu 75%, runqueue 12.5%, "
                        "which says whom the guests wait for."),
    "ForkdGuestsKilled": (series("forkd_guests_killed_total", "0x59 3x60", reason="pager-lost"), "59m", "62m",
                          {"reason": "pager-lost", "severity": "critical"}, "3 guests on h:9464 were killed: pager-lost"),
    "ForkdOperationsFail": (series("forkd_operations_failed_total", "0x59 6x60", operation="fork"), "59m", "62m",
                            {"operation": "fork", "severity": "warning"}, "6 times fork failed on h:9464 in ten minutes"),
    "ForkdSlowForks": (histogram("forkd_fork_seconds", {"0.134217728": 10, "0.268435456": 10, "2.147483648": 10, "4.294967296": 60}), "9m", "20m",
                       {"severity": "warning"}, "One fork in twenty on h:9464 takes more than 4.166s"),
    "ForkdPagerDown": (series("forkd_pager_up", "1x59 0x60"), "60m", "61m", {"severity": "critical"}, "forkd on h:9464 has no pager"),
    "ForkdPagerOwesAPage": (series("forkd_pager_oldest_fault_seconds", "0x59 9x60"), "59m", "60m", {"severity": "critical"},
                            "The pager on h:9464 has owed a guest a page for 9s"),
    "ForkdPagerSilent": (series("forkd_pager_status_age_seconds", "0x59 60x60"), "59m", "60m", {"severity": "critical"},
                         "The pager on h:9464 has told nothing of itself for 1m 0s"),
    "ForkdPagerFell": (series("forkd_pager_deaths_total", "0x59 1x60"), "59m", "61m", {"severity": "warning"},
                       "The pager on h:9464 died or hung in the last quarter of an hour"),
    "ForkdPagerThrashes": (series("forkd_pager_refaults_total", "0+3000x120"), "10m", "20m", {"severity": "warning"},
                           "The pager on h:9464 decodes 50 chunks a second again that it had to give back"),
    "ForkdDown": (series("up", "1x59 0x60"), "60m", "61m", {"job": "forkd", "severity": "critical"}, "forkd on h:9464 does not answer"),
    "ForkdStoreNearlyFull": (series("forkd_store_bytes", "5.064e9x120", kind="free"), "4m", "6m", {"severity": "warning"},
                             "5% of the store on h:9464 is left"),
    "ForkdStoreFillsUp": (series("forkd_store_bytes", "40e9-200e6x120", kind="free"), "10m", "20m",
                          {"job": "forkd", "kind": "free", "severity": "warning"}, "The store on h:9464 will be full within four hours"),
    "ForkdNoRoom": (series("forkd_admission_memory_bytes", "433e6x120", kind="available"), "4m", "6m", {"severity": "warning"},
                    "h:9464 has 126.8MiB of memory left for VMs"),
    "ForkdProbesDown": ({**series("forkd_probes_up", "1x120"), **series("forkd_probes_info", "1x120", method="none", kvm="no")}, "9m", "11m",
                        {"severity": "info"},
                        "forkd on h:9464 cannot see how its guests wait"),
    "ForkdProbesLose": (series("forkd_probes_missed_total", "0x59 14x60"), "59m", "61m", {"severity": "info"},
                        "14 threads or events on h:9464 were not counted"),
    "ForkdVmsUnwatched": (series("forkd_vms_unwatched", "2x120"), "4m", "6m", {"severity": "info"}, "2 VMs on h:9464 are not watched"),
    "ForkdVmsUnlisted": (series("forkd_metrics_unlisted_vms", "7x120"), "4m", "6m", {"severity": "info"},
                         "7 VMs on h:9464 have no series of their own"),
}


def unit_tests():
    """The cases as promtool reads them."""
    def test(name, values, checks):
        return {"name": name, "interval": "1m", "input_series": [{"series": k, "values": v} for k, v in values.items()],
                "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected} for at, alert, expected in checks]}

    tests = [test("healthy", HEALTHY, [(at, alert, []) for alert in CASES for at in ("1m", "30m", "61m", "2h")])]
    for alert, (other, silent, fires, labels, summary, *description) in CASES.items():
        expected = {"exp_labels": {"instance": HOST, **labels}, "exp_annotations": {"summary": summary}}
        if description:
            expected["exp_annotations"]["description"] = description[0]
        others = [(fires, a, []) for a in CASES if a != alert]
        tests.append(test(alert, HEALTHY | other, [(silent, alert, []), (fires, alert, [expected]), *others]))
    return {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}


class Rules(unittest.TestCase):
    def test_promtool_has_no_complaint(self):
        for args in (("check", "rules", str(RULES)), ("check", "config", str(DASHBOARDS / "prometheus.yml"))):
            code, said = promtool(*args)
            self.assertEqual(code, 0, said)
            self.assertNotRegex(said, "(?i)fail|warn|duplicate")

    def test_each_alert_says_what_and_what_to_do(self):
        self.assertEqual(set(alerts()), set(CASES))
        headings = re.findall(r"^#+ (.*)$", MONITORING.read_text(), flags=re.M)
        anchors = {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}
        for alert, text in alerts().items():
            with self.subTest(alert=alert):
                for word in (r"severity: (?:critical|warning|info)$", r"summary: ", r"description: "):
                    self.assertRegex(text, re.compile(word, re.M))
                runbook, = re.findall(r"runbook: docs/monitoring.md#(\S+)$", text, flags=re.M)
                self.assertIn(runbook, anchors)
                self.assertIn(f"`{alert}`", MONITORING.read_text())

    def test_each_alert_fires_when_it_must_and_only_then(self):
        with tempfile.TemporaryDirectory() as d:
            # what stands in one line in the rules does so for good; texts that are made of figures are compared
            rules = re.sub(r'^          (?:runbook: .*|description: ".*")\n', "", RULES.read_text(), flags=re.M)
            (pathlib.Path(d) / "alerts.yml").write_text(rules)
            (pathlib.Path(d) / "tests.yml").write_text(json.dumps(unit_tests()))
            code, said = promtool("test", "rules", "tests.yml", cwd=d)
        self.assertEqual(code, 0, said)
        self.assertIn("SUCCESS", said)


class Board(unittest.TestCase):
    def setUp(self):
        self.board = Dashboard()

    def test_what_grafana_must_find(self):
        doc = self.board.doc
        self.assertGreaterEqual(doc["schemaVersion"], 36)  # Grafana 9
        self.assertIsNone(doc["id"])  # or it would replace another one on import
        self.assertTrue(doc["uid"] and doc["title"])
        variables = {v["name"]: v for v in doc["templating"]["list"]}
        self.assertEqual((variables["datasource"]["type"], variables["datasource"]["query"]), ("datasource", "prometheus"))
        source = {"type": "prometheus", "uid": "${datasource}"}
        for v in (variables["instance"], variables["vm"], *doc["annotations"]["list"]):
            self.assertEqual(v["datasource"], source)
        ids = [p["id"] for p in self.board.panels()]
        self.assertEqual(len(ids), len(set(ids)))
        for p in self.board.panels():
            with self.subTest(panel=p["title"]):
                self.assertIn(p["type"], KINDS)
                if p["type"] != "row":
                    self.assertEqual(p["datasource"], source)
                    self.assertTrue(p["fieldConfig"]["defaults"].get("unit") or p["type"] in ("heatmap", "state-timeline"))
                    refs = [t["refId"] for t in p["targets"]]
                    self.assertTrue(refs and len(refs) == len(set(refs)))
                    self.assertTrue(all(t["datasource"] == source and t["expr"].strip() for t in p["targets"]))

    def test_panels_lie_side_by_side(self):
        taken = {}
        for p in self.board.panels():
            g = p["gridPos"]
            self.assertLessEqual(g["x"] + g["w"], 24, p["title"])
            for cell in ((x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])):
                self.assertNotIn(cell, taken, f"{p['title']} lies on {taken.get(cell)}")
                taken[cell] = p["title"]

    def test_variables_are_declared(self):
        declared = {v["name"] for v in self.board.doc["templating"]["list"]} | {"__rate_interval", "__range", "__interval"}
        for where, expr in self.board.expressions():
            with self.subTest(query=where):
                self.assertEqual(set(re.findall(r"\$(\w+)", expr)) - declared, set())

    def test_each_expression_is_understood(self):
        rules = [{"record": f"x:{i}", "expr": substitute(expr, 60, 3600), "labels": {"where": where}}
                 for i, (where, expr) in enumerate(self.board.expressions())]
        self.assertGreater(len(rules), 60)
        with tempfile.TemporaryDirectory() as d:
            path = pathlib.Path(d) / "rules.yml"
            path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
            code, said = promtool("check", "rules", str(path))
        self.assertEqual(code, 0, said)


class Names(unittest.TestCase):
    def test_every_metric_that_is_asked_for_is_documented(self):
        documented = metrics_of("\n".join(re.findall(r"^\| `.*$", MONITORING.read_text(), flags=re.M)))
        asked = {m: where for where, expr in Dashboard().expressions() for m in metrics_of(expr)}
        asked |= {m: "alerts.yml" for m in metrics_of(RULES.read_text())}
        self.assertGreater(len(asked), 40)
        self.assertEqual({m: w for m, w in asked.items() if m not in documented}, {})

    def test_every_kind_of_event_is_documented_and_the_other_way_round(self):
        known, = re.findall(r"known_kinds\[\] = \{(.*?)\};", (ROOT / "forkd" / "events.c").read_text(), flags=re.S)
        section = MONITORING.read_text().partition("\n## Events\n")[2].partition("\n## ")[0]
        told = {k for row in re.findall(r"^\| (`[^|]*) \|", section, flags=re.M) for k in re.findall(r"`([\w.]+)`", row)}
        known = set(re.findall(r'"([\w.]+)"', known))
        self.assertEqual(known, told)
        noted = {k for f in (ROOT / "forkd").rglob("*.c") for k in re.findall(r'events_add\([^,;]*,\s*"([\w.]+)"', f.read_text())}
        self.assertGreater(len(noted), 5)
        self.assertEqual(noted - known, set())


if __name__ == "__main__":
    unittest.main(verbosity=2)
