/* SPDX-License-Identifier: MIT */
/* Theory of operation. A connection is a VMM: its process is named by the kernel (SO_PEERCRED, SO_PEERPIDFD), and only
 * root, our own user and --peer-uid may be one. It becomes a session of the pager like any other. The session ends with
 * that process. A socket that stays open is the sign that the VMM lives, but a closed one is none that it does not: early
 * Firecrackers closed theirs when they had sent their layout.
 *
 * When a session fails, somebody must end the VMM, or it waits for its page for ever. Here that is we: SIGKILL by the
 * pidfd, so that no other process can be hit. Where the kernel does not let us (the VMM is outside of our pid
 * namespace, or another user's) its pages are poisoned as it touches them, and the kernel ends it with SIGBUS.
 * A process that has not sent a userfaultfd depends on nothing, and is only hung up on. */
#include "pager/serve.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "pager/learn.h"
#include "pager/pager_internal.h"
#include "pager/uffd.h"
#include "snapstore/store.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

/** A VMM that is attached, or about to be. */
struct vmm {
        struct vmm *next;
        struct pager_serve *serve;
        struct pager_session *session;
        struct event *exit; /* its process has ended; NULL while its socket would tell */
        int pidfd;          /* -1: it cannot be named */
        pid_t pid;
};

struct pager_serve {
        struct event_base *base;
        struct pager *pager;
        struct rpc_listener *listener;
        char *path;
        dev_t socket_dev; /* what we bound: another's socket at this path is not ours to remove */
        ino_t socket_ino;
        int dir_fd, image_fd;
        uint64_t ram_bytes;
        int64_t peer_uid;
        bool record;
        struct vmm *vmms;
        struct vmm *recording; /* one at a time: the others would say the same */
};

/* ---- verdicts ---- */

static void forget(struct vmm *v) {
        struct vmm **at = &v->serve->vmms;

        while (*at != v)
                at = &(*at)->next;
        *at = v->next;
        if (v->exit)
                event_free(v->exit);
        (void) close_fd(v->pidfd);
        free(v);
}

static void on_exit_of_vmm(evutil_socket_t fd, short what, void *arg) {
        struct vmm *v = arg;

        pager_end_session(v->serve->pager, v->session); /* v is gone when its worker has let go */
}

/** The session ends when the process has: at once, if it has. */
static bool watch_exit(struct vmm *v) {
        if (!v->exit && v->pidfd >= 0)
                v->exit = event_new(v->serve->base, v->pidfd, EV_READ, on_exit_of_vmm, v);
        return v->exit && event_add(v->exit, NULL) == 0;
}

/** True: it is dying, and its session ends when it is dead. */
static bool kill_vmm(struct vmm *v) {
        int r = v->pidfd >= 0 ? spawn_kill(v->pidfd, SIGKILL) : -ESRCH;

        if (r < 0 && r != -ESRCH)
                log_warning("session %s: cannot kill the VMM: %s", v->session->id, strerrordesc_np(-r));
        if (r < 0)
                return false;
        (void) watch_exit(v);
        return true;
}

static bool on_hangup(struct pager_session *s, void *arg) {
        return s->attached && watch_exit(arg);
}

static void on_failed(struct pager_session *s, bool depends, void *arg) {
        struct vmm *v = arg;

        if (depends && kill_vmm(v)) {
                log_error("session %s: killed the VMM, process %d, whose memory cannot be served", s->id, (int) v->pid);
                return;
        }
        if (depends && pager_poison_session(v->serve->pager, s) == 0) {
                log_error("session %s: the VMM cannot be killed from here; what it touches is poisoned instead", s->id);
                return;
        }
        if (depends)
                log_error("session %s: the VMM cannot be killed from here and waits for its memory; it has to be ended", s->id);
        pager_end_session(v->serve->pager, s);
}

/* ---- what is learned of a VMM ---- */

static void learn(struct vmm *v) {
        const struct pager_session *s = v->session;
        uint64_t n_new;
        int r;

        if (v->serve->recording != v)
                return;
        v->serve->recording = NULL;
        if (!s->record || s->failed || pager_record_runs(s->record) == 0)
                return;
        r = pager_learn(v->serve->dir_fd, s->image, s->record, &n_new);
        if (r < 0)
                log_warning("session %s: its working set is not kept: %s", s->id, strerrordesc_np(-r));
        else if (n_new > 0)
                log_info("session %s: %llu pages are new in the working set", s->id, (unsigned long long) n_new);
}

