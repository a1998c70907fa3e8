# SPDX-License-Identifier: MIT
"""A headless Chromium for tests and pictures: a profile of its own, no way to any host but loopback, ended with all its processes.

Debian's chromium, chromium-driver and python3-selenium (tools/packages-test.txt). `why_not()` says what is missing.
"""

import base64
import json
import os
import pathlib
import shutil
import signal
import socket
import tempfile


def why_not():
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            return f"no {program}"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no python3-selenium"
    try:
        socket.getaddrinfo("localhost", None)
    except OSError:  # a bare chroot without /etc/hosts; chromedriver cannot be told an address instead
        return "the name localhost is not known here, and chromedriver talks to chromium by it: /etc/hosts"
    return None


def shrink(path):
    """A picture of its 256 most frequent colours, the others as the nearest of them: python3-pil."""
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("RGB")
        frequent = sorted(image.getcolors(1 << 24), reverse=True)[:256]
        palette = Image.new("P", (1, 1))
        palette.putpalette([c for _, colour in frequent for c in colour])
        small = image.quantize(palette=palette, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


class Browser:
    """`with Browser(1280, 900) as b:` b.driver is selenium's."""

    def __init__(self, width=1280, height=900, arguments=()):
        self.size, self.arguments = (width, height), arguments

    def __enter__(self):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        self.profile = tempfile.mkdtemp(prefix="forkd-browser-")
        o = webdriver.ChromeOptions()
        for a in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
                  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server", "--hide-scrollbars",
                  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
                  f"--user-data-dir={self.profile}", f"--window-size={self.size[0]},{self.size[1]}", *self.arguments):
            o.add_argument(a)
        o.binary_location = shutil.which("chromium")
        o.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        o.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
        # a session of its own: what it starts is found, and ended, by that
        self.service = Service(shutil.which("chromedriver"), start_new_session=True)
        try:
            self.driver = webdriver.Chrome(service=self.service, options=o)
            self.cdp("Emulation.setDeviceMetricsOverride", width=self.size[0], height=self.size[1], deviceScaleFactor=1, mobile=False)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind, exc, tb):
        try:
            if getattr(self, "driver", None):
                self.driver.quit()
        except Exception as e:  # noqa: BLE001  it is killed below in any case
            print(f"chromium did not end by itself: {type(e).__name__}")
        finally:
            process = getattr(self.service, "process", None)
            for pid in self.processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if process:
                process.kill()
                process.wait()
            shutil.rmtree(self.profile, ignore_errors=True)

    def processes(self):
        """The browser's own: those that name its profile."""
        found = []
        for p in pathlib.Path("/proc").iterdir():
            try:
                if p.name.isdigit() and f"--user-data-dir={self.profile}".encode() in (p / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(p.name))
            except OSError:
                continue
        return found

    def cdp(self, method, **params):
        return self.driver.execute_cdp_cmd(method, params)

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def resize(self, width, height, mobile=False, scale=1):
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    def media(self, **features):
        """prefers_color_scheme="dark" and the like."""
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": k.replace("_", "-"), "value": v} for k, v in features.items()])

    def picture(self, path, whole=False):
        data = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def console(self):
        """What the page has logged since the last call: [(level, message)]."""
        return [(e["level"], e["message"]) for e in self.driver.get_log("browser")]

    def requests(self):
        """The addresses asked for since the last call."""
        events = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
