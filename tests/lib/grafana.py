# SPDX-License-Identifier: MIT
"""A Grafana dashboard as a file: its panels and what each asks Prometheus, for tests and for a picture where there is no Grafana."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "bpf" / "dashboards"
METRIC = re.compile(r"(?<![\w:])(?:forkd|process)_[a-z0-9_]+(?![\w:])")


class Dashboard:
    def __init__(self, path=DASHBOARDS / "forkd.json"):
        self.doc = json.loads(pathlib.Path(path).read_text())

    def panels(self):
        """All of them, rows too, also what a collapsed row holds."""
        for p in self.doc["panels"]:
            yield p
            yield from p.get("panels", [])

    def queries(self):
        """(panel, reference, expression as it is written) of each question."""
        for p in self.panels():
            for t in p.get("targets", []):
                yield p, t["refId"], t["expr"]

    def expressions(self):
        """(where, expression) of panels and annotations."""
        yield from ((f"{p['title']}/{ref}", expr) for p, ref, expr in self.queries())
        yield from ((a["name"], a["expr"]) for a in self.doc["annotations"]["list"])


def substitute(expr, interval, span, variables=None):
    """What Grafana makes of an expression: @interval seconds between points at least, @span seconds in all."""
    values = {"__rate_interval": f"{interval}s", "__interval": f"{interval}s", "__range": f"{span}s", "instance": ".*", "vm": ".*",
              **(variables or {})}
    return re.sub(r"\$(\w+)", lambda m: values[m[1]], expr)


def metrics_of(expr):
    """The families that an expression names: a histogram's series are its."""
    return {re.sub(r"_(?:bucket|count|sum)$", "", m) for m in METRIC.findall(expr)}
