/* SPDX-License-Identifier: MIT */
#include "forkd/api/caller.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/log.h"

static struct caller *caller_alloc(size_t n_groups) {
        struct caller *c = calloc(1, sizeof(*c) + n_groups * sizeof(gid_t));

        if (c) {
                c->refs = 1;
                c->n_groups = n_groups;
        }
        return c;
}

struct caller *caller_ref(struct caller *c) {
        c->refs++;
        return c;
}

void caller_unref(struct caller *c) {
        if (c && --c->refs == 0)
                free(c);
}

int caller_of_socket(int fd, struct caller **ret) {
        cleanup_caller struct caller *c = NULL;
        socklen_t len = sizeof(struct ucred), bytes = 0;
        struct ucred cred;

        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
                return -errno;
        /* The first call tells how much room it takes. */
        if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &bytes) < 0 && errno != ERANGE)
                return -errno;
        if (bytes / sizeof(gid_t) > CALLER_MAX_GROUPS)
                return -E2BIG;
        c = caller_alloc(bytes / sizeof(gid_t));
        if (!c)
                return -ENOMEM;
        if (bytes > 0 && getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, c->groups, &bytes) < 0)
                return -errno;
        c->uid = cred.uid;
        c->gid = cred.gid;
        *ret = TAKE_PTR(c);
        return 0;
}

bool caller_is_root(const struct caller *c) {
        return c->uid == 0 || c->uid == geteuid();
}

bool caller_in_group(const struct caller *c, gid_t gid) {
        if (c->gid == gid)
                return true;
        for (size_t i = 0; i < c->n_groups; i++)
                if (c->groups[i] == gid)
                        return true;
        return false;
}

void caller_encode(const struct caller *c, struct mp_buf *b) {
        mp_key(b, "caller");
        if (caller_is_root(c)) {
                mp_nil(b);
                return;
        }
        mp_map(b, 3);
        mp_kv_u64(b, "uid", c->uid);
        mp_kv_u64(b, "gid", c->gid);
        mp_key(b, "groups");
        mp_array(b, c->n_groups);
        for (size_t i = 0; i < c->n_groups; i++)
                mp_u64(b, c->groups[i]);
}

int caller_decode(const msgpack_object *params, struct caller **ret) {
        const msgpack_object *o = mp_get(params, "caller"), *groups;
        cleanup_caller struct caller *c = NULL;
        uint64_t uid, gid;

        if (!o)
                return -EINVAL;
        if (o->type == MSGPACK_OBJECT_NIL) {
                *ret = NULL;
                return 0;
        }
        groups = mp_get_array(o, "groups");
        if (!groups || groups->via.array.size > CALLER_MAX_GROUPS || mp_get_u64(o, "uid", &uid) < 0 ||
            mp_get_u64(o, "gid", &gid) < 0 || uid == 0 || uid >= UINT32_MAX || gid >= UINT32_MAX)
                return -EINVAL;
        c = caller_alloc(groups->via.array.size);
        if (!c)
                return -ENOMEM;
        c->uid = (uid_t) uid;
        c->gid = (gid_t) gid;
        for (size_t i = 0; i < c->n_groups; i++) {
                const msgpack_object *g = &groups->via.array.ptr[i];

                if (g->type != MSGPACK_OBJECT_POSITIVE_INTEGER || g->via.u64 >= UINT32_MAX)
                        return -EINVAL;
                c->groups[i] = (gid_t) g->via.u64;
        }
        *ret = TAKE_PTR(c);
        return 0;
}

/* The kernel clears the effective set when the effective user stops being root; where that is switched off (securebits)
 * the file system would still be asked as root. */
static int check_no_capability(void) {
        struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

        if (syscall(SYS_capget, &head, data) < 0)
                return -errno;
        return data[0].effective || data[1].effective ? -EPERM : 0;
}

int caller_become(const struct caller *c) {
        int r = 0;

        if (!c)
                return 0;
        if (setgroups(c->n_groups, c->groups) < 0 || setresgid((gid_t) -1, c->gid, (gid_t) -1) < 0 ||
            setresuid((uid_t) -1, c->uid, (uid_t) -1) < 0)
                r = -errno;
        if (r == 0)
                r = check_no_capability();
        if (r < 0)
                caller_revert(c);
        return r;
}

void caller_revert(const struct caller *c) {
        if (!c)
                return;
        if (setresuid((uid_t) -1, getuid(), (uid_t) -1) == 0 && setresgid((gid_t) -1, getgid(), (gid_t) -1) == 0 &&
            setgroups(0, NULL) == 0)
                return;
        log_error("cannot act as root again: %s", strerror(errno));
        _exit(1);
}
