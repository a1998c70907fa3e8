/* SPDX-License-Identifier: MIT */
/* What a scrape of many VMs costs, through forkd's own code: its table of VMs and the monitor's with histograms in every bucket, the
 * real families, the real HTTP server, and a pager (played by another process) that tells of as many sessions. The client is a process
 * of its own, too. Prints what the client waits, and for how long forkd's loop is kept from everything else.
 *
 * With --watch each VM has a process, whose threads are named as QEMU's and sleep, and the real probes watch all of them.
 *
 *      scrape [--vms N] [--vcpus N] [--rounds N] [--max MS] [--watch]     exit code 1: the median is above --max */
#include <arpa/inet.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/monitor/http.h"
#include "forkd/monitor/internal.h"
#include "forkd/monitor/metrics.h"
#include "forkd/pager/internal.h"
#include "forkd/host/room.h"
#include "pager/limits.h"

#define MAX_TEXT (256u << 20)
#define MAX_THREADS 64u
#define OTHER_THREADS 4u
#define PACE_MS 110 /* between two scrapes, so that each looks at the probes anew */

static void must(bool ok, const char *what) {
        if (ok)
                return;
        (void) fprintf(stderr, "scrape: %s\n", what);
        exit(2);
}

/* ---- forkd, as far as a scrape looks at it ---- */

static void fill(struct probes_sample *s, unsigned seed) {
        for (unsigned i = 0; i < PROBES_N_STATES; i++)
                s->ns[i] = 123456789ull * (seed + i + 1);
        s->preempted = s->slept = s->exits = s->halts = 1000u * seed;
        for (unsigned i = 0; i < PROBES_BUCKETS; i++)
                s->waits += s->wait[i] = seed + i;
        s->wait_ns = 987654321ull * seed;
}

static void *sleep_as(void *name) {
        (void) prctl(PR_SET_NAME, name);
        for (;;)
                (void) pause();
        return NULL;
}

/* A process with the threads that a VMM has. */
static void be_vmm(unsigned vcpus) {
        char name[MAX_THREADS][16];
        pthread_t t;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (unsigned i = 0; i < vcpus + OTHER_THREADS && i < MAX_THREADS; i++) {
                (void) snprintf(name[i], sizeof(name[i]), i < vcpus ? "CPU %u/TCG" : "worker-%u", i);
                must(pthread_create(&t, NULL, sleep_as, name[i]) == 0, "no thread");
        }
        (void) sleep_as("qemu");
}

static void watch(struct monitor_vm *mv, unsigned vcpus) {
        pid_t pid = fork();
        cleanup_fd int pidfd = -1;

        must(pid >= 0, "no process for a VM");
        if (pid == 0)
                be_vmm(vcpus);
        must(spawn_pidfd_open(pid, 0, &pidfd) == 0 && monitor_watch(mv->m, mv, NULL, pidfd, pid) == 0, "it cannot be watched");
}

static void add_vm(struct daemon *d, struct monitor *m, unsigned n, unsigned vcpus) {
        struct monitor_vm *mv = calloc(1, sizeof(*mv));
        struct vm *vm = vm_alloc(d);

        must(mv && vm && (mv->vcpu = calloc(vcpus, sizeof(*mv->vcpu))), "out of memory");
        vm->ops = vmm_driver("qemu");
        (void) snprintf(vm->id, sizeof(vm->id), "%016x", n);
        (void) snprintf(vm->name, sizeof(vm->name), "customer-%03u.worker", n);
        vm->state = VM_RUNNING;
        vm->session = true;
        vm->machine = (struct vmm_machine){ .mem_bytes = 256u << 20, .vcpus = vcpus };
        vm->monitored = mv;
        room_hold(vm);
        TAILQ_INSERT_TAIL(&d->vms, vm, entry);
        *mv = (struct monitor_vm){ .m = m, .vm = vm, .watched = true, .n_vcpus = vcpus, .vcpu = mv->vcpu };
        (void) strcpy(mv->name, vm->name);
        fill(&mv->sum, n);
        for (unsigned i = 0; i < vcpus; i++) {
                mv->vcpu[i].vcpu = i;
                fill(&mv->vcpu[i].sum, n + i);
        }
        TAILQ_INSERT_TAIL(&m->vms, mv, entry);
        if (m->probes)
                watch(mv, vcpus);
}