static void on_recorded(struct pager_session *s, void *arg) {
        learn(arg);
}

static void on_released(struct pager_session *s, void *arg) {
        struct vmm *v = arg;
        uint64_t faults = 0;

        learn(v); /* it has ended before its window */

        for (unsigned i = 0; i < PAGER_N_FAULTS; i++)
                faults += atomic_load_explicit(&s->faults[i], memory_order_relaxed);
        log_info("session %s: %llu faults, %llu pages copied, %llu zero", s->id, (unsigned long long) faults,
                 (unsigned long long) atomic_load_explicit(&s->pages_installed, memory_order_relaxed),
                 (unsigned long long) atomic_load_explicit(&s->zero_pages, memory_order_relaxed));
        forget(v);
}

static const struct pager_keeper keeper = { on_failed, on_hangup, on_recorded, on_released };

/* ---- connections ---- */

static bool hung_up(int sock) {
        struct pollfd p = { .fd = sock, .events = POLLRDHUP };

        return poll(&p, 1, 0) != 0;
}

/** A pidfd of the process that connected. -1: it cannot be named. */
static int pidfd_of_peer(int sock, const struct ucred *peer) {
        socklen_t len = sizeof(int);
        int fd;

        if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &len) == 0)
                return fd;
        if (errno != ENOPROTOOPT || peer->pid <= 0 || spawn_pidfd_open(peer->pid, 0, &fd) < 0)
                return -1;
        /* By its number, before Linux 6.5: it was that process if that one is still connected now. */
        return hung_up(sock) ? close_fd(fd) : fd;
}

static bool allowed(const struct pager_serve *s, const struct ucred *peer) {
        return peer->uid == 0 || peer->uid == geteuid() || (s->peer_uid >= 0 && peer->uid == (uid_t) s->peer_uid);
}

static int open_session(struct pager_serve *s, struct vmm *v, int sock, struct err *e) {
        struct pager_opening o = { .ram_bytes = s->ram_bytes, .image_fd = -1, .vmm_sock = sock, .descent = { .id = "" } };
        id_str id;
        int r;

        id_new(id);
        o.id = id;
        o.image_fd = fcntl(s->image_fd, F_DUPFD_CLOEXEC, 0);
        if (o.image_fd < 0) {
                r = -errno;
                (void) close_fd(sock);
                return err_errno(e, r, "opening a session");
        }
        o.workingset_fd = openat(s->dir_fd, SNAP_FILE_WORKINGSET, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        o.record = s->record && !s->recording;
        r = pager_open_session(s->pager, &o, &v->session, e);
        if (r < 0)
                return r;
        if (o.record)
                s->recording = v;
        v->session->keeper = &keeper;
        v->session->keeper_arg = v;
        v->session->vm_pid = v->pid;
        return 0;
}

/** The handshake has to come from the process that connected, if that can be told. */
static void expect(struct vmm *v) {
        struct err e = { 0 };
        int fd = v->pid > 0 ? fcntl(v->pidfd, F_DUPFD_CLOEXEC, 0) : -1;

        if (fd >= 0 && pager_expect_vmm(v->session, fd, &e) < 0)
                log_debug("session %s: %s", v->session->id, e.message);
}

static void on_connection(int fd, void *arg) {
        struct pager_serve *s = arg;
        cleanup_fd int sock = fd;
        struct ucred peer = { .uid = UINT32_MAX };
        socklen_t len = sizeof(peer);
        struct err e = { 0 };
        struct vmm *v;

        if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || !allowed(s, &peer)) {
                log_warning("refused a connection of user %u", peer.uid);
                return;
        }
        v = calloc(1, sizeof(*v));
        if (!v) {
                log_error("refused a connection: out of memory");
                return;
        }
        *v = (struct vmm){ .next = s->vmms, .serve = s, .pidfd = pidfd_of_peer(sock, &peer), .pid = peer.pid };
        s->vmms = v;
        if (open_session(s, v, TAKE_FD(sock), &e) < 0) {
                log_error("refused a connection of process %d: %s", (int) peer.pid, e.message);
                forget(v);
                return;
        }
        expect(v);
        log_info("session %s: process %d has connected", v->session->id, (int) v->pid);
}

/* ---- life ---- */

