/* SPDX-License-Identifier: MIT */
/* The document of `stats`: who is in it, what is said of the pager, and that it never outgrows a message. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/events.h"
#include "forkd/monitor/internal.h"
#include "forkd/monitor/stats.h"
#include "forkd/pager/internal.h"
#include "forkd/host/room.h"

static struct daemon d;

static int setup(void **state) {
        log_init("test", LOG_LVL_ERROR);
        d = (struct daemon){ .started_ns = now_ns() };
        config_defaults(&d.cfg);
        d.cfg.probes = CONFIG_PROBES_OFF;
        TAILQ_INIT(&d.vms);
        d.base = event_base_new();
        return d.base && events_new(&d.events) == 0 && monitor_new(&d, &d.monitor) == 0 && room_new(&d) == 0 &&
                               catalog_new(&d, &d.catalog) == 0 && pager_new(&d, &d.pager) == 0
                       ? 0
                       : -1;
}

static int teardown(void **state) {
        monitor_free(d.monitor); /* first: it forgets the VMs */
        for (struct vm *vm; (vm = TAILQ_FIRST(&d.vms));) {
                TAILQ_REMOVE(&d.vms, vm, entry);
                vm_free(vm);
        }
        pager_free(d.pager);
        catalog_free(d.catalog);
        room_free(&d);
        events_free(d.events);
        event_base_free(d.base);
        return 0;
}

static void fill(struct probes_sample *s) {
        for (unsigned i = 0; i < PROBES_N_STATES; i++)
                s->ns[i] = 123456789012345ull;
        for (unsigned i = 0; i < PROBES_BUCKETS; i++)
                s->waits += s->wait[i] = 1000000007ull + i;
        s->wait_ns = 987654321987ull;
        s->preempted = s->slept = s->exits = s->halts = 1ull << 40;
}

/* With everything said of it that can be said, and nothing small. */
static struct monitor_vm *add(const char *id, const char *name, unsigned vcpus, bool ended) {
        struct monitor_vm *mv = calloc(1, sizeof(*mv));
        struct vm *vm = ended ? NULL : vm_alloc(&d);

        assert_true(mv && (vm || ended));
        *mv = (struct monitor_vm){
                .m = d.monitor, .vm = vm, .watched = !ended, .n_vcpus = vcpus, .ended_ns = ended ? now_ns() : 0
        };
        mv->vcpu = calloc(vcpus, sizeof(*mv->vcpu));
        (void) snprintf(mv->id, sizeof(mv->id), "%s", id);
        (void) snprintf(mv->name, sizeof(mv->name), "%s", name);
        fill(&mv->sum);
        fill(&mv->others.sum);
        for (unsigned i = 0; i < vcpus; i++) {
                mv->vcpu[i] = (struct monitor_vcpu){ .vcpu = i, .tid = 1 << 22, .window = { .known = true } };
                memset(mv->vcpu[i].why, 'y', sizeof(mv->vcpu[i].why) - 1);
                fill(&mv->vcpu[i].sum);
        }
        TAILQ_INSERT_TAIL(&d.monitor->vms, mv, entry);
        d.monitor->n_ended += ended;
        if (!vm)
                return mv;
        memcpy(vm->id, mv->id, sizeof(vm->id));
        memcpy(vm->name, mv->name, sizeof(vm->name));
        vm->ops = vmm_driver("qemu");
        vm->state = VM_FAILED;
        memset(vm->reason, 'r', sizeof(vm->reason) - 1);
        vm->machine = (struct vmm_machine){ .mem_bytes = 256u << 20, .vcpus = vcpus };
        vm->monitored = mv;
        TAILQ_INSERT_TAIL(&d.vms, vm, entry);
        return mv;
}

static json_t *document(const char *name, size_t *ret_size) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        json_t *j;

        mp_buf_init(&b);
        assert_int_equal(stats_document(&d, name, &b, NULL), 0);
        assert_int_equal(mp_parse(b.sb.data, b.sb.size, &doc), 0);
        j = json_from_mp(&doc.root);
        assert_non_null(j);
        /* every map says as many pairs as it has, or names would be values now */
        assert_string_equal(json_str(j, "version", ""), FORKD_VERSION);
        assert_true(json_is_object(json_object_get(j, "host")) && json_is_object(json_object_get(j, "pager")));
        if (ret_size)
                *ret_size = b.sb.size;
        return j;
}

static const json_t *vm_at(const json_t *doc, size_t i) {
        return json_array_get(json_list(doc, "vms"), i);
}

