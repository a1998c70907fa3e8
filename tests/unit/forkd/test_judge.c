/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include "forkd/monitor/judge.h"

#define MS 1000000ull
#define W (1000 * MS)

/* One that spins, in all respects. */
#define SPINS .window_ns = W, .running = true, .agent = JUDGE_SILENT, .span_ns = W, .oncpu_ns = 970 * MS, .runqueue_ns = 20 * MS
#pragma GCC diagnostic ignored "-Woverride-init"

static const struct one {
        const char *what;
        struct judge_facts f;
        enum judge_verdict want;
} table[] = {
        { "spins", { SPINS }, JUDGE_SPINNING },
        { "not asked yet", { SPINS, .agent = JUDGE_NOT_ASKED }, JUDGE_ASK },
        { "has not had the time to answer", { SPINS, .agent = JUDGE_ASKED }, JUDGE_ASK },
        { "computes, and answers", { SPINS, .agent = JUDGE_MOVES }, JUDGE_OK },
        { "is paused", { SPINS, .running = false }, JUDGE_OK },
        { "was idle for a tenth", { SPINS, .oncpu_ns = 900 * MS, .runqueue_ns = 0 }, JUDGE_OK },
        { "shares its CPU with nine others", { SPINS, .oncpu_ns = 110 * MS, .runqueue_ns = 880 * MS }, JUDGE_SPINNING },
        { "has no CPU at all", { SPINS, .oncpu_ns = 50 * MS, .runqueue_ns = 940 * MS }, JUDGE_OK },
        { "polls for work", { SPINS, .halts = 1 }, JUDGE_OK },
        { "got a page", { SPINS, .served = 1 }, JUDGE_OK },
        { "half a window", { SPINS, .span_ns = W / 2, .oncpu_ns = W / 2 }, JUDGE_OK },
        { "a turn that came a little early", { SPINS, .span_ns = 960 * MS, .oncpu_ns = 960 * MS }, JUDGE_SPINNING },
        { "a void window", { SPINS, .span_ns = 0, .oncpu_ns = 0, .runqueue_ns = 0 }, JUDGE_OK },
        { "a void window of one that span", { SPINS, .spinning = true, .span_ns = 0 }, JUDGE_SPINNING },
        { "an orphan is not asked", { SPINS, .orphan = true, .agent = JUDGE_NOT_ASKED }, JUDGE_SPINNING },
        { "an orphan, a fifth of a window after the loss",
          { SPINS, .orphan = true, .agent = JUDGE_MOVES, .span_ns = W / 5, .oncpu_ns = W / 5 },
          JUDGE_SPINNING },
        { "an orphan of which nothing is known yet", { SPINS, .orphan = true, .span_ns = 0 }, JUDGE_OK },
        { "an orphan that sleeps", { SPINS, .orphan = true, .oncpu_ns = 100 * MS, .runqueue_ns = 0 }, JUDGE_OK },
        { "an orphan that is paused", { SPINS, .orphan = true, .running = false }, JUDGE_OK },
        { "spins on, with a little less", { SPINS, .spinning = true, .oncpu_ns = 910 * MS, .runqueue_ns = 0 }, JUDGE_SPINNING },
        { "spins on, while it is asked again", { SPINS, .spinning = true, .agent = JUDGE_NOT_ASKED }, JUDGE_SPINNING },
        { "spins on, after a void window", { SPINS, .spinning = true, .span_ns = W / 5, .oncpu_ns = W / 5 }, JUDGE_SPINNING },
        { "its agent is back", { SPINS, .spinning = true, .agent = JUDGE_MOVES }, JUDGE_OK },
        { "has come to rest", { SPINS, .spinning = true, .oncpu_ns = 880 * MS, .runqueue_ns = 0 }, JUDGE_OK },
        { "waits for a page", { SPINS, .oncpu_ns = 0, .runqueue_ns = 0, .waiting_ns = W }, JUDGE_OK },
        { "waits for too long", { SPINS, .oncpu_ns = 0, .runqueue_ns = 0, .waiting_ns = W + 1 }, JUDGE_STUCK },
        { "waits for too long, paused or not", { SPINS, .running = false, .waiting_ns = W + 1 }, JUDGE_STUCK },
        { "waits, having spun", { SPINS, .spinning = true, .waiting_ns = W + 1 }, JUDGE_STUCK },
        { "numbers near the end of the world",
          { SPINS, .window_ns = UINT64_MAX / 2, .span_ns = UINT64_MAX / 2, .oncpu_ns = UINT64_MAX / 2, .runqueue_ns = 0 },
          JUDGE_SPINNING },
};

static void test_table(void **state) {
        for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
                if (judge_vcpu(&table[i].f) != table[i].want)
                        fail_msg("%s: verdict %d, not %d", table[i].what, (int) judge_vcpu(&table[i].f), (int) table[i].want);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_table) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
