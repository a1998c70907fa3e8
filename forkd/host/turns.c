/* SPDX-License-Identifier: MIT */
/* Theory of operation: `queues` holds a queue for each client that waits, the one whose turn is next in front. A place that
 * becomes free is handed to the first of the front queue, which then goes to the back, and when there is none to the first of
 * `spare`. So a place is never free while somebody waits, and a newcomer cannot overtake. */
#include "forkd/host/turns.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "common/co.h"

/* On the stack of the coroutine that waits. */
struct waiter {
        TAILQ_ENTRY(waiter) entry;
        struct co_wait wait;
};

struct queue {
        TAILQ_ENTRY(queue) entry;
        const void *client;
        TAILQ_HEAD(, waiter) waiters;
};

struct kind {
        unsigned limit, running, waiting;
        TAILQ_HEAD(, queue) queues;
        TAILQ_HEAD(, waiter) spare; /* those whom nobody waits for */
};

struct turns {
        struct kind kinds[HEAVY_KINDS];
        bool (*gone)(const void *client, void *arg);
        void *gone_arg;
        bool stopped;
};

int turns_new(const unsigned limits[HEAVY_KINDS], bool (*gone)(const void *client, void *arg), void *arg, struct turns **ret) {
        struct turns *t = calloc(1, sizeof(*t));

        if (!t)
                return -ENOMEM;
        t->gone = gone;
        t->gone_arg = arg;
        for (int i = 0; i < HEAVY_KINDS; i++) {
                t->kinds[i].limit = MAX_OF(limits[i], 1u);
                TAILQ_INIT(&t->kinds[i].queues);
                TAILQ_INIT(&t->kinds[i].spare);
        }
        *ret = t;
        return 0;
}

void turns_free(struct turns *t) {
        free(t);
}

static struct queue *find_queue(struct kind *k, const void *client) {
        struct queue *q;

        TAILQ_FOREACH (q, &k->queues, entry)
                if (q->client == client)
                        return q;
        return NULL;
}

static struct queue *get_queue(struct kind *k, const void *client) {
        struct queue *q = find_queue(k, client);

        if (q)
                return q;
        q = calloc(1, sizeof(*q));
        if (!q)
                return NULL;
        q->client = client;
        TAILQ_INIT(&q->waiters);
        TAILQ_INSERT_TAIL(&k->queues, q, entry);
        return q;
}

/* Its first waiter is told @r; the queue goes to the back, or away when it is empty. */
static void serve(struct kind *k, struct queue *q, int r) {
        struct waiter *w = TAILQ_FIRST(&q->waiters);

        TAILQ_REMOVE(&q->waiters, w, entry);
        k->waiting--;
        TAILQ_REMOVE(&k->queues, q, entry);
        if (TAILQ_EMPTY(&q->waiters))
                free(q);
        else
                TAILQ_INSERT_TAIL(&k->queues, q, entry);
        co_wake(&w->wait, r);
}

static int canceled(const struct turns *t, struct err *e) {
        if (!t->stopped)
                return err_set(e, ERR_CANCELED, -ECANCELED, "the client went away before it was its turn");
        (void) err_set(e, ERR_CANCELED, -ECANCELED, "forkd is about to exit");
        return err_hint(e, "try again when it is back");
}

int turns_take(struct turns *t, enum heavy kind, struct err *e) {
        struct kind *k = &t->kinds[kind];
        struct waiter w = { .wait = CO_WAIT_INIT };
        const void *client = co_owner();
        struct queue *q;

        if (t->stopped || (client && t->gone && t->gone(client, t->gone_arg)))
                return canceled(t, e);
        if (k->running < k->limit) {
                k->running++;
                return 0;
        }
        q = get_queue(k, client);
        if (!q)
                return err_errno(e, -ENOMEM, "waiting for a turn");
        TAILQ_INSERT_TAIL(&q->waiters, &w, entry);
        k->waiting++;
        return co_wait(&w.wait, -1) < 0 ? canceled(t, e) : 0;
}

int turns_take_spare(struct turns *t, enum heavy kind, struct err *e) {
        struct kind *k = &t->kinds[kind];
        struct waiter w = { .wait = CO_WAIT_INIT };

        if (t->stopped)
                return canceled(t, e);
        if (k->running < k->limit) { /* then nobody waits */
                k->running++;
                return 0;
        }
        TAILQ_INSERT_TAIL(&k->spare, &w, entry);
        return co_wait(&w.wait, -1) < 0 ? canceled(t, e) : 0;
}

static void serve_spare(struct kind *k, int r) {
        struct waiter *w = TAILQ_FIRST(&k->spare);

        TAILQ_REMOVE(&k->spare, w, entry);
        co_wake(&w->wait, r);
}

void turns_give(struct turns *t, enum heavy kind) {
        struct kind *k = &t->kinds[kind];
        struct queue *q = TAILQ_FIRST(&k->queues);

        if (q)
                serve(k, q, 0); /* the place is handed over */
        else if (!TAILQ_EMPTY(&k->spare))
                serve_spare(k, 0);
        else
                k->running--;
}

void turns_client_gone(struct turns *t, const void *client) {
        for (int i = 0; i < HEAVY_KINDS; i++)
                for (struct queue *q; (q = find_queue(&t->kinds[i], client));)
                        serve(&t->kinds[i], q, -ECANCELED);
}

void turns_stop(struct turns *t) {
        t->stopped = true;
        for (int i = 0; i < HEAVY_KINDS; i++) {
                for (struct queue *q; (q = TAILQ_FIRST(&t->kinds[i].queues));)
                        serve(&t->kinds[i], q, -ECANCELED);
                while (!TAILQ_EMPTY(&t->kinds[i].spare))
                        serve_spare(&t->kinds[i], -ECANCELED);
        }
}

struct turns_count turns_count(const struct turns *t, enum heavy kind) {
        const struct kind *k = &t->kinds[kind];

        return (struct turns_count){ k->limit, k->running, k->waiting };
}
