/* SPDX-License-Identifier: MIT */
/* Theory of operation: `snapshot tree`
 *
 * forkd tells flat lists. Here each snapshot becomes a node that is hung below its parent; VMs hang below
 * the snapshot that they stand by in or came from. A snapshot whose parent was deleted is a root, and so is
 * one whose chain of parents does not end: whatever forkd says, what is drawn is a tree. Depth is not bounded
 * by anything but the number of snapshots in one message, so nothing here recurses per generation, except
 * the JSON printer: beyond TREE_MAX_NESTED generations the JSON goes flat again, with `parent` set. */
#include <errno.h>
#include <string.h>

#include "common/ids.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "common/json.h"
#include "forkctl/table.h"

#define TREE_MAX_NESTED 400 /* JSON readers give up at about 1000 levels; each generation takes two */

struct node {
        const json_t *s; /* the snapshot */
        struct node *parent, *child, *last, *next;
        json_t *json;   /* while nesting */
        unsigned depth; /* in the drawn tree */
};

struct tree {
        struct node *nodes;
        size_t n;
        const json_t *vms;
        struct node root; /* its children are the roots */
};

static const json_t *snapshot_id(const json_t *s) {
        return json_object_get(s, "id");
}

static void hang(struct node *below, struct node *n) {
        n->parent = below;
        if (below->last)
                below->last->next = n;
        else
                below->child = n;
        below->last = n;
        n->depth = below->depth + 1;
}

/* Index of ids, so that finding parents takes linear time. The values are positions + 1. */
static int index_ids(const struct tree *t, json_t *index) {
        for (size_t i = 0; i < t->n; i++) {
                const char *id = json_string_value(snapshot_id(t->nodes[i].s));

                if (id && json_object_set_new(index, id, json_integer((json_int_t) i + 1)) < 0)
                        return -ENOMEM;
        }
        return 0;
}

static struct node *find_node(const struct tree *t, const json_t *index, const char *id) {
        json_int_t i = id && *id ? json_integer_value(json_object_get(index, id)) : 0;

        return i > 0 ? &t->nodes[i - 1] : NULL;
}

/* Hangs @n and, before it, all of its ancestors that do not hang yet. A node that is met again on the way up
 * closes a circle: it becomes a root. */
static void hang_chain(struct tree *t, const json_t *index, struct node *n, struct node **chain) {
        size_t len = 0;

        for (; n && !n->parent; n = find_node(t, index, json_str(n->s, "parent", NULL))) {
                n->parent = &t->root; /* mark as met; set for good below */
                chain[len++] = n;
        }
        /* n is NULL, hangs already, or was met in this very walk */
        for (size_t i = 0; n && i < len; i++)
                if (chain[i] == n) {
                        n = NULL;
                        break;
                }
        for (; len > 0; len--) {
                hang(n ? n : &t->root, chain[len - 1]);
                n = chain[len - 1];
        }
}

static int tree_build(struct tree *t, const json_t *snapshots, const json_t *vms) {
        cleanup_json json_t *index = json_object();
        cleanup_free struct node **chain = calloc(json_array_size(snapshots) + 1, sizeof(struct node *));
        json_t *s;
        size_t i;

        t->vms = vms;
        t->nodes = calloc(json_array_size(snapshots) + 1, sizeof(*t->nodes));
        if (!t->nodes || !index || !chain)
                return -ENOMEM;
        json_array_foreach ((json_t *) snapshots, i, s)
                t->nodes[t->n++].s = s;
        if (index_ids(t, index) < 0)
                return -ENOMEM;
        for (i = 0; i < t->n; i++)
                hang_chain(t, index, &t->nodes[i], chain);
        return 0;
}

/* Children before siblings, without recursion. */
static struct node *next_node(struct node *n) {
        if (n->child)
                return n->child;
        while (n && !n->next)
                n = n->parent;
        return n ? n->next : NULL;
}

static bool vm_belongs(const json_t *vm, const json_t *s) {
        const char *of = json_str(vm, "snapshot", "");

        return s ? json_equal(json_object_get(vm, "snapshot"), snapshot_id(s)) : !*of;
}

/* ---- drawing ---- */

/* The lines left of @n: for each generation between the root and it, does a line go on below? */
static int print_prefix(const struct node *n, bool more, bool top) {
        cleanup_free const struct node **path = calloc(n->depth + 1, sizeof(struct node *));
        unsigned len = 0;

        if (!path)
                return -ENOMEM;
        for (const struct node *p = n; p->parent && p->parent->parent; p = p->parent)
                path[len++] = p;
        for (; len > 1; len--)
                (void) fputs(path[len - 1]->next ? "│  " : "   ", stdout);
        if (len == 1)
                (void) fputs(top ? (n->next ? "├─ " : "└─ ") : (n->next ? "│  " : "   "), stdout);
        if (!top)
                (void) fputs(more ? "├─ " : "└─ ", stdout);
        return 0;
}

