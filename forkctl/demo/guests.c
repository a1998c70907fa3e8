/* SPDX-License-Identifier: MIT */
#include "forkctl/demo/guests.h"

#include <errno.h>
#include <string.h>

#include "forkctl/chain/guest.h"

static const char start[] = "head -c 33554432 /dev/urandom > /run/data && mkfifo /run/ask /run/answer && cat > /run/keeper && "
                            "{ setsid sh /run/keeper < /dev/null > /dev/null 2>&1 & }";
/* A process whose state lives only in its memory. */
static const char keeper[] = "secret=$(head -c 32 /dev/urandom | sha256sum | cut -c1-64)\n"
                             "n=0\n"
                             "while read -r word < /run/ask; do n=$((n + 1)); echo \"$secret $n $word\" > /run/answer; done\n";

static int odd_answer(struct ctl *c, const char *name) {
        return err_set(&c->e, ERR_AGENT, -EBADMSG, "%s: the guest's answer makes no sense", name);
}

int keeper_start(struct ctl *c, const char *name, struct keeper *ret) {
        int r = guest_sh(c, name, start, keeper, sizeof(keeper) - 1, NULL);

        return r < 0 ? r : keeper_ask(c, name, ret);
}

int keeper_ask(struct ctl *c, const char *name, struct keeper *ret) {
        cleanup_free char *out = NULL;
        struct keeper k;
        int r = guest_sh(c, name, "sha256sum < /run/data && echo hello > /run/ask && cat /run/answer", NULL, 0, &out);

        if (r < 0)
                return r;
        if (sscanf(out, "%79s - %79s %ld hello", k.digest, k.secret, &k.asked) != 3)
                return odd_answer(c, name);
        *ret = k;
        return 0;
}

bool keeper_same(const struct keeper *now, const struct keeper *then) {
        return strcmp(now->digest, then->digest) == 0 && strcmp(now->secret, then->secret) == 0 && now->asked == then->asked + 1;
}

int guest_part(struct ctl *c, const char *name, struct likeness *ret) {
        cleanup_free char *out = NULL;
        char script[400];
        struct likeness l;
        int r;

        (void) snprintf(script, sizeof(script),
                        "echo %s > /run/mark && dd if=/dev/urandom of=/run/data bs=4096 count=16 conv=notrunc status=none && "
                        "head -c 65536 /run/data | sha256sum | cut -d' ' -f1 && hostname && cat /etc/machine-id && head -c 16 "
                        "/dev/urandom | sha256sum | cut -d' ' -f1",
                        name);
        r = guest_sh(c, name, script, NULL, 0, &out);
        if (r < 0)
                return r;
        if (sscanf(out, "%79s %79s %79s %79s", l.digest, l.hostname, l.machine_id, l.random) != 4)
                return odd_answer(c, name);
        *ret = l;
        return 0;
}

int guest_mark_is_own(struct ctl *c, const char *name, bool *ret) {
        cleanup_free char *out = NULL;
        int r = guest_sh(c, name, "cat /run/mark", NULL, 0, &out);

        if (r < 0)
                return r;
        out[strcspn(out, "\n")] = '\0';
        *ret = strcmp(out, name) == 0;
        return 0;
}
