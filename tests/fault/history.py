# SPDX-License-Identifier: MIT
"""The model that answers are checked against: were they possible?

Each VM (a name) is a small machine: a status, a value in its memory that `set` writes and `get` reads, and the value
that its snapshot has. A call changes it at one moment between the call and its answer; which moment, nobody knows. So the
history of a name is possible if some order of its calls, that never puts a call after one that began when its answer was
known, explains every answer (linearizability). `explain` looks for one: it keeps every state that the VM may be in, and
for each which of the open calls have happened already.

A call that was never answered (its forkd was killed) may have happened until the next forkd was ready, or not at all.
What one step cannot tell: `busy`, a status on the way (`creating`), an exec that was cut. These are possible while another
call changes the VM, and only then."""

import collections

LIVE = ("running", "paused")
AT_REST = ("standby", "stopped", "failed")
ON_THE_WAY = ("creating", "booting", "stopping")
UNANSWERED = "unanswered"
ORIGIN = "origin"  # what the template's memory says

State = collections.namedtuple("State", "status value saved")
ABSENT = State("absent", None, None)


class Call:
    """One call, as far as it concerns one name. @result: "ok", an error's code, or UNANSWERED; @seen: what it told."""

    def __init__(self, kind, name, begin, arg=None):
        self.kind, self.name, self.begin, self.arg = kind, name, begin, arg
        self.end = self.result = self.seen = None
        self.overlapped = False  # another call changed, or may have changed, this name meanwhile
        self.why = ""

    def answered(self, end, result, seen=None, why=""):
        self.end, self.result, self.seen, self.why = end, result, seen, why

    def __str__(self):
        return (f"[{self.begin:9.3f} … {self.end:9.3f}] {self.kind} {self.name}{' ' + str(self.arg) if self.arg else ''}"
                f" -> {self.result}{' ' + str(self.seen) if self.seen is not None else ''}{' (' + self.why + ')' if self.why else ''}")


# What a call does to the VM when it is done: from which states, to which.

def _create(s, c):
    if s.status != "absent":
        return None
    value = ORIGIN if c.arg["from"] is None else ("?", c.begin, c.name)
    return State("paused" if c.arg["paused"] else "running", value, value)


def _set(s, c):
    return s._replace(value=c.arg) if s.status == "running" else None


def _bind(s, c, orphans):
    """A `get` told the value: it must be the VM's, or one that was not known until now, or that of a command which was
    under way when the VM's memory was saved, and has gone on in the copy."""
    if s.status != "running":
        return None
    if isinstance(s.value, tuple):
        return State(s.status, c.seen, c.seen if s.saved == s.value else s.saved)
    return s._replace(value=c.seen) if s.value == c.seen or c.seen in orphans else None


DONE = {
    "create": _create,
    "source": lambda s, c: s if s.status in (*LIVE, "standby") else None,
    "snapshot": lambda s, c: s if s.status in LIVE else None,
    "standby": lambda s, c: State("standby", s.value, s.value) if s.status in LIVE else None,
    "restore": lambda s, c: State("running", s.saved, s.saved) if s.status in AT_REST else None,
    "pause": lambda s, c: s._replace(status="paused") if s.status in LIVE else None,
    "resume": lambda s, c: s._replace(status="running") if s.status in LIVE else None,
    "stop": lambda s, c: s._replace(status="stopped") if s.status in (*LIVE, "stopped") else None,
    "rm": lambda s, c: ABSENT if s.status != "absent" else None,
    "set": _set,
}
CHANGES = ("create", "standby", "restore", "pause", "resume", "stop", "rm")
SAVES = ("source", "snapshot", "standby")
HOLDS = {*CHANGES, *SAVES}
# A command in the guest that is cut by what others do with the VM ends with one of these.
CUT = ("agent-failed", "canceled", "vmm-failed", "timeout", "cut")


def after(s, c, orphans):
    """The state after @c has happened to @s with its answer; None: it cannot have."""
    if c.kind == "inspect":
        if c.result == "ok" and c.seen in ON_THE_WAY:
            return s if c.overlapped else None
        return s if s.status == (c.seen if c.result == "ok" else "absent" if c.result == "not-found" else None) else None
    if c.kind == "get" and c.result == "ok":
        return _bind(s, c, orphans)
    if c.kind in DONE and c.result in ("ok", UNANSWERED):
        return DONE[c.kind](s, c)
    if c.result == "busy":
        return s if c.overlapped else None
    if c.result == "not-found":
        return s if s.status == "absent" or c.overlapped and c.kind in ("get", "set") else None
    if c.result == "exists":
        return s if c.kind == "create" and (s.status != "absent" or c.overlapped) else None
    if c.result == "wrong-state":
        if c.kind in ("get", "set"):
            return s if s.status not in ("running", "absent") or c.overlapped else None
        return s if s.status != "absent" and DONE[c.kind](s, c) is None else None
    return None


def may_drop(c):
    """May it never have happened?"""
    return c.result == UNANSWERED or c.result == "source-failed" or c.kind in ("get", "set") and c.result in CUT and c.overlapped


def after_cut(s, c, orphans):
    """A cut `set` may have happened all the same."""
    if c.kind == "set" and c.result in CUT:
        return _set(s, c) if c.overlapped else None
    return after(s, c, orphans)


def mark_overlaps(calls):
    for c in calls:
        c.overlapped = any(o is not c and o.kind in HOLDS and o.begin <= c.end and c.begin <= o.end and o.result not in ("not-found",)
                           for o in calls)


def orphans_of(calls):
    """Values of commands that may have been under way when a copy of the guest's memory was made."""
    savers = [c for c in calls if c.kind in SAVES]
    return {c.arg for c in calls if c.kind == "set" and
            (c.result != "ok" or any(o.name == c.name and o.begin <= c.end and c.begin <= o.end for o in savers))}


def explain(calls, orphans=frozenset(), start=ABSENT):
    """None if the history of one name is possible, else the first call whose answer nothing explains, and from what."""
    mark_overlaps(calls)
    events = sorted([(c.begin, 0, i) for i, c in enumerate(calls)] + [(c.end, 1, i) for i, c in enumerate(calls)])
    configs, open_calls = {(start, frozenset())}, set()
    for _, ends, i in events:
        if not ends:
            open_calls.add(i)
            continue
        grown, todo = set(configs), list(configs)
        while todo:  # every order of the open calls
            s, happened = todo.pop()
            for k in open_calls - happened:
                n = after_cut(s, calls[k], orphans)
                new = (n, happened | {k})
                if n is not None and new not in grown:
                    grown.add(new)
                    todo.append(new)
        configs = {(s, h - {i}) for s, h in grown if i in h or may_drop(calls[i])}
        open_calls.discard(i)
        if not configs:
            return calls[i], sorted({s.status for s, _ in grown})
    return None


def check(calls):
    """All names; a sentence for each history that is not possible."""
    names = collections.defaultdict(list)
    orphans = orphans_of(calls)
    for c in calls:
        names[c.name].append(c)
    bad = []
    for name, own in names.items():
        wrong = explain(own, orphans)
        if wrong:
            call, statuses = wrong
            near = [str(c) for c in sorted(own, key=lambda c: c.begin) if c.end >= call.begin - 1 and c.begin <= call.end][-12:]
            bad.append(f"{name}: {call}: possible were {statuses}; around it:\n    " + "\n    ".join(near))
    return bad
