# SPDX-License-Identifier: MIT
"""A real Prometheus server of our own: a free port on loopback, a directory that goes with it, what it scrapes and its rules.

    with Prometheus({"forkd": ["127.0.0.1:9464"]}, rules=PATH, every=1) as prom:
        prom.query("up")                      [{"metric": {…}, "value": [time, "1"]}]
        prom.query_range(expr, start, end, step)
        prom.firing()                         {"ForkdDown": [{labels}, …]}

`scaled` makes the rules' waiting times (`for`) a second, so that an alert's way through a real server need not take minutes.
"""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import promtools


class Refused(Exception):
    """Prometheus' word on a query that it does not answer."""


class Prometheus:
    def __init__(self, targets, rules=None, every=1.0, scaled=True):
        self.targets, self.rules, self.every, self.scaled = targets, rules, every, scaled
        self.process = None

    def __enter__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="forkd-prometheus-"))
        try:
            self.write_configuration()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exc):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def write_configuration(self):
        every = f"{round(self.every * 1000)}ms"
        config = {"global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
                  "scrape_configs": [{"job_name": job, "static_configs": [{"targets": at}]} for job, at in self.targets.items()]}
        if self.rules:
            text = pathlib.Path(self.rules).read_text()
            (self.dir / "rules.yml").write_text(re.sub(r"^( +for: ).*$", r"\g<1>1s", text, flags=re.M) if self.scaled else text)
            config["rule_files"] = ["rules.yml"]
        (self.dir / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML

    def start(self):
        """It takes a free port, and says in its log which."""
        self.log = self.dir / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [promtools.program("prometheus"), f"--config.file={self.dir / 'prometheus.yml'}", f"--storage.tsdb.path={self.dir / 'data'}",
                 "--web.listen-address=127.0.0.1:0", "--storage.tsdb.retention.time=1d"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir)
        end = time.monotonic() + 60
        while True:
            said = self.log.read_text(errors="replace")
            at = re.search(r'(?:Listening on"|TLS is disabled\.").* address=(127\.0\.0\.1:[1-9]\d*)', said)
            if at and 'msg="Server is ready' in said:
                self.url = f"http://{at[1]}"
                return
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Prometheus did not start: {said[-2000:]}")
            time.sleep(0.02)

    def api(self, path, **params):
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(params)}", timeout=30) as answer:
                doc = json.load(answer)
        except urllib.error.HTTPError as e:
            raise Refused(f"{params}: {e.read().decode(errors='replace')}") from e
        if doc["status"] != "success" or doc.get("warnings"):
            raise Refused(f"{params}: {doc}")
        return doc["data"]

    def query(self, expr, at=None):
        return self.api("query", query=expr, **({"time": at} if at else {}))["result"]

    def value(self, expr):
        """Of an expression that has one sample, or None."""
        found = self.query(expr)
        assert len(found) <= 1, f"{expr}: {found}"
        return float(found[0]["value"][1]) if found else None

    def query_range(self, expr, start, end, step):
        return self.api("query_range", query=expr, start=start, end=end, step=step)["result"]

    def firing(self):
        found = {}
        for a in self.api("alerts")["alerts"]:
            if a["state"] == "firing":
                found.setdefault(a["labels"]["alertname"], []).append(a["labels"])
        return found

    def rule_troubles(self):
        """What rules could not be evaluated, and why: a name that two vectors cannot be joined by shows only here."""
        return {r["name"]: r["lastError"] for g in self.api("rules")["groups"] for r in g["rules"] if r.get("lastError")}
