# SPDX-License-Identifier: MIT
"""Random operations by eight clients on ten VMs; each answer is checked against a model (history.py). No call may wait for
ever, no VM may be in a state that the answers do not explain, no memory may say what was not put there."""

import collections

import history
import mix
import world
from forkdlab import Lab
from measure import Line, Samples

CLIENTS = 8


def campaign(args, say):
    n_ops = (args.rounds or (240 if args.short else 2000)) // CLIENTS
    with Lab(store="4G") as lab:
        mix.make_origin(lab)
        clients = [mix.Worker(lab, args.seed, i, n_ops) for i in range(CLIENTS)]
        for c in clients:
            c.start()
        for c in clients:
            c.join()
            say(f"{c.name}: {c.done} operations, slowest answer {c.slowest * 1000:.0f} ms")
        problems = [p for c in clients for p in c.problems]
        calls = [c for w in clients for c in w.calls]
        silent = mix.look(lab, calls, mix.all_names(lab), wake=True) if not problems else []
        bad = history.check([c for c in calls if c.end is not None])
        odd = world.complaints(lab) + world.empty_store(lab)
        lab.end()
        left = lab.leftovers()
    kinds = collections.Counter(f"{c.kind} {c.result}" for c in calls)
    for text in bad + problems + odd + silent:
        say(text)
    say("answers: " + ", ".join(f"{k} {n}" for k, n in sorted(kinds.items())))
    n = sum(c.done for c in clients)
    return [
        Line(f"{n} operations by {CLIENTS} clients: answers that the model does not explain", len(bad), 0, unit="", must=True, note="; ".join(bad)[:600]),
        Line(f"{n} operations: calls that did not end, or ended oddly", len(problems), 0, unit="", must=True, note="; ".join(problems)[:600]),
        Line(f"{n} operations: VMs that cannot be used at the end", len(silent), 0, unit="", must=True, note="; ".join(silent)[:600]),
        Line(f"{n} operations: what the host has and forkd does not know, or the reverse", len(odd) + len(left), 0, unit="", must=True,
             note="; ".join(odd + left)[:600]),
        Line("the slowest answer", max(c.slowest for c in clients) * 1000, mix.DEADLINE * 1000, unit="ms",
             parts={"each client's slowest answer": Samples(c.slowest * 1000 for c in clients)}),
    ]
