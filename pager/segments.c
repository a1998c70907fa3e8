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
#include "pager/session.h"

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

static int send_message(int sock, const struct segments_msg *m, size_t len, const int *fds, size_t n_fds) {
        union {
                struct cmsghdr align;
                char buf[CMSG_SPACE(PAGER_MAX_OWNERS * sizeof(int))];
        } control;
        struct iovec iov = { .iov_base = (void *) m, .iov_len = len };
        struct msghdr mh = {
                .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = CMSG_SPACE(n_fds * sizeof(int))
        };
        struct cmsghdr *cm;
        ssize_t n;

        memset(&control, 0, sizeof(control));
        cm = CMSG_FIRSTHDR(&mh);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cm), fds, n_fds * sizeof(int));
        n = sendmsg(sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
                return -errno;
        return (size_t) n == len ? 0 : -EMSGSIZE;
}

int pager_segments_send(int sock, const struct pager_image *img) {
        cleanup_free struct segments_msg *m = malloc(sizeof(*m));
        size_t n_fds = pager_image_n_owners(img);
        int fds[PAGER_MAX_OWNERS];

        if (!m)
                return -ENOMEM;
        for (size_t i = 0; i < n_fds; i++) {
                fds[i] = pager_image_readonly_fd(pager_image_owner_at(img, i));
                if (fds[i] < 0)
                        return -ENOTSUP;
        }
        fill_message(img, m);
        return send_message(sock, m, segments_length(&m->head), fds, n_fds);
}

int pager_segments_send_anew(int sock, const struct pager_image *img, const struct pager_view *v) {
        cleanup_free struct segments_msg *m = calloc(1, sizeof(*m));
        int fd = pager_image_readonly_fd(img);

        if (!m)
                return -ENOMEM;
        if (fd < 0 || v->n == 0 || v->n > SEGMENTS_MAX)
                return -ENOTSUP;
        memcpy(m->head.magic, SEGMENTS_ANEW_MAGIC, sizeof(m->head.magic));
        m->head.ram_bytes = pager_image_pages(img) * PAGER_PAGE;
        m->head.n = (uint32_t) v->n;
        m->head.n_images = 1;
        for (size_t i = 0; i < v->n; i++)
                m->one[i] = (struct segments_one){ v->run[i].first * PAGER_PAGE, v->run[i].n * PAGER_PAGE, 0, 0 };
        return send_message(sock, m, segments_anew_length(&m->head), &fd, 1);
}
