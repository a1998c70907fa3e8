/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * Slots are files in /run, which is the guest's memory. They are overwritten in place: the link dirties these pages and few others.
 * The disk is read past the guest's page cache (iflag=direct), so that a checksum is of what the disk holds and not of what memory
 * remembers of it. A guest that was taken from elsewhere (--from) has no disk of ours, and its disks are left alone.
 *
 * Output is collected in a memfd, input comes from one: the streams of exec know nothing but descriptors. */
#include "forkctl/chain/guest.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/json.h"
#include "forkctl/stream.h"

#define DIR "/run/forkctl-chain"
#define TIMEOUT_S 300
#define OUTPUT_MAX (64u << 10)
#define SCRIPT_MAX 4096

static int memory_file(struct ctl *c, const char *data, size_t len, int *ret) {
        cleanup_fd int fd = memfd_create("forkctl-chain", MFD_CLOEXEC);
        int r = fd < 0 ? -errno : len ? io_pwrite_full(fd, data, len, 0) : 0;

        if (r < 0)
                return err_errno(&c->e, r, "keeping %zu bytes for a guest", len);
        *ret = TAKE_FD(fd);
        return 0;
}

static int take_output(struct ctl *c, int fd, char **ret) {
        struct stat st;
        char *out;
        size_t len;
        int r;

        if (fstat(fd, &st) < 0)
                return err_errno(&c->e, -errno, "reading what a guest said");
        len = (size_t) MIN_OF(st.st_size, (off_t) OUTPUT_MAX);
        out = malloc(len + 1);
        r = out ? io_pread_full(fd, out, len, 0) : -ENOMEM;
        if (r < 0) {
                free(out);
                return err_errno(&c->e, r, "reading what a guest said");
        }
        out[len] = '\0';
        *ret = out;
        return 0;
}

/* The last line that is not empty, for a sentence. Cuts @text. */
static const char *last_line(char *text) {
        char *end = text + strlen(text), *nl;

        while (end > text && (end[-1] == '\n' || end[-1] == ' '))
                *--end = '\0';
        nl = strrchr(text, '\n');
        return nl ? nl + 1 : text;
}

static int judge(struct ctl *c, const char *name, const json_t *result, int errors_fd) {
        uint64_t sig = json_u64(result, "signal", 0), code = json_u64(result, "exit_code", UINT64_MAX);
        cleanup_free char *errors = NULL;

        if (code == 0 && !sig)
                return 0;
        if (json_flag(result, "timed_out"))
                return err_set(&c->e, ERR_TIMEOUT, -ETIMEDOUT, "%s: the command took longer than %d s", name, TIMEOUT_S);
        if (take_output(c, errors_fd, &errors) < 0)
                return c->e.r;
        if (sig)
                return err_set(&c->e, ERR_AGENT, -EIO, "%s: the command was ended by signal %llu", name,
                               (unsigned long long) sig);
        return err_set(&c->e, ERR_AGENT, -EIO, "%s: the command exited with %lld: %.200s", name, (long long) code,
                       last_line(errors));
}

int guest_sh(struct ctl *c, const char *name, const char *script, const char *input, size_t len, char **ret_out) {
        char *argv[] = { (char *) "/bin/sh", (char *) "-c", (char *) script };
        cleanup_fd int in = -1, out = -1, errors = -1;
        cleanup_streams struct streams s;
        struct sink *out_sink, *err_sink;
        cleanup_req struct req q;
        int r;

        req_init(&q);
        streams_init(&s, c);
        req_str(&q, "name", name);
        req_strs(&q, "argv", argv, ARRAY_LEN(argv));
        req_u64(&q, "timeout_s", TIMEOUT_S);
        if (input)
                req_bool(&q, "stdin", true);
        r = memory_file(c, NULL, 0, &out);
        if (r == 0)
                r = memory_file(c, NULL, 0, &errors);
        if (r == 0 && input)
                r = memory_file(c, input, len, &in);
        if (r == 0)
                r = streams_sink(&s, out, &out_sink);
        if (r == 0)
                r = streams_sink(&s, errors, &err_sink);
        if (r < 0)
                return r;
        s.out[1].sink = out_sink;
        s.out[2].sink = err_sink;
        s.in_fd = in;
        r = streams_start(&s, "vm.exec", &q);
        if (r == 0)
                r = streams_run(&s);
        if (r == 0)
                r = judge(c, name, s.result, errors);
        return r == 0 && ret_out ? take_output(c, out, ret_out) : r;
}

/* ---- contents ---- */

/* Slots are n_slots from 1000 on: writers of the chain itself count from 1. */
#define FIRST_WRITER 1000000u

