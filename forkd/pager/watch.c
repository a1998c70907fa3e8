/* SPDX-License-Identifier: MIT */
/* The pager's heart.
 *
 * Theory of operation. Three signs tell that guests wait in vain, and none of them is enough alone. Its pidfd tells of a
 * pager's death (process.c). The heartbeat asks it eight times within the deadline: it is answered by the control thread, with
 * how long each fault worker has owed a sign of life, so it covers a stopped process, a control thread that hangs, and a
 * worker that does. The age of the oldest fault covers one that is alive and serves nobody.
 *
 * What the guests' threads wait for, seen from outside, is the third (lost.c): a fault that the pager has forgotten has no age.
 *
 * A worker that waits for the disk is no hung one: the pager itself ends the sessions that wait for it too long
 * (PAGER_FAULT_SECONDS), and others go on. Only when it does not come to that it counts as hung.
 *
 * The deadline is counted in turns of our own loop that bring no answer, not by the clock, and a turn that came late does
 * not count: a host that was suspended, or a forkd that is busy or has no CPU, says nothing about the pager. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"

#define BEATS 8 /* within the deadline */
#define LATE 2  /* a turn that took so many times its time tells of us, not of the pager */

/* Why it must be taken for hung, or NULL. */
static const char *judge(const msgpack_object *beat, uint64_t deadline_ms, char *buf, size_t size) {
        const msgpack_object *workers = mp_get_array(beat, "workers");
        uint64_t oldest = 0, age;

        if (!workers)
                return "its heartbeat makes no sense";
        for (uint32_t i = 0; i < workers->via.array.size; i++) {
                const msgpack_object *w = &workers->via.array.ptr[i];
                bool reading = false;

                if (mp_get_u64(w, "stamp_age_ms", &age) < 0)
                        return "its heartbeat makes no sense";
                (void) mp_get_bool(w, "reading", &reading);
                if (age <= deadline_ms || (reading && age <= PAGER_PATIENCE_MS))
                        continue;
                (void) snprintf(buf, size, "its fault worker %u has not moved for %llu ms%s", (unsigned) i,
                                (unsigned long long) age, reading ? ", in a read" : "");
                return buf;
        }
        (void) mp_get_u64(beat, "oldest_fault_ms", &oldest);
        if (oldest <= PAGER_PATIENCE_MS)
                return NULL;
        (void) snprintf(buf, size, "a fault has waited for %llu ms, and it does nothing about it", (unsigned long long) oldest);
        return buf;
}

/* Does it do something for anybody? Who comes after that waits, and is not forgotten. */
static bool is_at_work(const msgpack_object *beat, uint64_t oldest_ms) {
        const msgpack_object *workers = mp_get_array(beat, "workers");
        bool at_work = oldest_ms > 0;

        for (uint32_t i = 0; workers && !at_work && i < workers->via.array.size; i++)
                (void) mp_get_bool(&workers->via.array.ptr[i], "reading", &at_work);
        return at_work;
}

static const char *judge_waits(struct pager_process *o, const msgpack_object *beat, uint64_t deadline_ms) {
        uint64_t oldest;

        if (mp_get_u64(beat, "oldest_fault_ms", &oldest) < 0)
                return NULL;
        if (is_at_work(beat, oldest))
                o->at_work_ns = now_ns();
        return pager_lost_faults(o, oldest, deadline_ms);
}

/* One beat: 0; -ETIMEDOUT: there was none within the deadline, -EIO: its workers hang, with *ret_why; else it is gone. */
static int beat(struct pager_process *o, int turn_ms, char *buf, size_t size, const char **ret_why) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        struct rpc_co call;
        struct err e;
        int r;

        r = rpc_co_begin(&call, o->conn, "heartbeat", NULL, NULL, 0, &e);
        if (r < 0)
                return r;
        for (unsigned turns = 0, late = 0; turns < BEATS && !call.wait.done && !o->leaving;) {
                uint64_t start = now_ns();

                (void) co_wait(&call.wait, turn_ms);
                if (ms_since(start) < LATE * turn_ms || ++late > BEATS * LATE)
                        turns++;
        }
        r = rpc_co_end(&call, 0, &a, &e);
        if (r == -ETIMEDOUT) {
                (void) snprintf(buf, size, "it has not answered for %d ms", turn_ms * BEATS);
                *ret_why = buf;
                return r;
        }
        if (r == 0)
                *ret_why = judge(&a.doc.root, (uint64_t) turn_ms * BEATS, buf, size);
        if (r == 0 && !*ret_why)
                *ret_why = judge_waits(o, &a.doc.root, (uint64_t) turn_ms * BEATS);
        return r == 0 && *ret_why ? -EIO : r;
}

static void watch_main(void *arg) {
        struct pager_process *o = arg;
        int turn_ms = (int) (o->p->d->cfg.heartbeat_ms / BEATS);
        struct co_wait pause = CO_WAIT_INIT;
        char buf[120];

        o->pause = &pause;
        while (pager_process_is_up(o) && !o->leaving) {
                const char *why = NULL;
                int r = pager_has_sessions(o) ? beat(o, turn_ms, buf, sizeof(buf), &why) : 0;

                if (r < 0 && why && !o->leaving)
                        pager_process_hangs(o, why);
                if (r < 0)
                        break; /* its end is noticed elsewhere */
                (void) co_wait(&pause, turn_ms);
        }
        o->watched = false;
        o->pause = NULL;
        if (o->unwatched)
                co_wake(o->unwatched, 0);
        pager_process_unref(o);
}

void pager_watch(struct pager_process *o) {
        if (o->watched)
                return;
        o->watched = true;
        if (co_start(o->p->d->base, watch_main, pager_process_ref(o)) < 0) {
                log_error("out of memory: the pager's heart is not watched");
                o->watched = false;
                pager_process_unref(o);
        }
}

void pager_unwatch(struct pager_process *o) {
        struct co_wait wait = CO_WAIT_INIT;

        o->leaving = true;
        if (!o->watched)
                return;
        o->unwatched = &wait;
        if (o->pause)
                co_wake(o->pause, 0);
        (void) co_wait(&wait, (int) o->p->d->cfg.heartbeat_ms);
        o->unwatched = NULL;
}
