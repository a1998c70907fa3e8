/* SPDX-License-Identifier: MIT */
#include "pager/segments.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "common/io.h"
#include "pager/attach/segments.h"
#include "pager/image.h"
#include "pager/lineage.h"

_Static_assert(PAGER_MAX_OWNERS <= SEGMENTS_MAX_IMAGES && PAGER_MAX_EXTENTS <= SEGMENTS_MAX, "every image can be told of");

static void fill_message(const struct pager_image *img, struct segments_msg *m) {
        uint64_t ram_bytes = pager_image_info(img)->ram_bytes;
        size_t n = pager_image_n_extents(img);

        memset(m, 0, sizeof(*m));
        memcpy(m->head.magic, SEGMENTS_MAGIC, sizeof(m->head.magic));
        m->head.ram_bytes = ram_bytes;
        m->head.n = (uint32_t) n;
        m->head.n_images = (uint32_t) pager_image_n_owners(img);
        for (size_t i = 0; i < n; i++) {
                struct pager_extent x = pager_image_extent(img, i);
                uint64_t end = i + 1 < n ? pager_image_extent(img, i + 1).first * PAGER_PAGE : ram_bytes;

                m->one[i] = (struct segments_one){ x.first * PAGER_PAGE, end - x.first * PAGER_PAGE, x.owner, 0 };
        }
}

int pager_segments_send(int sock, const struct pager_image *img) {
        cleanup_free struct segments_msg *m = malloc(sizeof(*m));
        union {
                struct cmsghdr align;
                char buf[CMSG_SPACE(PAGER_MAX_OWNERS * sizeof(int))];
        } control;
        size_t n_fds = pager_image_n_owners(img);
        struct msghdr mh = { .msg_iovlen = 1, .msg_control = control.buf };
        struct iovec iov;
        int fds[PAGER_MAX_OWNERS];
        struct cmsghdr *cm;
        ssize_t n;

        if (!m)
                return -ENOMEM;
        for (size_t i = 0; i < n_fds; i++) {
                fds[i] = pager_image_readonly_fd(pager_image_owner_at(img, i));
                if (fds[i] < 0)
                        return -ENOTSUP;
        }
        fill_message(img, m);
        iov = (struct iovec){ .iov_base = m, .iov_len = segments_length(&m->head) };
        mh.msg_iov = &iov;
        mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        memset(&control, 0, sizeof(control));
        cm = CMSG_FIRSTHDR(&mh);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cm), fds, n_fds * sizeof(int));
        n = sendmsg(sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
                return -errno;
        return (size_t) n == iov.iov_len ? 0 : -EMSGSIZE;
}