static void print_vm(const json_t *vm) {
        char name[128], state[64], reason[256];

        printf("%s (%s%s%s)\n", text_safe(json_str(vm, "name", "?"), name, sizeof(name)),
               text_safe(json_str(vm, "state", "?"), state, sizeof(state)), *json_str(vm, "reason", "") ? ": " : "",
               text_safe(json_str(vm, "reason", ""), reason, sizeof(reason)));
}

static int print_vms_of(const struct tree *t, const struct node *n) {
        const json_t *before = NULL;
        json_t *vm;
        size_t i;
        int r = 0;

        json_array_foreach ((json_t *) t->vms, i, vm) {
                if (!vm_belongs(vm, n->s))
                        continue;
                if (before) {
                        r = print_prefix(n, true, false);
                        print_vm(before);
                }
                before = vm;
        }
        if (before && r == 0) {
                r = print_prefix(n, n->child != NULL, false);
                print_vm(before);
        }
        return r;
}

static int tree_draw(const struct tree *t) {
        char id[64], tag[128], source[128], stored[32], when[64];
        json_t *vm;
        size_t i;
        int r;

        for (struct node *n = t->root.child; n; n = next_node(n)) {
                r = print_prefix(n, false, true);
                if (r < 0)
                        return r;
                printf("%s%s%s", text_safe(json_str(n->s, "id", "?"), id, sizeof(id)), *json_str(n->s, "tag", "") ? " " : "",
                       text_safe(json_str(n->s, "tag", ""), tag, sizeof(tag)));
                printf("  of %s, %s, %s\n", text_safe(json_str(n->s, "source", "?"), source, sizeof(source)),
                       text_size(n->s, "stored_bytes", stored, sizeof(stored)),
                       text_time(json_object_get(n->s, "created"), when, sizeof(when)));
                r = print_vms_of(t, n);
                if (r < 0)
                        return r;
        }
        json_array_foreach ((json_t *) t->vms, i, vm)
                if (vm_belongs(vm, NULL))
                        print_vm(vm);
        return 0;
}

/* ---- as JSON ---- */

static json_t *vms_json(const struct tree *t, const json_t *s) {
        json_t *list = json_array(), *vm;
        size_t i;

        json_array_foreach ((json_t *) t->vms, i, vm)
                if (vm_belongs(vm, s) &&
                    json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "name", json_str(vm, "name", ""), "id",
                                                          json_str(vm, "id", ""), "state", json_str(vm, "state", ""))) < 0)
                        break;
        return list;
}

/* Parents come before their children, so each finds its parent's list of children ready. */
static int tree_json(struct ctl *c, const struct tree *t) {
        cleanup_json json_t *roots = json_array(), *doc = NULL;

        for (struct node *n = t->root.child; n; n = next_node(n)) {
                bool nested = n->parent != &t->root && n->depth <= TREE_MAX_NESTED;
                json_t *list = nested ? json_object_get(n->parent->json, "children") : roots;

                n->json = json_copy((json_t *) n->s);
                if (!n->json || json_array_append_new(list, n->json) < 0 ||
                    json_object_set_new(n->json, "vms", vms_json(t, n->s)) < 0 ||
                    json_object_set_new(n->json, "children", json_array()) < 0)
                        return err_errno(&c->e, -ENOMEM, "drawing the tree");
        }
        doc = json_pack("{s:O, s:o}", "snapshots", roots, "vms", vms_json(t, NULL));
        return doc ? ctl_print(c, doc) : err_errno(&c->e, -ENOMEM, "drawing the tree");
}

int cmd_snapshot_tree(struct ctl *c, const struct args *a) {
        cleanup_json json_t *snapshots = NULL, *vms = NULL;
        struct tree t = { 0 };
        int r;

        r = ctl_call(c, "snapshot.list", NULL, &snapshots);
        if (r == 0)
                r = ctl_call(c, "vm.list", NULL, &vms);
        if (r < 0)
                return r;
        r = tree_build(&t, json_list(snapshots, "snapshots"), json_list(vms, "vms"));
        if (r == 0 && !c->json)
                r = tree_draw(&t);
        if (r < 0)
                (void) err_errno(&c->e, r, "drawing the tree");
        else if (c->json)
                r = tree_json(c, &t);
        free(t.nodes);
        return r;
}
