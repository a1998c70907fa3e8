# SPDX-License-Identifier: MIT
"""Draws the panels of a Grafana dashboard as SVG, out of what Prometheus answers to their questions.

A stand-in for a picture where there is no Grafana: it reads the same file, asks the same questions and puts each panel at its
place in the grid. It knows the kinds of panels and units that forkd's dashboard has, and stops at any other.
"""

import html
import math

COLUMN, UNIT, GAP = 57, 25, 6  # pixels: a column of the grid, a row of it, between panels
INK, DIM, GRID, PANEL, PAGE = "#ccccdc", "#8e8e99", "#2c2f36", "#181b1f", "#111217"
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "dark-red": "#c4162a", "yellow": "#f2cc0c", "blue": "#5794f2",
         "purple": "#b877d9"}
SERIES = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#96d98d", "#ffb357"]
HEAT = ["#3b1f0b", "#6b2f0c", "#a3440f", "#d9641a", "#f7892f", "#fdb063", "#fdd4a5", "#fff1e0"]


def text(x, y, s, size=11, color=INK, anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">'
            f"{html.escape(str(s))}</text>")


def rect(x, y, w, h, color, more=""):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{max(h, 0):.1f}" fill="{color}" {more}/>'


# ---- figures for people ----

def number(v):
    return f"{v:.0f}" if abs(v) >= 100 or v == int(v) else f"{v:.1f}" if abs(v) >= 10 else f"{v:.2g}"


def scaled(v, base, units):
    n = 0
    while abs(v) >= base and n < len(units) - 1:
        v, n = v / base, n + 1
    return f"{number(v)}{units[n]}"


def seconds(v):
    for unit, size in ((" s", 1), (" ms", 1e-3), (" µs", 1e-6)):
        if abs(v) >= size:
            return number(v / size) + unit
    return "0 s" if v == 0 else number(v * 1e9) + " ns"


def figure(v, unit):
    if unit == "s":
        return seconds(v)
    if unit == "percentunit":
        return f"{number(v * 100)} %"
    if unit == "bytes":
        return scaled(v, 1024, [" B", " KiB", " MiB", " GiB", " TiB"])
    if unit in ("short", "ops", "none"):
        return scaled(v, 1000, ["", "k", "M", "G"]) + ("/s" if unit == "ops" else "")
    raise ValueError(f"unit {unit}")


def ticks(top, n=4, binary=False):
    """Round figures from 0 to at least @top."""
    if top <= 0 or not math.isfinite(top):
        return [0, 1]
    base = 2 if binary else 10
    size = base ** math.floor(math.log(top / n, base))
    step = next(size * k for k in ((1, 2) if binary else (1, 2, 5, 10)) if size * k * n >= top * 0.999)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


# ---- one panel ----

class Frame:
    """Where in a panel its drawing goes, and the time axis below it."""

    def __init__(self, panel, x, y, w, h, start, end, left=58, legend=True):
        self.panel, self.start, self.end = panel, start, end
        self.x0, self.y0, self.x1, self.y1 = x + left, y + 30, x + w - 12, y + h - (40 if legend else 24)

    def at(self, t):
        return self.x0 + (self.x1 - self.x0) * (t - self.start) / (self.end - self.start)

    def time_axis(self):
        span = self.end - self.start
        for i in range(5):
            t = self.start + span * i / 4
            yield text(self.at(t), self.y1 + 13, f"{round(t - self.end)} s" if i < 4 else "now", 9, DIM, ("start", *["middle"] * 3, "end")[i])

    def legend(self, names):
        x, y = self.x0 - 40, self.y1 + 30
        for i, (name, color) in enumerate(names):
            w = 16 + 5.6 * len(name)
            if x + w > self.x1 - 20 and i:
                yield text(x, y, f"+{len(names) - i}", 9.5, DIM)
                return
            yield rect(x, y - 4, 9, 3, color)
            yield text(x + 13, y, name, 9.5, INK)
            x += w + 8


def name_of(target, labels):
    form = target.get("legendFormat") or ""
    for k, v in labels.items():
        form = form.replace("{{" + k + "}}", v)
    return form


def lines_of(panel, ask):
    """[(name, [(time, value)])] of all questions of a panel."""
    found = []
    for t in panel["targets"]:
        for s in ask(t):
            values = [(float(at), float(v)) for at, v in s["values"] if math.isfinite(float(v))]
            if values:
                found.append((name_of(t, s["metric"]), values))
    return found


