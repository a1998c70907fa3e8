/* SPDX-License-Identifier: MIT */
/* The memories of images that VMs map besides that of their own image, and what each VM maps of them.
 *
 * Theory of operation. A guest's pages may be in its image's memory, in those of its image's ancestors, and in those of snapshots
 * that were made of it while it ran. Another pager cannot find that out: the pager tells it, in lists that forkd keeps as they
 * are and hands on (struct pager_hold). Of each image in them forkd holds the file and the memory, once for all VMs: the
 * snapshot that it was may have been removed. To another pager they go by `image.adopt`, each once and before the first session
 * that needs them.
 *
 * After a live fork the source maps the new image in place of what it has unchanged. From the publishing on until the pager has told
 * what it maps then, its session cannot go to another pager (`mapped`): one that knew only what was before would take what is new
 * for discarded.
 *
 * Memories are named by their inode. It is taken by nobody else while we hold it. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/log.h"

struct pager_memory {
        struct pager_memory *next;
        struct pager *p;
        unsigned refs;
        uint64_t id, dev; /* of the memory's inode */
        int file, memfd;
        id_str label;      /* of the snapshot; empty: not known */
        uint64_t given_to; /* serial number of the pager that has it, as of the last time */
};

static struct pager_memory *find(const struct pager *p, uint64_t id) {
        struct pager_memory *m = p->memories;

        while (m && m->id != id)
                m = m->next;
        return m;
}

static void unref(struct pager_memory *m) {
        struct pager_memory **at;

        if (--m->refs > 0)
                return;
        at = &m->p->memories;
        while (*at != m)
                at = &(*at)->next;
        *at = m->next;
        (void) close_fd(m->file);
        (void) close_fd(m->memfd);
        free(m);
}

/* From @o, which has it open. A coroutine call. */
static int fetch(struct pager_process *o, uint64_t id, struct pager_memory **ret, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pager_memory *m;
        struct stat st;
        int r;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "image", id);
        r = pager_process_call(o, "image.handles", &b, NULL, 0, &a, e);
        if (r < 0)
                return r;
        m = find(o->p, id); /* somebody else has asked, too */
        if (m) {
                m->refs++;
                *ret = m;
                return 0;
        }
        if (a.n_fds != 2 || fstat(a.fds[1], &st) < 0 || st.st_ino != id)
                return err_set(e, ERR_PAGER, -EPROTO, "the pager gave no memory of an image");
        m = calloc(1, sizeof(*m));
        if (!m)
                return err_errno(e, -ENOMEM, "holding the memory of an image");
        *m = (struct pager_memory){
                .next = o->p->memories, .p = o->p, .refs = 1, .id = id, .dev = st.st_dev, .given_to = o->serial
        };
        (void) mp_get_str(&a.doc.root, "id", m->label, sizeof(m->label));
        m->file = TAKE_FD(a.fds[0]);
        m->memfd = TAKE_FD(a.fds[1]);
        o->p->memories = m;
        *ret = m;
        return 0;
}

void pager_hold_drop_memories(struct pager_hold *h) {
        for (unsigned i = 0; i < h->n_memories; i++)
                unref(h->memory[i]);
        free(h->memory);
        mp_buf_clear(&h->mapping);
        h->memory = NULL;
        h->n_memories = 0;
        h->mapped = false;
}

/* Copies the lists as they came. */
static int keep_lists(struct pager_hold *h, const msgpack_object *params, struct err *e) {
        static const char *const keys[PAGER_HOLD_LISTS] = { "images", "extents", "view", "since" };

        mp_buf_init(&h->mapping);
        for (unsigned i = 0; i < PAGER_HOLD_LISTS; i++) {
                const msgpack_object *list = mp_get_array(params, keys[i]);

                if (!list)
                        return err_set(e, ERR_PAGER, -EPROTO, "the pager does not tell what a VMM maps");
                mp_key(&h->mapping, keys[i]);
                mp_obj(&h->mapping, list);
        }
        return h->mapping.failed ? err_errno(e, -ENOMEM, "holding what a VMM maps") : 0;
}

