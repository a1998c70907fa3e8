/* SPDX-License-Identifier: MIT */
/* `forkctl chain`: the frame around a run and around a comparison. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/json.h"
#include "forkctl/chain/chain.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "forkctl/watch.h"

static int check_limits(struct ctl *c, const struct failover *f, json_t *doc, bool *ret_ok) {
        json_t *list = failover_check(f, doc, ret_ok);

        if (!list || (f->n && json_object_set(doc, "fail_over", list) < 0)) {
                json_decref(list);
                return err_errno(&c->e, -ENOMEM, "checking the limits");
        }
        json_decref(list);
        return 0;
}

static int write_html(struct ctl *c, const json_t *doc, const char *path) {
        cleanup_free char *text = NULL;
        cleanup_fclose FILE *f = NULL;
        size_t len;
        int r;

        f = open_memstream(&text, &len);
        r = f ? chain_html(doc, f) : -ENOMEM;
        if (r == 0 && fflush(f) != 0)
                r = -EIO;
        if (r == 0)
                r = io_write_file_atomic(AT_FDCWD, path, text, len, 0644, false);
        return r < 0 ? err_errno(&c->e, r, "writing %.200s", path) : 0;
}

static int report(struct ctl *c, const struct chain_plan *plan, json_t *doc) {
        int r = plan->html ? write_html(c, doc, plan->html) : 0;

        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, doc);
        r = chain_table(doc, stdout);
        if (r == 0 && plan->html)
                printf("page: %s\n", plan->html);
        return r < 0 ? err_errno(&c->e, r, "writing the output") : 0;
}

static int run(struct ctl *c, const struct args *a) {
        cleanup_free struct chain_result *res = calloc(1, sizeof(*res));
        cleanup_json json_t *doc = NULL;
        struct chain_plan plan;
        bool within = true, gone;
        int r, sig;

        r = chain_plan_read(c, a, &plan);
        if (r < 0)
                return r;
        if (!res || chain_result_init(res, &plan) < 0)
                return err_errno(&c->e, -ENOMEM, "chain");
        r = chain_run(c, &plan, res);
        if (r == 0) {
                doc = chain_document(res);
                r = doc ? check_limits(c, &plan.limits, doc, &within) : err_errno(&c->e, -ENOMEM, "telling the result");
        }
        if (r == 0)
                r = report(c, &plan, doc);
        sig = res->signal;
        gone = res->forkd_gone;
        within &= res->n_failures == 0;
        chain_result_clear(res);
        watch_obey(sig);
        return r < 0 ? r : gone ? CTL_EXIT_UNREACHABLE : within ? CTL_EXIT_OK : CTL_EXIT_FAILED;
}

/* ---- --compare ---- */

static int compare(struct ctl *c, const struct args *a) {
        cleanup_json json_t *first = NULL, *second = NULL, *cmp = NULL;
        struct chain_plan plan = { 0 };
        struct err e = { 0 };
        bool within = true;
        int r;

        for (size_t i = 0; i < a->n_given; i++)
                if (strcmp(a->given[i].def->name, "compare") != 0 && strcmp(a->given[i].def->name, "fail-over") != 0)
                        return usage_error(c, a->cmd, "--compare reads two files, and --%s is of a run", a->given[i].def->name);
        if (a->n_pos != 1)
                return usage_error(c, a->cmd, "--compare needs two files: --compare A.json B.json");
        if (arg_str(a, "fail-over") && failover_parse(arg_str(a, "fail-over"), &plan.limits, &e) < 0) {
                (void) usage_error(c, a->cmd, "--fail-over: %s", e.message);
                return err_hint(&c->e, "%s", e.hint);
        }
        r = chain_document_read(c, arg_str(a, "compare"), &first);
        if (r == 0)
                r = chain_document_read(c, a->pos[0], &second);
        if (r < 0)
                return r;
        cmp = chain_compare(first, second);
        if (!cmp)
                return err_errno(&c->e, -ENOMEM, "comparing");
        /* limits are of the second: the one that is judged */
        r = check_limits(c, &plan.limits, second, &within);
        if (r == 0 && plan.limits.n && json_object_set(cmp, "fail_over", json_list(second, "fail_over")) < 0)
                r = err_errno(&c->e, -ENOMEM, "comparing");
        if (r == 0 && c->json)
                r = ctl_print(c, cmp);
        else if (r == 0 && (r = chain_compare_table(cmp, stdout)) < 0)
                r = err_errno(&c->e, r, "writing the output");
        return r < 0 ? r : within ? CTL_EXIT_OK : CTL_EXIT_FAILED;
}

int cmd_chain(struct ctl *c, const struct args *a) {
        if (arg_given(a, "compare"))
                return compare(c, a);
        if (a->n_pos > 0)
                return usage_error(c, a->cmd, "unexpected argument '%.80s'", a->pos[0]);
        return run(c, a);
}