def colors_of(panel, names):
    fixed = {o["matcher"]["options"]: NAMED[q["value"]["fixedColor"]] for o in panel["fieldConfig"]["overrides"] for q in o["properties"]
             if q["id"] == "color"}
    return [fixed.get(name, SERIES[i % len(SERIES)]) for i, name in enumerate(names)]


class Scale:
    """From values to heights, linear from 0 or logarithmic, and the marks at its side."""

    def __init__(self, frame, values, defaults):
        self.f, self.log = frame, defaults["custom"]["scaleDistribution"]["type"] == "log"
        top = max(values, default=0)
        if self.log:
            values = [v for v in values if v > 0] or [1]
            first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
            self.marks = [10.0 ** i for i in range(first, max(last, first + 1) + 1)]
        else:
            self.marks = ticks(min(top, defaults.get("max", top)) or 1, binary=defaults["unit"] == "bytes")

    def y(self, v):
        if self.log:
            low, high = math.log10(self.marks[0]), math.log10(self.marks[-1])
            v = (math.log10(max(v, self.marks[0])) - low) / (high - low)
        else:
            v /= self.marks[-1]
        return self.f.y1 - (self.f.y1 - self.f.y0) * v


def timeseries(panel, frame, ask, step):
    f, lines = frame, lines_of(panel, ask)
    defaults = panel["fieldConfig"]["defaults"]
    colors = colors_of(panel, [name for name, _ in lines])
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    opacity = defaults["custom"]["fillOpacity"] / 100
    below, drawn = {}, []
    for name, values in lines:
        low = [(t, below.get(t, 0) if stacked else 0) for t, _ in values]
        high = [(t, v + b) for (t, v), (_, b) in zip(values, low)]
        below.update(high if stacked else {})
        drawn.append((name, low, high))
    scale = Scale(f, [v for _, _, high in drawn for _, v in high], defaults)
    y = scale.y
    for m in scale.marks:
        yield rect(f.x0, y(m), f.x1 - f.x0, 1, GRID)
        yield text(f.x0 - 6, y(m) + 3, figure(m, defaults["unit"]), 9, DIM, "end")
    for i, (_, low, high) in enumerate(drawn):
        color, stretch = colors[i], []
        for n, (t, v) in enumerate(high):
            stretch.append(((t, v), low[n]))
            nothing = stacked and v == low[n][1]  # its line would hide the one below
            if n + 1 == len(high) or high[n + 1][0] - t > 1.5 * step or nothing:  # a hole stays one
                path = " ".join(f"{f.at(a):.1f},{y(b):.1f}" for (a, b), _ in stretch)
                back = " ".join(f"{f.at(a):.1f},{y(b):.1f}" for _, (a, b) in reversed(stretch))
                yield f'<polygon points="{path} {back}" fill="{color}" fill-opacity="{opacity}"/>'
                yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.3" stroke-linejoin="round"/>'
                stretch = []
    if not drawn:
        yield text((f.x0 + f.x1) / 2, (f.y0 + f.y1) / 2, "none in this stretch of time", 11, DIM, "middle")
    yield from f.time_axis()
    yield from f.legend([(name, colors[i]) for i, (name, _, _) in enumerate(drawn)])


def heatmap(panel, frame, ask, step):
    f = frame
    rows = sorted(((float(s["metric"]["le"]), {float(t): float(v) for t, v in s["values"]}) for s in ask(panel["targets"][0])))
    cells, before = [], {}
    for bound, values in rows:  # buckets are sums: what is below the bound before does not count again
        cells.append((bound, {t: max(v - before.get(t, 0), 0) for t, v in values.items() if math.isfinite(v)}))
        before = values
    used = [i for i, (_, c) in enumerate(cells) if any(v >= 0.5 for v in c.values())]
    if not used:
        yield text((f.x0 + f.x1) / 2, (f.y0 + f.y1) / 2, "no waits in this stretch of time", 11, DIM, "middle")
        return
    cells = cells[max(used[0] - 1, 0):used[-1] + 2]
    most = max(v for _, c in cells for v in c.values())
    height = (f.y1 - f.y0) / len(cells)
    width = (f.x1 - f.x0) * step / (f.end - f.start)
    for i, (bound, c) in enumerate(cells):
        y = f.y1 - height * (i + 1)
        if height >= 10 or i % 2 == 0:
            yield text(f.x0 - 6, y + height / 2 + 3, "+Inf" if math.isinf(bound) else seconds(bound), 9, DIM, "end")
        for t, v in c.items():
            if v >= 0.5:
                shade = HEAT[min(int(math.sqrt(v / most) * len(HEAT)), len(HEAT) - 1)]
                yield rect(f.at(t) - width, y + 0.5, min(width, f.at(t) - f.x0) - 0.5, height - 1, shade)
    yield from f.time_axis()
    yield text(f.x0 - 40, f.y1 + 30, "waits a column: 1", 9.5, DIM)
    for i, shade in enumerate(HEAT):
        yield rect(f.x0 + 50 + 14 * i, f.y1 + 22, 14, 8, shade)
    yield text(f.x0 + 56 + 14 * len(HEAT), f.y1 + 30, f"{most:.0f}", 9.5, DIM)


