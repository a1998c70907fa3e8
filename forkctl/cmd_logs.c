/* SPDX-License-Identifier: MIT */
/* Theory of operation: `logs`
 *
 * forkd hands out the console in pieces by offset. Without -f the end is where the log ended at the first
 * answer, so a guest that talks without pause does not keep us for ever. With -f we ask again after a pause:
 * the log is a file that grows, nobody announces it. It ends when the VM is removed. */
#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "common/json.h"

#define LOG_CHUNK (1u << 20)         /* asked for at once */
#define LOG_MAX_DOCUMENT (64u << 20) /* of --json without -f, which has to hold it all */
#define FOLLOW_EVERY_MS 200          /* a person notices no delay of that size */

struct logs {
        struct ctl *c;
        bool follow;
        uint64_t offset, end; /* end: where to stop without -f */
        size_t got;           /* bytes of the last answer */
        char *all;            /* --json without -f */
        size_t n_all;
        bool done, answered; /* of the call under way */
        int r;
};

static int emit(struct logs *l, const void *data, size_t len) {
        cleanup_json json_t *line = NULL;
        char *p;

        if (!l->c->json)
                return fwrite(data, 1, len, stdout) == len ? 0 : err_errno(&l->c->e, -errno, "writing the output");
        if (l->follow) {
                line = json_object();
                if (json_set_bytes(line, "data", data, len) < 0 ||
                    json_object_set_new(line, "offset", json_integer((json_int_t) l->offset)) < 0)
                        return err_errno(&l->c->e, -ENOMEM, "reading the log");
                return ctl_print(l->c, line);
        }
        if (len > LOG_MAX_DOCUMENT - l->n_all) {
                (void) err_set(&l->c->e, ERR_LIMIT, -EFBIG, "the log is larger than %u MiB", LOG_MAX_DOCUMENT >> 20);
                return err_hint(&l->c->e, "read it without --json, or with -f, which prints one document a piece");
        }
        p = realloc(l->all, l->n_all + len + 1);
        if (!p)
                return err_errno(&l->c->e, -ENOMEM, "reading the log");
        memcpy(p + l->n_all, data, len);
        l->all = p;
        l->n_all += len;
        return 0;
}

static void take(struct logs *l, const msgpack_object *result) {
        uint64_t next, size = 0;
        const void *data;
        size_t len;

        if (mp_get_bin(result, "data", &data, &len) < 0 || mp_get_u64(result, "next_offset", &next) < 0) {
                l->r = err_set(&l->c->e, ERR_PROTOCOL, -EPROTO, "forkd's answer has no log in it");
                return;
        }
        (void) mp_get_u64(result, "size", &size);
        if (!l->answered)
                l->end = size;
        l->answered = true;
        l->got = len;
        if (len > 0)
                l->r = emit(l, data, len);
        l->offset = next;
        if (size < l->offset && len == 0)
                l->offset = 0; /* it was started anew */
}

static void on_logs(const struct rpc_result *res, void *arg) {
        struct logs *l = arg;

        l->done = true;
        if (res->r < 0)
                l->r = ctl_call_error(l->c, "vm.logs", res);
        else
                take(l, res->result);
}

static int ask(struct logs *l, const char *name) {
        cleanup_req struct req q;
        int r;

        req_init(&q);
        req_str(&q, "name", name);
        req_u64(&q, "offset", l->offset);
        req_u64(&q, "max", LOG_CHUNK);
        l->done = false;
        r = ctl_start(l->c, "vm.logs", &q, on_logs, l, NULL);
        while (r == 0 && !l->done)
                if (event_base_loop(l->c->base, EVLOOP_ONCE) != 0)
                        return err_set(&l->c->e, ERR_INTERNAL, -EIO, "the event loop failed");
        return r < 0 ? r : l->r;
}

/* Lets the loop run for a while: a connection that ends meanwhile fails the next call. */
static int pause_a_little(struct logs *l) {
        static const struct timeval tv = { .tv_usec = FOLLOW_EVERY_MS * 1000L };

        if (event_base_loopexit(l->c->base, &tv) < 0 || event_base_dispatch(l->c->base) < 0)
                return err_set(&l->c->e, ERR_INTERNAL, -EIO, "the event loop failed");
        return 0;
}

static int print_all(struct logs *l) {
        cleanup_json json_t *doc = json_object();

        if (json_set_bytes(doc, "data", l->all ? l->all : "", l->n_all) < 0 ||
            json_object_set_new(doc, "size", json_integer((json_int_t) l->n_all)) < 0)
                return err_errno(&l->c->e, -ENOMEM, "reading the log");
        return ctl_print(l->c, doc);
}

int cmd_logs(struct ctl *c, const struct args *a) {
        struct logs l = { .c = c, .follow = arg_given(a, "follow") };
        bool removed;
        int r;

        do {
                r = ask(&l, a->pos[0]);
                if (r == 0 && l.follow && fflush(stdout) != 0)
                        return err_errno(&c->e, -errno, "writing the output");
                if (r == 0 && l.follow && l.got == 0)
                        r = pause_a_little(&l);
        } while (r == 0 && (l.follow || (l.got > 0 && l.offset < l.end)));
        if (r == 0 && c->json)
                r = print_all(&l);
        free(l.all);
        removed = l.follow && l.answered && strcmp(c->e.code, ERR_NOT_FOUND) == 0;
        return removed ? CTL_EXIT_OK : r;
}
