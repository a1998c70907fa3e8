/* SPDX-License-Identifier: MIT */
/* Whoever may connect to the pager's control socket, and VMMs, say what they like: a whole pager with its threads, and
 * a client that sends requests, well-formed or not, with descriptors of every kind, more or fewer than it says, and
 * handshakes on the sockets that it gave away.
 *
 *      input: a list of steps, each an operation (1 byte) and its arguments
 *
 * Checked: a good request on a good connection is answered once; what is answered is a message; a session that was
 * opened is told; and after the pager's end no descriptor and no event is left. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "pager/pager_internal.h"
#include "pager/uffd.h"
#include "snapstore/writer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PAGES 64u
#define RAM (PAGES * PAGER_PAGE)
#define MAX_BYTES 8192u
#define MAX_STEPS 96u
#define MAX_VMMS 6u
#define DEADLINE_MS 20000

enum step { RAW, REQUEST, HANDSHAKE, HANG_UP, TURN, RECONNECT, READ, N_STEPS };
enum descriptor { IMAGE, SOCKET, PIDFD, NULL_FILE, GARBAGE, NO_READ, MEMORY, UFFD, KEPT, MEM, PAGEMAP, N_DESCRIPTORS };

static const char *const methods[] = { "hello",           "session.open",
                                       "session.expect",  "session.close",
                                       "session.removed", "session.workingset",
                                       "image.prefetch",  "status",
                                       "shutdown",        "no.such",
                                       "session.handles", "session.release",
                                       "session.resume",  "session.mark_removed",
                                       "session.adopt",   "heartbeat",
                                       "flight",          "session.join",
                                       "live.prepare",    "live.protect",
                                       "live.wait",       "live.publish",
                                       "live.cancel",     "session.unprotect" };

#define MAX_KEPT 8u

struct vmm {
        int sock; /* the VMM's end; -1: this place is free */
        int uffd;
        uint8_t *map;
};

struct run {
        const uint8_t *in, *end;
        struct event_base *base;
        struct pager *pager;
        int client; /* -1: none */
        bool clean; /* all that was sent on this connection keeps to the protocol */
        uint32_t next_id;
        unsigned open_requests;
        uint8_t answered[MAX_STEPS + 1];
        char *buf;
        size_t len, cap;
        struct vmm vmm[MAX_VMMS];
        int kept[MAX_KEPT]; /* descriptors that came with answers: they go back with other requests */
        unsigned n_kept;
};

static int image_fd = -1;

static void must(bool ok) {
        if (!ok)
                abort();
}

static unsigned count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        unsigned n = 0;

        must(d != NULL);
        while (readdir(d))
                n++;
        (void) closedir(d);
        return n;
}

static void make_image(void) {
        struct snap_writer_params params = { .ram_bytes = RAM, .codec = SNAP_CODEC_LZ4 };
        cleanup_snap_writer struct snap_writer *w = NULL;
        struct snap_writer_stats stats;
        uint8_t page[PAGER_PAGE];

        image_fd = memfd_create("image", MFD_CLOEXEC);
        must(image_fd >= 0 && snap_writer_new(image_fd, -1, &params, &w) == 0);
        for (unsigned i = 0; i < PAGES; i += 2) {
                memset(page, (int) i + 1, sizeof(page));
                must(snap_writer_put(w, i, page, 1) == 0);
        }
        must(snap_writer_finish(w, &stats) == 0);
}

/* ---- the input ---- */

static uint8_t next(struct run *x) {
        return x->in < x->end ? *x->in++ : 0;
}

static uint64_t next_u64(struct run *x) {
        uint64_t v = 0;

        for (unsigned i = 0; i < 8; i++)
                v = v << 8 | next(x);
        return v;
}

/** A number that means something here, or any. */
static uint64_t next_number(struct run *x, uint64_t good) {
        switch (next(x) % 4) {
        case 0:
                return next_u64(x);
        case 1:
                return next(x);
        default:
                return good;
        }
}

/* ---- the client ---- */

static void turn(struct run *x) {
        (void) event_base_loop(x->base, EVLOOP_NONBLOCK);
}

