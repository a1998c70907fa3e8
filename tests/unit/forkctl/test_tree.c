/* SPDX-License-Identifier: MIT */
/* `snapshot tree`: whatever forkd lists, a tree comes out. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "fake_forkd.h"
#include "common/json.h"

#define SNAP(id, parent) \
        "{\"id\":\"" id "\",\"parent\":" parent ",\"source\":\"web\",\"stored_bytes\":1024,\"created\":1700000000}"
#define VM(name, snapshot) "{\"name\":\"" name "\",\"id\":\"0\",\"state\":\"running\",\"snapshot\":" snapshot "}"

static void draws(const char *snapshots, const char *vms, const char *want) {
        cleanup_free char *s = NULL, *v = NULL;
        struct answer answers[3] = { { .method = "snapshot.list" }, { .method = "vm.list" } };
        struct fake *f = fake_new();
        struct run r = { 0 };

        assert_true(asprintf(&s, "{\"snapshots\":[%s]}", snapshots) > 0 && asprintf(&v, "{\"vms\":[%s]}", vms) > 0);
        answers[0].result = s;
        answers[1].result = v;
        f->answers = answers;
        RUN(f, &r, "snapshot", "tree");
        assert_int_equal(r.status, 0);
        assert_string_equal(r.out, want);
        run_clear(&r);
        fake_free(f);
}

#define OF "  of web, 1 KiB, 2023-11-14 22:13:20\n"

static void test_drawing(void **state) {
        draws("", "", "");
        draws("", VM("new", "null"), "new (running)\n");
        draws(SNAP("a", "null"), "", "a" OF);
        /* children may be listed before their parents */
        draws(SNAP("c", "\"b\"") "," SNAP("b", "\"a\"") "," SNAP("a", "null") "," SNAP("d", "\"a\"") "," SNAP("e", "\"gone\""),
              VM("w", "\"a\"") "," VM("x", "\"b\"") "," VM("y", "\"c\"") "," VM("y2",
                                                                                "\"c\"") "," VM("z", "\"d\"") "," VM("n", "null"),
              "a" OF "├─ w (running)\n"
              "├─ b" OF "│  ├─ x (running)\n"
              "│  └─ c" OF "│     ├─ y (running)\n"
              "│     └─ y2 (running)\n"
              "└─ d" OF "   └─ z (running)\n"
              "e" OF "n (running)\n");
}

/* Each is drawn once, whatever circles the parents make. */
static void test_circles(void **state) {
        draws(SNAP("a", "\"a\""), "", "a" OF);
        draws(SNAP("a", "\"b\"") "," SNAP("b", "\"a\""), "", "b" OF "└─ a" OF);
        draws(SNAP("x", "\"a\"") "," SNAP("a", "\"b\"") "," SNAP("b", "\"c\"") "," SNAP("c", "\"a\""), "",
              "c" OF "└─ b" OF "   └─ a" OF "      └─ x" OF);
}

static void test_json(void **state) {
        static const struct answer answers[] = {
                { "snapshot.list", "{\"snapshots\":[" SNAP("b", "\"a\"") "," SNAP("a", "null") "]}" },
                { "vm.list", "{\"vms\":[" VM("w", "\"b\"") "," VM("n", "null") "]}" },
                { 0 },
        };
        cleanup_json json_t *doc = NULL;
        struct fake *f = fake_new();
        struct run r = { 0 };
        json_t *a, *b;

        f->answers = answers;
        RUN(f, &r, "--json", "snapshot", "tree");
        assert_int_equal(r.status, 0);
        doc = one_document(r.out);
        assert_int_equal(json_array_size(json_list(doc, "snapshots")), 1);
        a = json_array_get(json_list(doc, "snapshots"), 0);
        assert_string_equal(json_str(a, "id", ""), "a");
        assert_int_equal(json_array_size(json_list(a, "vms")), 0);
        b = json_array_get(json_list(a, "children"), 0);
        assert_string_equal(json_str(b, "id", ""), "b");
        assert_string_equal(json_str(json_array_get(json_list(b, "vms"), 0), "name", ""), "w");
        assert_string_equal(json_str(json_array_get(json_list(doc, "vms"), 0), "name", ""), "n");
        run_clear(&r);
        fake_free(f);
}

/* A long chain neither overflows a stack nor nests deeper than JSON readers take. */
static void test_long_chain(void **state) {
        enum { N = 5000 };
        cleanup_free char *text = NULL;
        struct answer answers[3] = { { .method = "snapshot.list" }, { .method = "vm.list", .result = "{\"vms\":[]}" } };
        cleanup_json json_t *doc = NULL;
        struct fake *f = fake_new();
        struct run r = { 0 };
        size_t size, depth = 0;
        json_t *s;
        FILE *m = open_memstream(&text, &size);

        (void) fputs("{\"snapshots\":[", m);
        for (int i = 0; i < N; i++)
                (void) fprintf(m, "%s{\"id\":\"s%d\",\"parent\":\"s%d\"}", i ? "," : "", i, i - 1);
        (void) fputs("]}", m);
        assert_int_equal(fclose(m), 0);
        answers[0].result = text;
        f->answers = answers;
        RUN(f, &r, "--json", "snapshot", "tree");
        assert_int_equal(r.status, 0);
        doc = one_document(r.out);
        for (s = json_array_get(json_list(doc, "snapshots"), 0); s; s = json_array_get(json_list(s, "children"), 0))
                depth++;
        assert_true(depth > 100 && depth < 1000);
        assert_true(json_array_size(json_list(doc, "snapshots")) > 1);
        run_clear(&r);
        fake_free(f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_drawing),
                cmocka_unit_test(test_circles),
                cmocka_unit_test(test_json),
                cmocka_unit_test(test_long_chain),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
