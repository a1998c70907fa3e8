/* SPDX-License-Identifier: MIT */
/* The methods of live forks: docs/protocol.md, section 2. What they do is in live.c and handover.c. */
#include <errno.h>

#include "common/log.h"
#include "pager/pager_internal.h"

static int get_id(const struct rpc_msg *msg, id_str *ret, struct err *e) {
        if (mp_get_str(msg->params, "live", *ret, sizeof(*ret)) < 0 || !id_valid(*ret))
                return err_set(e, ERR_INVALID, -EINVAL, "live is not an id of %d hex digits", ID_LEN);
        return 0;
}

static int named(struct pager *p, const struct rpc_msg *msg, struct pager_live **ret, struct err *e) {
        id_str id;
        int r = get_id(msg, &id, e);

        if (r < 0)
                return r;
        *ret = pager_live_find(p, id);
        return *ret ? 0 : err_set(e, ERR_NOT_FOUND, -ENOENT, "there is no live fork %s", id);
}

int pager_do_live_prepare(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_live_params lp = { .mem_fd = -1, .pagemap_fd = -1 };
        id_str id;
        int r = get_id(msg, &id, e);

        if (r == 0)
                r = pager_named_session(p, msg, &lp.source, e);
        if (r < 0)
                return r;
        if (msg->n_fds != 2)
                return err_set(e, ERR_INVALID, -EINVAL, "%zu descriptors came, not two: the VMM's mem and pagemap in /proc",
                               msg->n_fds);
        lp.id = id;
        lp.mem_fd = TAKE_FD(msg->fds[0]);
        lp.pagemap_fd = TAKE_FD(msg->fds[1]);
        return pager_live_prepare(p, &lp, msg->conn, msg->msgid, e);
}

int pager_do_live_protect(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_live *l;
        int r = named(p, msg, &l, e);

        return r < 0 ? r : pager_live_protect(l, msg->conn, msg->msgid, e);
}

int pager_do_live_wait(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_live *l;
        int r = named(p, msg, &l, e);

        return r < 0 ? r : pager_live_wait(l, msg->conn, msg->msgid, e);
}

int pager_do_live_publish(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_live *l;
        int r = named(p, msg, &l, e);

        if (r < 0)
                return r;
        if (msg->n_fds != 1)
                return err_set(e, ERR_INVALID, -EINVAL, "%zu descriptors came, not one: memory.img", msg->n_fds);
        r = pager_live_publish(l, msg->fds[0], e);
        return r < 0 ? r : rpc_reply(msg->conn, msg->msgid, NULL, NULL, 0);
}

int pager_do_live_cancel(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_live *l;
        int r = named(p, msg, &l, e);

        if (r < 0)
                return r;
        pager_live_cancel(l);
        return rpc_reply(msg->conn, msg->msgid, NULL, NULL, 0);
}

int pager_do_unprotect(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_session *s;
        int r = pager_named_session(p, msg, &s, e);

        if (r < 0)
                return r;
        if (s->rebase)
                return pager_rebase_unprotect(s, msg->conn, msg->msgid, e);
        pager_live_unprotect(s);
        return rpc_reply(msg->conn, msg->msgid, NULL, NULL, 0);
}