/** Better told now than to the first VMM. */
static int check_kernel(struct err *e) {
        int fd, r = uffd_open(UFFD_FEATURE_MISSING_SHMEM, &fd);

        if (r == 0) {
                (void) close_fd(fd);
                return 0;
        }
        r = err_errno(e, r, "opening a userfaultfd");
        (void) err_hint(e,
                        "it takes root, read and write access to " UFFD_DEVICE ", or the sysctl vm.unprivileged_userfaultfd=1");
        return r;
}

static int open_image(struct pager_serve *s, const char *dir, struct err *e) {
        cleanup_snap_image struct snap_image *img = NULL;
        int r;

        s->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (s->dir_fd < 0)
                return err_errno(e, -errno, "opening the snapshot %s", dir);
        s->image_fd = openat(s->dir_fd, SNAP_FILE_MEMORY, O_RDONLY | O_CLOEXEC);
        if (s->image_fd < 0)
                return err_errno(e, -errno, "opening %s/memory.img", dir);
        r = snap_image_open(s->image_fd, &img);
        if (r == -EBADMSG)
                return err_set(e, ERR_CORRUPT, r, "%s/memory.img is torn, corrupt or no memory image", dir);
        if (r == -EPROTONOSUPPORT)
                return err_set(e, ERR_VERSION, r, "%s/memory.img has a format version that this pager does not know", dir);
        if (r < 0)
                return err_errno(e, r, "opening %s/memory.img", dir);
        s->ram_bytes = snap_image_info(img)->ram_bytes;
        return 0;
}

static int start_listening(struct pager_serve *s, struct err *e) {
        struct stat st;
        int fd, r, on = 1;

        r = io_listen_unix(s->path, 0600, &fd);
        if (r == -EADDRINUSE)
                return err_set(e, ERR_BUSY, r, "somebody listens at %s already", s->path);
        if (r < 0)
                return err_errno(e, r, "listening at %s", s->path);
        if (stat(s->path, &st) == 0) {
                s->socket_dev = st.st_dev;
                s->socket_ino = st.st_ino;
        }
        if (s->peer_uid >= 0 && chown(s->path, (uid_t) s->peer_uid, (gid_t) -1) < 0) {
                r = -errno;
                (void) close_fd(fd);
                return err_errno(e, r, "giving %s to user %lld", s->path, (long long) s->peer_uid);
        }
        /* Accepted sockets inherit it: no byte can slip in without its sender's name. */
        if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0) {
                r = -errno;
                (void) close_fd(fd);
                return err_errno(e, r, "listening at %s", s->path);
        }
        r = rpc_listener_new(s->base, fd, on_connection, s, &s->listener);
        return r < 0 ? err_errno(e, r, "listening at %s", s->path) : 0;
}

int pager_serve_new(struct event_base *base, struct pager *pager, const struct pager_serve_config *cfg, struct pager_serve **ret,
                    struct err *e) {
        struct pager_serve *s = calloc(1, sizeof(*s));
        int r;

        if (!s)
                return err_errno(e, -ENOMEM, "serving a snapshot");
        *s = (struct pager_serve){
                .base = base, .pager = pager, .dir_fd = -1, .image_fd = -1, .peer_uid = cfg->peer_uid, .record = cfg->record
        };
        s->path = strdup(cfg->path);
        r = s->path ? open_image(s, cfg->snapshot, e) : err_errno(e, -ENOMEM, "serving a snapshot");
        if (r == 0)
                r = check_kernel(e);
        if (r == 0)
                r = start_listening(s, e);
        if (r < 0) {
                pager_serve_free(s);
                return r;
        }
        *ret = s;
        return 0;
}

void pager_serve_close(struct pager_serve *s) {
        struct stat st;

        if (!s)
                return;
        rpc_listener_free(TAKE_PTR(s->listener));
        if (s->socket_ino && stat(s->path, &st) == 0 && st.st_dev == s->socket_dev && st.st_ino == s->socket_ino)
                (void) unlink(s->path);
        s->socket_ino = 0;
}

void pager_serve_kill(struct pager_serve *s) {
        for (struct vmm *v = s->vmms; v; v = v->next)
                if (kill_vmm(v))
                        log_warning("session %s: killed the VMM, process %d", v->session->id, (int) v->pid);
}

void pager_serve_free(struct pager_serve *s) {
        if (!s)
                return;
        pager_serve_close(s);
        (void) close_fd(s->image_fd);
        (void) close_fd(s->dir_fd);
        free(s->path);
        free(s);
}
