/* SPDX-License-Identifier: MIT */
/* The methods by which an image goes to another pager without a session of its own, as its descendants' VMMs map it: docs/protocol.md,
 * section 2. */
#include <errno.h>

#include "common/log.h"
#include "pager/lineage.h"
#include "pager/pager_internal.h"

int pager_do_image_handles(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        const struct pager_cached *c;
        uint64_t id;
        int file;

        if (mp_get_u64(msg->params, "image", &id) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "image is no number");
        c = pager_cache_of_memory(p->cache, id);
        if (!c)
                return err_set(e, ERR_NOT_FOUND, -ENOENT, "no image %llu is open", (unsigned long long) id);
        file = pager_image_file(c->image);
        if (file < 0)
                return err_set(e, ERR_BUSY, -EBUSY, "image %llu is not in any file yet", (unsigned long long) id);
        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "id", c->label);
        mp_kv_u64(&b, "fds", 2);
        return rpc_reply(msg->conn, msg->msgid, &b, (int[]){ file, pager_image_memfd(c->image) }, 2);
}

int pager_do_image_adopt(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pager_cached *c;
        id_str id = "";
        int r;

        if (mp_get_str(msg->params, "id", id, sizeof(id)) < 0 || (id[0] && !id_valid(id)))
                return err_set(e, ERR_INVALID, -EINVAL, "id is not an id of %d hex digits, nor empty", ID_LEN);
        if (msg->n_fds != 2)
                return err_set(e, ERR_INVALID, -EINVAL, "%zu descriptors came, not two: memory.img, the image's memory",
                               msg->n_fds);
        r = pager_cache_adopt(p->cache, msg->fds[0], msg->fds[1], &c, e);
        if (r < 0)
                return r;
        if (id[0])
                (void) snprintf(c->label, sizeof(c->label), "%s", id);
        pager_filler_start(p->filler, pager_image_survey_job(c->image));
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "image", pager_image_memory_id(c->image));
        pager_cache_put_later(c); /* the sessions that need it are about to come */
        return rpc_reply(msg->conn, msg->msgid, &b, NULL, 0);
}