static void make_daemon(struct daemon *d, bool watched, unsigned vms, unsigned vcpus) {
        config_defaults(&d->cfg);
        (void) strcpy(d->cfg.metrics_listen, "127.0.0.1:0");
        d->cfg.metrics_chosen = true;
        d->cfg.metrics_max_vms = vms;
        (void) strcpy(d->store_dir, "/tmp");
        TAILQ_INIT(&d->vms);
        d->base = event_base_new();
        d->cfg.probes = watched ? CONFIG_PROBES_AUTO : CONFIG_PROBES_OFF;
        must(d->base && events_new(&d->events) == 0 && monitor_new(d, &d->monitor) == 0 && room_new(d) == 0 &&
                     catalog_new(d, &d->catalog) == 0 && pager_new(d, &d->pager) == 0 && http_new(d, &d->http) == 0 &&
                     metrics_new(d, &d->metrics) == 0,
             "forkd cannot be made");
        if (watched && !monitor_is_up(d->monitor)) {
                (void) printf("SKIPPED: no probes: %s\n", d->monitor->reason);
                exit(77);
        }
        for (unsigned i = 0; i < vms; i++)
                add_vm(d, d->monitor, i, vcpus);
        http_open(d->http);
        must(http_address(d->http)[0] != '\0', "there is no port");
}

/* ---- the pager ---- */

static void put_hist(struct mp_buf *b, const char *key, bool buckets) {
        mp_key(b, key);
        mp_map(b, buckets ? 3 : 2);
        mp_kv_double(b, "sum_us", 12345.5);
        mp_kv_double(b, "max_us", 999.5);
        if (!buckets)
                return;
        mp_key(b, "buckets");
        mp_array(b, 60);
        for (unsigned i = 0; i < 60; i++) {
                mp_array(b, 2);
                mp_double(b, (double) hist_upper_ns(i + 40) / 1e3);
                mp_u64(b, 1000 + i);
        }
}

static void put_faults(struct mp_buf *b) {
        mp_key(b, "faults");
        mp_map(b, 4);
        for (int i = 0; i < 4; i++)
                mp_kv_u64(b, pager_total_fault_name((enum pager_total_fault) i), 1000);
}

static void put_status(struct mp_buf *b, unsigned sessions) {
        static const char *const numbers[] = { "pages_installed", "zero_pages", "pages_ahead", "zero_ahead", "recorded_pages",
                                               "removed_pages",   "moves",      "vm_pid",      "worker" };

        mp_map(b, 2);
        mp_key(b, "sessions");
        mp_array(b, sessions);
        for (unsigned i = 0; i < sessions; i++) {
                mp_map(b, 4 + ARRAY_LEN(numbers));
                mp_kv_str(b, "session", "0123456789abcdef");
                put_faults(b);
                put_hist(b, "wait", sessions <= PAGER_STATUS_SESSIONS);
                put_hist(b, "service", sessions <= PAGER_STATUS_SESSIONS);
                for (size_t k = 0; k < ARRAY_LEN(numbers); k++)
                        mp_kv_u64(b, numbers[k], 123456 + i);
        }
        mp_key(b, "totals");
        mp_map(b, 3);
        put_faults(b);
        put_hist(b, "wait", true);
        put_hist(b, "service", true);
}

static void on_call(struct rpc_msg *m, void *arg) {
        must(rpc_reply(m->conn, m->msgid, arg, NULL, 0) == 0, "the pager cannot answer");
}

static void play_pager(int fd, unsigned sessions) {
        static const struct rpc_handlers handlers = { .on_message = on_call };
        struct event_base *base = event_base_new();
        struct rpc_conn *conn;
        struct mp_buf b;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        mp_buf_init(&b);
        put_status(&b, sessions);
        must(base && rpc_conn_new(base, fd, &handlers, &b, &conn) == 0, "the pager cannot be played");
        (void) event_base_dispatch(base);
        _exit(0);
}

static void start_pager(struct daemon *d, unsigned sessions) {
        static const struct rpc_handlers handlers = { .on_message = pager_on_message };
        struct pager_process *o = calloc(1, sizeof(*o));
        int sv[2];

        must(o && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0, "no socket for the pager");
        if (fork() == 0) {
                (void) close(sv[0]);
                play_pager(sv[1], sessions);
        }
        (void) close(sv[1]);
        *o = (struct pager_process){ .refs = 2, .p = d->pager, .pidfd = STDIN_FILENO };
        must(rpc_conn_new(d->base, sv[0], &handlers, o, &o->conn) == 0, "no connection to the pager");
        d->pager->serving = o;
}

/* ---- the client ---- */

