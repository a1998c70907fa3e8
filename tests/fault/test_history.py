# SPDX-License-Identifier: MIT
"""Does the model see what it is there for? Histories that are possible, and such that are not."""

import unittest

from history import ABSENT, ORIGIN, UNANSWERED, Call, State, check, explain

RUNNING = State("running", ORIGIN, ORIGIN)
FORK = {"from": None, "paused": False}


def call(kind, begin, end, result="ok", seen=None, arg=None, name="a"):
    c = Call(kind, name, begin, FORK if kind == "create" and arg is None else arg)
    c.answered(end, result, seen)
    return c


class History(unittest.TestCase):
    def possible(self, *calls, start=ABSENT, orphans=frozenset()):
        self.assertIsNone(explain(list(calls), orphans, start))

    def impossible(self, *calls, start=ABSENT, orphans=frozenset()):
        self.assertIsNotNone(explain(list(calls), orphans, start))

    def test_one_after_the_other(self):
        self.possible(call("create", 0, 1), call("set", 2, 3, arg="x"), call("standby", 4, 5), call("inspect", 6, 7, seen="standby"),
                      call("restore", 8, 9), call("get", 10, 11, seen="x"), call("rm", 12, 13), call("inspect", 14, 15, "not-found"))

    def test_memory_that_is_not_what_was_left(self):
        self.impossible(call("create", 0, 1), call("set", 2, 3, arg="x"), call("standby", 4, 5), call("restore", 6, 7),
                        call("get", 8, 9, seen=ORIGIN))
        self.impossible(call("create", 0, 1), call("set", 2, 3, arg="x"), call("get", 4, 5, seen=""))
        # stopped, it goes back to what its snapshot says
        self.possible(call("set", 0, 1, arg="x"), call("stop", 2, 3), call("restore", 4, 5), call("get", 6, 7, seen=ORIGIN), start=RUNNING)
        self.impossible(call("set", 0, 1, arg="x"), call("stop", 2, 3), call("restore", 4, 5), call("get", 6, 7, seen="x"), start=RUNNING)

    def test_a_clone_of_a_clone_has_one_value_once_it_is_known(self):
        fork = {"from": "b", "paused": False}
        self.possible(call("create", 0, 1, arg=fork), call("get", 2, 3, seen="x"), call("get", 4, 5, seen="x"))
        self.impossible(call("create", 0, 1, arg=fork), call("get", 2, 3, seen="x"), call("get", 4, 5, seen="y"))
        self.possible(call("create", 0, 1, arg=fork), call("get", 2, 3, seen="x"), call("get", 4, 5, seen="y"), orphans={"y"})
        self.impossible(call("create", 0, 1, arg=fork), call("get", 2, 3, seen="x"), call("stop", 4, 5), call("restore", 6, 7),
                        call("get", 8, 9, seen="y"))

    def test_answers_that_only_another_call_explains(self):
        self.possible(call("standby", 0, 9), call("pause", 1, 2, "busy"), start=RUNNING)
        self.impossible(call("standby", 0, 1), call("pause", 2, 3, "busy"), start=RUNNING)
        self.impossible(call("pause", 2, 3, "busy"), call("inspect", 0, 9, seen="running"), start=RUNNING)
        self.possible(call("create", 0, 9), call("inspect", 1, 2, seen="creating"))
        self.impossible(call("create", 0, 1), call("inspect", 2, 3, seen="creating"))
        self.possible(call("stop", 0, 9), call("set", 1, 2, "agent-failed", arg="x"), start=RUNNING)
        self.impossible(call("set", 1, 2, "agent-failed", arg="x"), start=RUNNING)

    def test_two_that_cannot_both_have_happened(self):
        self.impossible(call("create", 0, 9), call("create", 1, 8))
        self.possible(call("create", 0, 9), call("create", 1, 8, "exists"))
        self.possible(call("create", 0, 9), call("rm", 1, 8), call("create", 2, 7))
        self.impossible(call("standby", 0, 9), call("restore", 1, 8), call("inspect", 10, 11, seen="paused"), start=RUNNING)

    def test_refusals_for_nothing(self):
        self.impossible(call("pause", 0, 1, "wrong-state"), start=RUNNING)
        self.impossible(call("create", 0, 1, "exists"))
        self.impossible(call("rm", 0, 1, "not-found"), start=RUNNING)
        self.impossible(call("restore", 0, 1, "vmm-failed"), start=State("standby", "x", "x"))

    def test_a_vm_that_is_lost(self):
        self.impossible(call("inspect", 0, 1, seen="failed"), start=RUNNING)
        self.impossible(call("inspect", 0, 1, "not-found"), start=RUNNING)

    def test_a_call_without_an_answer_has_happened_or_not(self):
        cut = [call("standby", 0, 5, UNANSWERED)]
        self.possible(*cut, call("inspect", 6, 7, seen="standby"), start=RUNNING)
        self.possible(*cut, call("inspect", 6, 7, seen="running"), start=RUNNING)
        self.impossible(*cut, call("inspect", 6, 7, seen="stopped"), start=RUNNING)
        # but it is decided when the next forkd is there
        self.impossible(*cut, call("inspect", 6, 7, seen="running"), call("inspect", 8, 9, seen="standby"), start=RUNNING)
        self.impossible(call("create", 0, 5, UNANSWERED), call("inspect", 6, 7, seen="paused"))

    def test_names_do_not_mix(self):
        self.assertEqual(check([call("create", 0, 1), call("create", 0, 1, name="b")]), [])
        bad = check([call("create", 0, 1), call("inspect", 2, 3, "not-found"), call("create", 0, 1, name="b")])
        self.assertEqual(len(bad), 1)
        self.assertIn("inspect a -> not-found", bad[0])


if __name__ == "__main__":
    unittest.main()