static void hang_up(struct run *x) {
        x->client = close_fd(x->client);
        x->len = 0;
        x->open_requests = 0;
}

static void connect_client(struct run *x) {
        int sv[2];

        hang_up(x);
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
        pager_accept(sv[0], x->pager);
        x->client = sv[1];
        x->clean = true;
}

static void check_message(struct run *x, const char *data, size_t len) {
        cleanup_mp_doc struct mp_doc doc = { 0 };
        const msgpack_object *a;

        must(mp_parse(data, len, &doc) == 0 && doc.root.type == MSGPACK_OBJECT_ARRAY && doc.root.via.array.size >= 3);
        a = doc.root.via.array.ptr;
        must(a[0].type == MSGPACK_OBJECT_POSITIVE_INTEGER);
        if (a[0].via.u64 != 1) {
                must(a[0].via.u64 == 2);
                return;
        }
        must(doc.root.via.array.size == 4);
        if (a[2].type != MSGPACK_OBJECT_NIL) {
                char message[1024];

                must(a[2].type == MSGPACK_OBJECT_MAP && mp_get_str(&a[2], "message", message, sizeof(message)) == 0 &&
                     message[0]);
        }
        if (!x->clean)
                return;
        must(a[1].via.u64 < x->next_id && x->answered[a[1].via.u64]++ == 0);
        must(x->open_requests-- > 0);
}

static void read_client(struct run *x) {
        while (x->client >= 0) {
                int fds[IO_MAX_FDS];
                size_t n_fds = IO_MAX_FDS, pos = 0, n;
                ssize_t r;

                if (x->cap - x->len < 4096) {
                        x->cap = x->cap * 2 + 8192;
                        x->buf = realloc(x->buf, x->cap);
                        must(x->buf != NULL);
                }
                r = io_recv_fds(x->client, x->buf + x->len, x->cap - x->len, fds, &n_fds);
                if (r == -EAGAIN)
                        return;
                if (r <= 0) {
                        must(!x->clean); /* it hangs up on who breaks the protocol, on nobody else */
                        hang_up(x);
                        return;
                }
                while (n_fds > 0) {
                        n_fds--;
                        if (x->n_kept < MAX_KEPT)
                                x->kept[x->n_kept++] = fds[n_fds];
                        else
                                (void) close_fd(fds[n_fds]);
                }
                x->len += (size_t) r;
                for (;;) {
                        struct mp_scanner scan = MP_SCANNER_INIT;

                        if (mp_scan_more(&scan, x->buf + pos, x->len - pos, &n) <= 0)
                                break;
                        check_message(x, x->buf + pos, n);
                        pos += n;
                }
                memmove(x->buf, x->buf + pos, x->len - pos);
                x->len -= pos;
        }
}

static void send_client(struct run *x, const void *data, size_t len, const int *fds, size_t n_fds) {
        const char *p = data;

        for (unsigned tries = 0; x->client >= 0 && len > 0 && tries < 1000; tries++) {
                ssize_t n = io_send_fds(x->client, p, len, fds, n_fds);

                if (n > 0) {
                        p += n;
                        len -= (size_t) n;
                        n_fds = 0;
                } else if (n != -EAGAIN) {
                        must(!x->clean);
                        hang_up(x);
                }
                turn(x);
                read_client(x);
        }
}

/* ---- steps ---- */

static int real_uffd(struct vmm *v);