struct sample {
        double ms, busy_ms;
        unsigned long bytes, lines;
};

static struct sample scrape(const char *address, char *text) {
        static const char ask[] = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        cleanup_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        uint64_t start = now_ns();
        struct sample s = { 0 };
        const char *busy;
        ssize_t n;

        to.sin_port = htons((uint16_t) atoi(strrchr(address, ':') + 1));
        must(connect(fd, (struct sockaddr *) &to, sizeof(to)) == 0 && io_write_full(fd, ask, sizeof(ask) - 1) == 0,
             "no connection");
        n = io_read_full(fd, text, MAX_TEXT - 1);
        s.ms = ms_since(start);
        must(n > 0 && strncmp(text, "HTTP/1.1 200", 12) == 0, "no answer");
        text[n] = '\0';
        s.bytes = (unsigned long) n;
        for (const char *p = text; (p = strchr(p, '\n')); p++)
                s.lines += p[1] != '#';
        busy = strstr(text, "\nforkd_scrape_seconds ");
        must(busy != NULL, "no forkd_scrape_seconds");
        s.busy_ms = strtod(busy + 22, NULL) * 1e3;
        return s;
}

static int by_ms(const void *a, const void *b) {
        const double *x = a, *y = b;

        return (*x > *y) - (*x < *y);
}

static int run_client(const char *address, unsigned vms, unsigned vcpus, unsigned rounds, double max_ms) {
        double *ms = calloc(rounds, sizeof(*ms)), *busy = calloc(rounds, sizeof(*busy));
        char *text = malloc(MAX_TEXT);
        struct sample s = { 0 };

        must(ms && busy && text, "out of memory");
        (void) scrape(address, text); /* memory is touched for the first time */
        for (unsigned i = 0; i < rounds; i++) {
                (void) poll(NULL, 0, PACE_MS);
                s = scrape(address, text);
                ms[i] = s.ms;
                busy[i] = s.busy_ms;
        }
        qsort(ms, rounds, sizeof(*ms), by_ms);
        qsort(busy, rounds, sizeof(*busy), by_ms);
        (void) printf("%u VMs, %u vCPUs: %lu bytes, %lu lines; a scrape takes %.1f ms (median of %u; worst %.1f), of which "
                      "forkd's loop "
                      "writes for %.1f ms (worst %.1f)%s\n",
                      vms, vms * vcpus, s.bytes, s.lines, ms[rounds / 2], rounds, ms[rounds - 1], busy[rounds / 2],
                      busy[rounds - 1], max_ms > 0 ? ms[rounds / 2] <= max_ms ? ": met" : ": MISSED" : "");
        (void) fflush(stdout);
        return max_ms > 0 && ms[rounds / 2] > max_ms;
}

static unsigned number(const char *s) {
        unsigned long v = strtoul(s, NULL, 10);

        must(v > 0 && v <= 100000, "a number from 1 to 100000 is wanted");
        return (unsigned) v;
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "vms", required_argument, NULL, 'n' },    { "vcpus", required_argument, NULL, 'c' },
                { "rounds", required_argument, NULL, 'r' }, { "max", required_argument, NULL, 'm' },
                { "watch", no_argument, NULL, 'w' },        { 0 },
        };
        unsigned vms = 500, vcpus = 2, rounds = 51;
        static struct daemon d;
        double max_ms = 0;
        bool watched = false;
        pid_t client;
        int status = 0;

        for (int c; (c = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
                must(c != '?', "usage: scrape [--vms N] [--vcpus N] [--rounds N] [--max MS] [--watch]");
                vms = c == 'n' ? number(optarg) : vms;
                vcpus = c == 'c' ? number(optarg) : vcpus;
                rounds = c == 'r' ? number(optarg) : rounds;
                watched |= c == 'w';
                max_ms = c == 'm' ? (double) number(optarg) : max_ms;
        }
        log_init("scrape", LOG_LVL_ERROR);
        make_daemon(&d, watched, vms, vcpus);
        start_pager(&d, vms);
        client = fork();
        must(client >= 0, "no process for the client");
        if (client == 0)
                _exit(run_client(http_address(d.http), vms, vcpus, rounds, max_ms));
        while (waitpid(client, &status, WNOHANG) == 0) {
                const struct timeval tv = { .tv_usec = 20000 };

                (void) event_base_loopexit(d.base, &tv);
                (void) event_base_dispatch(d.base);
        }
        return WIFEXITED(status) ? WEXITSTATUS(status) : 2; /* everything else ends with us */
}