int pager_hold_read_mapping(struct pager_process *o, struct pager_hold *h, const msgpack_object *params, struct err *e) {
        const msgpack_object *images = mp_get_array(params, "images");
        uint32_t n = images ? images->via.array.size : 0;
        int r;

        pager_hold_drop_memories(h);
        if (n == 0) /* more than anybody can take over */
                return 0;
        r = keep_lists(h, params, e);
        if (r < 0)
                return r;
        h->memory = calloc(n, sizeof(struct pager_memory *));
        if (!h->memory)
                return err_errno(e, -ENOMEM, "holding what a VMM maps");
        for (uint32_t i = 1; i < n; i++) { /* the first is its own image's, held otherwise */
                const msgpack_object *id = &images->via.array.ptr[i];
                struct pager_memory *m;

                if (id->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        return err_set(e, ERR_PAGER, -EPROTO, "the pager names an image that is none");
                m = find(o->p, id->via.u64);
                if (m)
                        m->refs++;
                else
                        r = fetch(o, id->via.u64, &m, e);
                if (r < 0)
                        return r;
                h->memory[h->n_memories++] = m;
        }
        h->mapped = true;
        return 0;
}

bool pager_hold_maps(const struct pager_hold *h, uint64_t dev, uint64_t ino) {
        for (unsigned i = 0; i < h->n_memories; i++)
                if (h->memory[i]->id == ino && h->memory[i]->dev == dev)
                        return true;
        return false;
}

static int give(struct pager_memory *m, struct pager_process *to, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        if (m->given_to == to->serial)
                return 0;
        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "id", m->label);
        mp_kv_u64(&b, "fds", 2);
        m->refs++;
        r = pager_process_call(to, "image.adopt", &b, (int[]){ m->file, m->memfd }, 2, NULL, e);
        if (r == 0)
                m->given_to = to->serial;
        unref(m);
        return r;
}

int pager_hold_give_memories(struct pager_process *to, struct pager_hold *h, struct err *e) {
        for (unsigned i = 0; i < h->n_memories; i++) {
                int r = give(h->memory[i], to, e);

                if (r < 0)
                        return err_prefix(e, "handing over the memory of an image");
        }
        return 0;
}

/* ---- anew ---- */

struct refresh {
        struct pager *p;
        struct pager_process *o; /* a reference */
        id_str id;
};

/* The VM, if it still has the session: it may be gone after each call. */
static struct vm *still_there(const struct refresh *f) {
        struct vm *vm = vm_by_id(f->p->d, f->id);

        return vm && vm->session && vm->hold.process == f->o ? vm : NULL;
}

static int ask_anew(const struct refresh *f, struct pager_hold *ret, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct vm *vm = still_there(f);
        int r;

        if (!vm)
                return -ESRCH;
        mp_buf_init(&b);
        pager_put_session(&b, vm, 0);
        r = pager_process_call(f->o, "session.handles", &b, NULL, 0, &a, e);
        return r < 0 ? r : pager_hold_read_mapping(f->o, ret, &a.doc.root, e);
}

static void refresh_main(void *arg) {
        struct refresh *f = arg;
        struct pager_hold fresh;
        struct vm *vm;
        struct err e = { 0 };
        int r;

        pager_hold_init(&fresh);
        r = ask_anew(f, &fresh, &e);
        vm = still_there(f);
        if (r == 0 && vm) {
                pager_hold_drop_memories(&vm->hold);
                vm->hold.mapping = fresh.mapping;
                vm->hold.memory = fresh.memory;
                vm->hold.n_memories = fresh.n_memories;
                vm->hold.mapped = fresh.mapped;
                vm->hold.remaps = false;
                pager_hold_init(&fresh);
                pager_wake_attached(f->p);
        } else if (r < 0 && vm && strcmp(e.code, ERR_BUSY) != 0) { /* busy: it will tell when it is not any more */
                log_warning("%s (%s): %s: its session cannot be moved", vm->name, vm->id, e.message);
                vm->hold.remaps = false;
        }
        pager_hold_clear(&fresh);
        pager_process_unref(f->o);
        free(f);
}

void pager_hold_refresh(struct vm *vm) {
        struct refresh *f = calloc(1, sizeof(*f));

        vm->hold.mapped = false;
        if (!f || !vm->hold.process)
                goto fail;
        *f = (struct refresh){ .p = vm->d->pager, .o = pager_process_ref(vm->hold.process) };
        memcpy(f->id, vm->id, sizeof(f->id));
        vm->hold.remaps = true;
        if (co_start(vm->d->base, refresh_main, f) == 0)
                return;
        pager_process_unref(f->o);
        vm->hold.remaps = false;
fail:
        free(f);
}