int guest_prepare(struct ctl *c, const char *name, struct content *content) {
        int r;

        r = guest_sh(c, name,
                     "mkdir -p " DIR
                     " && for p in dd head sha256sum; do command -v $p >/dev/null || { echo \"no $p\" >&2; exit 1; }; done",
                     NULL, 0, NULL);
        for (unsigned i = 0; r == 0 && i < content->n_slots; i++)
                r = guest_dirty(c, name, content, i, FIRST_WRITER + i);
        return r;
}

/* The bytes of the last repetition, and how many whole ones are before it (beside the block itself). */
static void repetitions(const struct content *content, uint64_t *ret_whole, uint64_t *ret_rest) {
        uint64_t more = content->slot_bytes > CONTENT_BLOCK ? content->slot_bytes - CONTENT_BLOCK : 0;

        *ret_whole = more / CONTENT_BLOCK;
        *ret_rest = more % CONTENT_BLOCK;
}

int guest_dirty(struct ctl *c, const char *name, struct content *content, unsigned turn, uint64_t writer) {
        unsigned slot = turn % content->n_slots, piece = turn % CONTENT_DISK_SLOTS;
        cleanup_free char *block = NULL;
        char script[SCRIPT_MAX], disk[256] = "";
        uint64_t whole, rest;
        size_t len;
        int r;

        r = content_block(content, writer, &block, &len);
        if (r < 0)
                return err_errno(&c->e, r, "making the content");
        repetitions(content, &whole, &rest);
        if (content->has_disk)
                (void) snprintf(disk, sizeof(disk),
                                "dd if=$f of=/dev/vda bs=%llu count=1 seek=%u conv=notrunc,fsync status=none || exit 4\n",
                                (unsigned long long) content->piece_bytes, piece);
        (void) snprintf(script, sizeof(script),
                        "f=" DIR "/%u; i=1\n"
                        "dd of=$f bs=65536 conv=notrunc status=none || exit 1\n"
                        "more() { { printf %%0%ud $i; dd if=$f bs=$(($1 - %u)) count=1 status=none; } | dd of=$f bs=4096 "
                        "seek=$((i * %u)) conv=notrunc status=none; }\n"
                        "while [ $i -le %llu ]; do more %u || exit 2; i=$((i + 1)); done\n"
                        "[ %llu = 0 ] || more %llu || exit 3\n"
                        "%s",
                        slot, CONTENT_MARK, CONTENT_MARK, CONTENT_BLOCK / 4096, (unsigned long long) whole, CONTENT_BLOCK,
                        (unsigned long long) rest, (unsigned long long) rest, disk);
        r = guest_sh(c, name, script, block, len, NULL);
        if (r == 0)
                content_written(content, slot, piece, writer, block, len);
        return r;
}

int guest_verify(struct ctl *c, const char *name, const struct content *content, bool spoil) {
        char script[SCRIPT_MAX], want[SHA256_HEX], disk[256] = "", spoiled[256] = "";
        cleanup_free char *out = NULL;
        char *save = NULL, *sum;
        int r;

        if (content->has_disk) {
                r = content_disk_sum(content, want);
                if (r < 0)
                        return err_errno(&c->e, r, "making the content");
                (void) snprintf(disk, sizeof(disk),
                                "dd if=/dev/vda iflag=direct bs=%llu count=%u 2>/dev/null | sha256sum || exit 1\n",
                                (unsigned long long) content->piece_bytes, CONTENT_DISK_SLOTS);
        }
        if (spoil)
                (void) snprintf(spoiled, sizeof(spoiled),
                                "for f in " DIR "/*%s; do echo spoiled by $(hostname) | dd of=$f conv=notrunc 2>/dev/null || "
                                "exit 2; done\nsync\n",
                                content->has_disk ? " /dev/vda" : "");
        (void) snprintf(script, sizeof(script),
                        "cd " DIR " || exit 1\nfor i in $(seq 0 %u); do sha256sum < $i || exit 1; done\n%s%s",
                        content->n_slots - 1, disk, spoiled);
        r = guest_sh(c, name, script, NULL, 0, &out);
        if (r < 0)
                return r;
        sum = strtok_r(out, " -\n", &save);
        for (unsigned i = 0; i < content->n_slots; i++, sum = strtok_r(NULL, " -\n", &save))
                if (!sum || strcmp(sum, content->sum[i]) != 0)
                        return err_set(&c->e, ERR_CORRUPT, -EBADMSG, "%s: memory of slot %u is %.64s and not %s", name, i,
                                       sum ? sum : "missing", content->sum[i]);
        if (content->has_disk && (!sum || strcmp(sum, want) != 0))
                return err_set(&c->e, ERR_CORRUPT, -EBADMSG, "%s: its disk is %.64s and not %s", name, sum ? sum : "missing",
                               want);
        return 0;
}
