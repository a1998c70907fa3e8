/* SPDX-License-Identifier: MIT */
/* The tree is walked once into an index of names and paths. Names are compared with '-' and '_' as the same
 * letter, as the kernel does; a file is a module if it ends in .ko, .ko.xz, .ko.gz or .ko.zst. The order is
 * that of a depth-first walk of the dependencies, its depth bounded. */
#include "setup/modules.h"

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>

#include "common/io.h"
#include "setup/elf_file.h"
#include "setup/unpack.h"

#define DEPENDS_MAX_DEPTH 8
#define BUILTIN_MAX_BYTES (4u << 20)

struct index {
        const char *dir;
        size_t n, cap;
        struct index_entry {
                char name[56];
                char *path;
        } * e;
        char *builtin; /* modules.builtin: a path a line; NULL if the file is not there */
};

static void index_clear(struct index *x) {
        for (size_t i = 0; i < x->n; i++)
                free(x->e[i].path);
        free(x->e);
        free(x->builtin);
}

/* "virtio-rng.ko.xz" → "virtio_rng" */
static bool module_name(const char *file, char *buf, size_t size) {
        static const char *const suffixes[] = { ".ko", ".ko.xz", ".ko.gz", ".ko.zst" };
        const char *dot = strchr(file, '.');

        if (!dot || dot == file || (size_t) (dot - file) >= size)
                return false;
        bool known = false;
        for (size_t i = 0; i < ARRAY_LEN(suffixes); i++)
                known = known || strcmp(dot, suffixes[i]) == 0;
        if (!known)
                return false;
        for (size_t i = 0; i < (size_t) (dot - file); i++)
                buf[i] = file[i] == '-' ? '_' : file[i];
        buf[dot - file] = '\0';
        return true;
}

static int index_add(struct index *x, const char *name, const char *path) {
        if (x->n == MODULES_MAX_FILES)
                return -E2BIG;
        if (x->n == x->cap) {
                size_t cap = MAX_OF(x->cap * 2, (size_t) 1024);
                struct index_entry *p = realloc(x->e, cap * sizeof(*p));
                if (!p)
                        return -ENOMEM;
                x->e = p;
                x->cap = cap;
        }
        char *copy = strdup(path);
        if (!copy)
                return -ENOMEM;
        (void) snprintf(x->e[x->n].name, sizeof(x->e[x->n].name), "%s", name);
        x->e[x->n++].path = copy;
        return 0;
}

static int index_fill(struct index *x) {
        char root[PATH_MAX];
        size_t len;
        int r = 0;

        (void) snprintf(root, sizeof(root), "%s/kernel", x->dir);
        FTS *fts = fts_open((char *[]){ root, NULL }, FTS_PHYSICAL | FTS_NOCHDIR | FTS_NOSTAT, NULL);
        if (!fts)
                return -errno;
        for (FTSENT *f; r == 0 && (f = fts_read(fts));) {
                char name[56];

                if (f->fts_info != FTS_D && f->fts_info != FTS_DP && module_name(f->fts_name, name, sizeof(name)))
                        r = index_add(x, name, f->fts_path);
        }
        (void) fts_close(fts);
        if (r < 0)
                return r;

        (void) snprintf(root, sizeof(root), "%s/modules.builtin", x->dir);
        r = io_read_file(AT_FDCWD, root, BUILTIN_MAX_BYTES, &x->builtin, &len);
        return r == -ENOENT ? 0 : r;
}

static bool is_builtin(const struct index *x, const char *name) {
        for (const char *line = x->builtin; line && *line;) {
                size_t len = strcspn(line, "\n");
                const char *base = memrchr(line, '/', len);
                char file[128], found[56];

                base = base ? base + 1 : line;
                (void) snprintf(file, sizeof(file), "%.*s", (int) (line + len - base), base);
                if (module_name(file, found, sizeof(found)) && strcmp(found, name) == 0)
                        return true;
                line += len + (line[len] == '\n');
        }
        return false;
}

static int add_module(const struct index *x, struct module_set *set, const char *name, bool optional, unsigned depth,
                      struct err *e);

/* "virtio,virtio_ring" */
static int add_depends(const struct index *x, struct module_set *set, const char *depends, unsigned depth, struct err *e) {
        while (*depends) {
                size_t len = strcspn(depends, ",");
                char name[56];

                (void) snprintf(name, sizeof(name), "%.*s", (int) len, depends);
                for (char *c = name; *c; c++)
                        if (*c == '-')
                                *c = '_';
                int r = len > 0 ? add_module(x, set, name, false, depth, e) : 0;
                if (r < 0)
                        return r;
                depends += len + (depends[len] == ',');
        }
        return 0;
}

static int load(const char *path, const char *name, struct module *ret, struct err *e) {
        cleanup_free char *packed = NULL;
        size_t len;

        int r = io_read_file(AT_FDCWD, path, UNPACK_MAX_MODULE, &packed, &len);
        if (r < 0)
                return err_errno(e, r, "cannot read kernel module %s", path);
        r = unpack_any(packed, len, UNPACK_MAX_MODULE, path, &ret->data, &ret->len, e);
        if (r < 0)
                return r;
        (void) snprintf(ret->name, sizeof(ret->name), "%s", name);
        return 0;
}

static int add_module(const struct index *x, struct module_set *set, const char *name, bool optional, unsigned depth,
                      struct err *e) {
        const char *path = NULL, *depends;

        for (size_t i = 0; i < set->n; i++)
                if (strcmp(set->m[i].name, name) == 0)
                        return 0;
        if (depth > DEPENDS_MAX_DEPTH)
                return err_set(e, ERR_CORRUPT, -ELOOP, "kernel module %s: dependencies nest too deep", name);
        for (size_t i = 0; i < x->n && !path; i++)
                if (strcmp(x->e[i].name, name) == 0)
                        path = x->e[i].path;
        if (!path) {
                if (optional || is_builtin(x, name))
                        return 0;
                return err_set(e, ERR_UNSUPPORTED, -ENOENT, "the guest kernel in %s has no module %s", x->dir, name);
        }

        struct module m = { 0 };
        int r = load(path, name, &m, e);
        if (r < 0)
                return r;
        r = elf_modinfo(m.data, m.len, "depends", &depends);
        if (r == -ENOENT)
                r = 0;
        else if (r < 0)
                err_errno(e, r, "kernel module %s makes no sense", path);
        else
                r = add_depends(x, set, depends, depth + 1, e);
        if (r == 0 && set->n == MODULES_MAX)
                r = err_set(e, ERR_LIMIT, -E2BIG, "more than %d kernel modules", MODULES_MAX);
        if (r < 0) {
                free(m.data);
                return r;
        }
        set->m[set->n++] = m;
        return 0;
}

int modules_collect(const char *dir, const char *const *wanted, struct module_set *ret, struct err *e) {
        attr_cleanup(index_clear) struct index x = { .dir = dir };
        cleanup_module_set struct module_set set = { 0 };

        int r = index_fill(&x);
        if (r < 0)
                return err_errno(e, r, "cannot read the kernel modules in %s", dir);
        for (; *wanted; wanted++) {
                bool optional = **wanted == '?';

                r = add_module(&x, &set, *wanted + optional, optional, 0, e);
                if (r < 0)
                        return r;
        }
        *ret = set;
        set.n = 0;
        return 0;
}

void module_set_clear(struct module_set *s) {
        for (size_t i = 0; i < s->n; i++)
                free(s->m[i].data);
        s->n = 0;
}