/** A memory as an image's, with a page of it, or a wrong one, or none. */
static int make_memory(struct run *x) {
        int fd = memfd_create("memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        uint8_t how = next(x), page[PAGER_PAGE];

        memset(page, how & 4 ? 1 : 77, sizeof(page)); /* what make_image has in page 0, or not */
        must(fd >= 0 && ftruncate(fd, how & 1 ? RAM : RAM / 2) == 0);
        if (how & 2)
                must(pwrite(fd, page, sizeof(page), 0) == (ssize_t) sizeof(page));
        if (how & 8)
                must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
        return fd;
}

static struct vmm *free_vmm(struct run *x) {
        for (unsigned i = 0; i < MAX_VMMS; i++)
                if (x->vmm[i].sock < 0 && !x->vmm[i].map)
                        return &x->vmm[i];
        return NULL;
}

static int make_descriptor(struct run *x, enum descriptor kind) {
        struct vmm *v;
        int sv[2], fd = -1;

        switch (kind) {
        case SOCKET:
                v = free_vmm(x);
                if (!v || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
                        return open("/dev/null", O_RDWR | O_CLOEXEC);
                v->sock = sv[1];
                return sv[0];
        case PIDFD:
                must(spawn_pidfd_open(getpid(), 0, &fd) == 0);
                return fd;
        case GARBAGE:
                fd = memfd_create("garbage", MFD_CLOEXEC);
                must(fd >= 0 && write(fd, "garbage", 7) == 7);
                return fd;
        case NO_READ:
                return open("/dev/null", O_WRONLY | O_CLOEXEC);
        case IMAGE:
                return fcntl(image_fd, F_DUPFD_CLOEXEC, 3);
        case MEMORY:
                return make_memory(x);
        case UFFD:
                fd = real_uffd(&x->vmm[next(x) % MAX_VMMS]);
                return fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : open("/dev/null", O_RDWR | O_CLOEXEC);
        case MEM:
                return open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
        case PAGEMAP:
                return open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        case KEPT:
                if (x->n_kept > 0)
                        return fcntl(x->kept[next(x) % x->n_kept], F_DUPFD_CLOEXEC, 3);
                return open("/dev/null", O_RDWR | O_CLOEXEC);
        default:
                return open("/dev/null", O_RDWR | O_CLOEXEC);
        }
}

static void put_id(struct run *x, struct mp_buf *b) {
        static const char *const ids[] = { "0000000000000001", "0000000000000002", "00000000000000ff", "nonsense" };

        mp_kv_str(b, "session", ids[next(x) % ARRAY_LEN(ids)]);
        mp_kv_str(b, "live", ids[next(x) % ARRAY_LEN(ids)]);
}

/** One value for @key: mostly of the right kind. */
static void put_flag(struct run *x, struct mp_buf *b, const char *key) {
        uint8_t how = next(x);

        mp_key(b, key);
        if (how % 8 == 0)
                mp_u64(b, how);
        else if (how % 8 == 1)
                mp_nil(b);
        else
                mp_bool(b, how & 1);
}

/** Lists of numbers, mostly as they should be. */
static void put_lists(struct run *x, struct mp_buf *b, const char *key, unsigned per, const uint64_t *good) {
        unsigned n = next(x) % 4;

        mp_key(b, key);
        mp_array(b, n);
        for (unsigned i = 0; i < n; i++) {
                unsigned have = next(x) % 16 == 0 ? per + 1 : per;

                mp_array(b, have);
                for (unsigned k = 0; k < have; k++)
                        mp_u64(b, next_number(x, k < per ? good[k] : 0));
        }
}

/** What the methods of a take-over want. */
static void put_takeover(struct run *x, struct mp_buf *b, const struct vmm *v) {
        const uint64_t region[] = { v && v->map ? (uintptr_t) v->map : 0x10000, RAM, 0 }, range[] = { 3, 2 };

        put_lists(x, b, "regions", 3, region);
        put_lists(x, b, "removed", 2, range);
        put_lists(x, b, "ranges", 2, range);
        put_flag(x, b, "hold");
}

static void request(struct run *x) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        unsigned method = next(x) % ARRAY_LEN(methods), n_fds = 0, told;
        uint8_t which = next(x);
        struct vmm *v = NULL;
        int fds[4];

        /* Descriptors: those that the method wants, or as the input says. */
        if (strcmp(methods[method], "session.open") == 0 && which & 1) {
                fds[n_fds++] = make_descriptor(x, IMAGE);
                fds[n_fds++] = make_descriptor(x, SOCKET);
                if (which & 2)
                        fds[n_fds++] = make_descriptor(x, GARBAGE);
        } else if (strcmp(methods[method], "session.adopt") == 0 && which & 1) {
                v = &x->vmm[next(x) % MAX_VMMS];
                fds[n_fds++] = make_descriptor(x, IMAGE);
                fds[n_fds++] = make_descriptor(x, SOCKET);
                fds[n_fds++] = make_descriptor(x, which & 2 ? KEPT : MEMORY);
                fds[n_fds] = real_uffd(v) >= 0 ? fcntl(v->uffd, F_DUPFD_CLOEXEC, 3) : open("/dev/null", O_RDWR | O_CLOEXEC);
                must(fds[n_fds++] >= 0);
        } else if (strcmp(methods[method], "session.join") == 0 && which & 1) {
                v = &x->vmm[next(x) % MAX_VMMS];
                fds[n_fds++] = make_descriptor(x, IMAGE);
                fds[n_fds] = real_uffd(v) >= 0 ? fcntl(v->uffd, F_DUPFD_CLOEXEC, 3) : open("/dev/null", O_RDWR | O_CLOEXEC);
                must(fds[n_fds++] >= 0);
                fds[n_fds++] = make_descriptor(x, PIDFD);
        } else if (strcmp(methods[method], "live.prepare") == 0 && which & 1) {
                fds[n_fds++] = make_descriptor(x, MEM);
                fds[n_fds++] = make_descriptor(x, PAGEMAP);
        } else if (strcmp(methods[method], "live.publish") == 0 && which & 1) {
                fds[n_fds++] = make_descriptor(x, IMAGE);
        } else if (strcmp(methods[method], "session.expect") == 0 && which & 1) {
                fds[n_fds++] = make_descriptor(x, PIDFD);
        } else {
                for (unsigned n = next(x) % 8; n < 4 && n_fds < n;)
                        fds[n_fds++] = make_descriptor(x, next(x) % N_DESCRIPTORS);
        }
        told = which & 0x40 ? next(x) % 6 : n_fds;
        if (told != n_fds)
                x->clean = false;

        mp_buf_init(&b);
        mp_array(&b, 4);
        mp_u64(&b, 0);
        mp_u64(&b, x->next_id);
        mp_str(&b, methods[method]);
        mp_map(&b, which & 32 ? 14 : 10);
        put_id(x, &b);
        if (which & 32)
                put_takeover(x, &b, v);
        mp_kv_u64(&b, "ram_bytes", next_number(x, RAM));
        if (which & 4)
                mp_kv_i64(&b, "vm_pid", (int64_t) next_number(x, (uint64_t) getpid()));
        else
                mp_kv_str(&b, "vm_pid", NULL);
        mp_kv_u64(&b, "first_page", which & 8 ? next_number(x, 3) : 0);
        if (which & 16) {
                put_flag(x, &b, "expect");
                put_flag(x, &b, "record");
                put_flag(x, &b, "force");
        } else {
                mp_kv_str(&b, "expect", NULL);
                mp_kv_str(&b, "record", NULL);
                mp_kv_str(&b, "force", NULL);
        }
        mp_kv_str(&b, "version", "fuzz");
        mp_kv_u64(&b, "fds", told);
        must(!b.failed);
        x->next_id++;
        x->open_requests++;
        send_client(x, b.sb.data, b.sb.size, fds, n_fds);
        while (n_fds > 0)
                (void) close_fd(fds[--n_fds]);
}

static void raw(struct run *x) {
        size_t len = next(x);
        unsigned n_fds = next(x) % 8;
        int fds[4] = { STDERR_FILENO, STDERR_FILENO, STDERR_FILENO, STDERR_FILENO };

        len = MIN_OF(len, (size_t) (x->end - x->in));
        x->clean = false;
        send_client(x, x->in, len, fds, n_fds < 4 ? n_fds : 0);
        x->in += len;
}

/** Memory with a userfaultfd, where the host allows it: -1 if not. Nobody touches it. */
static int real_uffd(struct vmm *v) {
        if (v->map)
                return v->uffd;
        v->map = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        must(v->map != MAP_FAILED);
        if (uffd_open(UFFD_FEATURES_NEEDED, &v->uffd) == 0)
                must(uffd_register(v->uffd, (uintptr_t) v->map, RAM) == 0);
        return v->uffd;
}

static void handshake(struct run *x) {
        struct vmm *v = &x->vmm[next(x) % MAX_VMMS];
        uint8_t how = next(x);
        char json[512], *at = json;
        size_t len;
        int fd = -1;

        if (how & 1) {
                fd = how & 2 ? real_uffd(v) : STDERR_FILENO;
                len = (size_t) snprintf(json, sizeof(json),
                                        "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,\"page_size\":4096%s}]",
                                        (unsigned long long) next_number(x, (uintptr_t) v->map),
                                        (unsigned long long) next_number(x, RAM), (unsigned long long) next_number(x, 0),
                                        how & 4 ? ",\"forkd\":{\"mode\":\"memfd\",\"version\":1}" : "");
                size_t cut = how & 8 ? next(x) : len; /* the rest comes later, or never */
                len = MIN_OF(len, cut);
        } else {
                len = next(x);
                len = MIN_OF(len, (size_t) (x->end - x->in));
                memcpy(at, x->in, len);
                x->in += len;
        }
        if (v->sock >= 0 && len > 0)
                best_effort((int) io_send_fds(v->sock, json, len, &fd, fd >= 0));
        turn(x);
}

static void vmm_hang_up(struct run *x) {
        struct vmm *v = &x->vmm[next(x) % MAX_VMMS];

        v->sock = close_fd(v->sock);
        turn(x);
}

static void step(struct run *x) {
        switch ((enum step)(next(x) % N_STEPS)) {
        case RAW:
                raw(x);
                break;
        case REQUEST:
                request(x);
                break;
        case HANDSHAKE:
                handshake(x);
                break;
        case HANG_UP:
                vmm_hang_up(x);
                break;
        case RECONNECT:
                connect_client(x);
                break;
        case READ:
                read_client(x);
                break;
        default:
                turn(x);
        }
}

/** Answers may wait for a worker, which always comes back: nobody is stuck here. */
static void wait_answers(struct run *x) {
        uint64_t start = now_ns();

        while (x->client >= 0 && x->clean && x->open_requests > 0) {
                must(ms_since(start) < DEADLINE_MS);
                turn(x);
                read_client(x);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct pager_config cfg = { .workers = 1, .memory_budget = 64u << 20, .handshake_seconds = 1, .version = "fuzz" };
        struct run x = { .in = data, .end = data + size, .client = -1 };
        struct err e = { 0 };
        unsigned before;

        if (size > MAX_BYTES)
                return 0;
        if (image_fd < 0) {
                log_init("fuzz", LOG_LVL_ERROR);
                make_image();
        }
        before = count_fds();
        for (unsigned i = 0; i < MAX_VMMS; i++)
                x.vmm[i] = (struct vmm){ .sock = -1, .uffd = -1 };
        x.base = event_base_new();
        must(x.base != NULL);
        if (pager_new(x.base, &cfg, &x.pager, &e) < 0)
                abort();
        connect_client(&x);
        for (unsigned i = 0; i < MAX_STEPS && x.in < x.end; i++)
                step(&x);
        wait_answers(&x);
        hang_up(&x);
        turn(&x);
        pager_free(x.pager);
        while (x.n_kept > 0)
                (void) close_fd(x.kept[--x.n_kept]);
        /* Its end of the userfaultfds is closed: unmapping waits for nobody. */
        for (unsigned i = 0; i < MAX_VMMS; i++) {
                (void) close_fd(x.vmm[i].sock);
                (void) close_fd(x.vmm[i].uffd);
                if (x.vmm[i].map)
                        must(munmap(x.vmm[i].map, RAM) == 0);
        }
        must(event_base_get_num_events(x.base, EVENT_BASE_COUNT_ADDED | EVENT_BASE_COUNT_ACTIVE) == 0);
        event_base_free(x.base);
        free(x.buf);
        must(count_fds() == before);
        return 0;
}