def mapped(panel, value):
    for m in panel["fieldConfig"]["defaults"].get("mappings", []):
        found = m["options"].get(f"{value:g}")
        if found:
            return found["text"], NAMED[found["color"]]
    return None


def stat(panel, x, y, w, h, ask):
    defaults = panel["fieldConfig"]["defaults"]
    target = panel["targets"][0]
    found = [(name_of(target, s["metric"]), float(s["value"][1])) for s in ask(target)]
    shown, color = defaults.get("noValue", "–"), DIM
    if found:
        name, value = found[0]
        color = NAMED[[s["color"] for s in defaults["thresholds"]["steps"] if s["value"] is None or value >= s["value"]][-1]]
        shown, color = mapped(panel, value) or (figure(value, defaults["unit"]), color)
        shown = name if panel["options"]["textMode"] == "name" else shown
    yield text(x + w / 2, y + h / 2 + 20, shown, 28 if len(shown) < 10 else 20, color, "middle", "600")


def state_timeline(panel, frame, ask, step):
    f, lines = frame, lines_of(panel, ask)
    height = min((f.y1 - f.y0) / max(len(lines), 1), 34)
    for i, (name, values) in enumerate(lines):
        y = f.y0 + height * i
        yield text(f.x0 - 6, y + height / 2 + 3, name, 9.5, DIM, "end")
        for t, v in values:
            yield rect(f.at(t) - (f.x1 - f.x0) * step / (f.end - f.start), y + 3, (f.x1 - f.x0) * step / (f.end - f.start) + 0.5, height - 6,
                       mapped(panel, v)[1], 'fill-opacity="0.75"')
    if not lines:
        yield text((f.x0 + f.x1) / 2, (f.y0 + f.y1) / 2, panel["fieldConfig"]["defaults"].get("noValue", "none"), 11, DIM, "middle")
    yield from f.time_axis()
    names = {m["text"]: NAMED[m["color"]] for m in panel["fieldConfig"]["defaults"]["mappings"][0]["options"].values()}
    yield from f.legend(list(names.items()))


# ---- the whole ----

def draw(board, title, start, end, step, ask_range, ask_now, rows=None):
    """The SVG as text. @ask_range(target), @ask_now(target): Prometheus' answers. @rows: only the first so many."""
    body, shown, bottom = [], 0, 0
    for p in board.doc["panels"]:
        shown += p["type"] == "row"
        if rows and shown > rows:
            break
        g = p["gridPos"]
        x, y, w, h = GAP + g["x"] * COLUMN, 46 + g["y"] * UNIT, g["w"] * COLUMN - GAP, g["h"] * UNIT - GAP
        bottom = max(bottom, y + h)
        if p["type"] == "row":
            body.append(text(x + 2, y + 15, "▾ " + p["title"], 14, INK, weight="600"))
            continue
        body.append(rect(x, y, w, h, PANEL, f'rx="3" stroke="{GRID}"'))
        body.append(text(x + 10, y + 18, p["title"], 12, INK, weight="600"))
        if p["type"] == "stat":
            body += stat(p, x, y, w, h, ask_now)
        else:
            kind = {"timeseries": timeseries, "heatmap": heatmap, "state-timeline": state_timeline}[p["type"]]
            left = 90 if p["type"] == "state-timeline" else 58
            body += kind(p, Frame(p, x, y, w, h, start, end, left), ask_range, step)
    width, height = 24 * COLUMN + GAP, bottom + GAP
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
            f'font-family="Inter, Roboto, DejaVu Sans, sans-serif">{rect(0, 0, width, height, PAGE)}'
            f'{text(GAP + 4, 29, board.doc["title"], 18, INK, weight="600")}{text(width - 12, 29, title, 11, DIM, "end")}{"".join(body)}</svg>')