static void test_who(void **state) {
        cleanup_json json_t *all = NULL, *one = NULL, *by_id = NULL, *gone = NULL;
        struct err e = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };

        add("00000000000000aa", "web", 2, false);
        add("00000000000000bb", "db", 1, false);
        add("00000000000000cc", "old", 1, true);
        add("00000000000000dd", "db", 1, true); /* had the name before */
        all = document(NULL, NULL);
        assert_int_equal(json_array_size(json_list(all, "vms")), 4);
        assert_string_equal(json_str(vm_at(all, 0), "name", ""), "web");
        assert_string_equal(json_str(vm_at(all, 0), "state", ""), "failed");
        assert_int_equal(json_array_size(json_list(vm_at(all, 0), "vcpus")), 2);
        assert_true(
                json_is_null(json_object_get(json_array_get(json_list(vm_at(all, 0), "vcpus"), 0), "exits"))); /* no KVM here */
        assert_true(json_is_null(json_object_get(vm_at(all, 0), "ended_ms")));
        assert_string_equal(json_str(vm_at(all, 2), "state", ""), "removed");
        assert_true(json_num(vm_at(all, 2), "ended_ms", -1) >= 0);
        assert_false(json_flag(json_object_get(all, "probes"), "ok"));
        assert_true(json_str(json_object_get(all, "probes"), "reason", "")[0]);
        assert_int_equal(json_object_size(json_object_get(all, "operations")), N_OPERATIONS);

        one = document("db", NULL);
        assert_int_equal(json_array_size(json_list(one, "vms")), 1);
        assert_string_equal(json_str(vm_at(one, 0), "id", ""), "00000000000000bb"); /* the living one */
        by_id = document("00000000000000dd", NULL);
        assert_string_equal(json_str(vm_at(by_id, 0), "state", ""), "removed");
        gone = document("old", NULL);
        assert_int_equal(json_array_size(json_list(gone, "vms")), 1);
        mp_buf_init(&b);
        assert_int_equal(stats_document(&d, "nobody", &b, &e), -ENOENT);
        assert_string_equal(e.code, ERR_NOT_FOUND);
        assert_int_equal(stats_document(&d, "nobody", &b, NULL), -ENOENT);
}

/* Far more than fits, all of it as long as can be. */
static void test_size(void **state) {
        cleanup_json json_t *doc = NULL;
        size_t size, listed;
        char id[ID_LEN + 1], name[NAME_MAX_LEN + 1];

        memset(name, 'n', sizeof(name) - 1);
        name[sizeof(name) - 1] = '\0';
        for (unsigned i = 0; i < 3000; i++) {
                (void) snprintf(id, sizeof(id), "%016x", i);
                add(id, name, 8, i % 3 == 0);
        }
        doc = document(NULL, &size);
        assert_true(size < RPC_MAX_MESSAGE - 4096);
        listed = json_array_size(json_list(doc, "vms"));
        assert_in_range(listed, 100, 2999);
        assert_int_equal(listed + json_u64(doc, "vms_left_out", 0), 3000);
}

/* What the pager has answered, as it would say it; @n sessions, with text from @why. */
static void answer(const char *json) {
        cleanup_json json_t *j = json_loads(json, 0, NULL);
        struct mp_buf b;
        struct rpc_answer *a = &d.pager->answer;

        assert_non_null(j);
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_key(&b, "sessions");
        mp_array(&b, json_array_size(json_list(j, "sessions")));
        for (size_t i = 0; i < json_array_size(json_list(j, "sessions")); i++) {
                const json_t *s = json_array_get(json_list(j, "sessions"), i);

                if (!json_is_object(s)) {
                        mp_u64(&b, 7);
                        continue;
                }
                mp_map(&b, 5);
                mp_kv_str(&b, "session", json_str(s, "session", NULL));
                mp_kv_str(&b, "image", json_str(s, "image", NULL));
                mp_kv_double(&b, "oldest_fault_ms", 1.5);
                mp_key(&b, "faults");
                mp_map(&b, 3);
                mp_kv_u64(&b, "missing", 5);
                mp_kv_u64(&b, "zero", 2);
                mp_kv_str(&b, "odd", "x");
                mp_key(&b, "wait");
                mp_map(&b, 2);
                mp_kv_double(&b, "sum_us", 3000);
                mp_key(&b, "buckets");
                mp_array(&b, 2);
                mp_array(&b, 2);
                mp_double(&b, 1000);
                mp_u64(&b, 3);
                mp_str(&b, "no pair");
        }
        rpc_answer_clear(a);
        a->raw = malloc(b.sb.size);
        assert_non_null(a->raw);
        memcpy(a->raw, b.sb.data, b.sb.size);
        a->raw_len = b.sb.size;
        mp_buf_clear(&b);
        assert_int_equal(mp_parse(a->raw, a->raw_len, &a->doc), 0);
        d.pager->told = (struct pager_totals){ .known = true, .at_ns = now_ns(), .sessions = 2, .present_bytes = 4096 };
}

static void test_pager(void **state) {
        cleanup_json json_t *all = NULL, *one = NULL, *none = NULL;
        const json_t *p, *s;

        add("00000000000000aa", "web", 1, false);
        add("00000000000000bb", "db", 1, false);
        none = document(NULL, NULL);
        p = json_object_get(none, "pager");
        assert_false(json_flag(p, "up"));
        assert_true(json_is_null(json_object_get(p, "error"))); /* none is there, and none is missed */
        answer("{\"sessions\": [{\"session\": \"00000000000000aa\", \"image\": \"i\"}, 7, {\"session\": \"ffffffffffffffff\"},"
               "{\"session\": \"much too long to be the id of any VM\"}, {\"image\": \"j\"}, {\"session\": "
               "\"00000000000000bb\"}]}");
        all = document(NULL, NULL);
        p = json_object_get(all, "pager");
        assert_int_equal(json_array_size(json_list(p, "served")), 2); /* those of our VMs */
        s = json_array_get(json_list(p, "served"), 0);
        assert_string_equal(json_str(s, "vm", ""), "web");
        assert_int_equal(json_u64(s, "faults", 0), 7);
        assert_int_equal(json_u64(json_object_get(s, "wait"), "count", 0), 3);
        assert_int_equal(json_u64(p, "present_bytes", 0), 4096);
        one = document("db", NULL);
        assert_int_equal(json_array_size(json_list(json_object_get(one, "pager"), "served")), 1);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_who, setup, teardown),
                cmocka_unit_test_setup_teardown(test_size, setup, teardown),
                cmocka_unit_test_setup_teardown(test_pager, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
