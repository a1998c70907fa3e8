/* SPDX-License-Identifier: MIT */
/* What the tests of forkd/vmm share: a loop with a coroutine that runs the test, a private directory, and a check
 * at the end that nothing is left: descriptors, children, coroutines. */
#pragma once

#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "forkd/vmm/qemu.h"

#define TEST_TIMEOUT_S 60

struct vmm_test {
        struct event_base *base;
        char dir[64];
        char log[96];
        int n_fds;    /* open at the start */
        struct err e; /* for whoever needs one */

        /* what the VMM's callbacks were told */
        int exits, exit_status;
        char guest_events[128]; /* joined by blanks */
        struct co_wait *exit_wait;
        void (*on_exit)(struct vmm_test *t);
        struct vmm *vmm;
};

int vmm_test_setup(void **state);
int vmm_test_teardown(void **state);

/** The host lacks something: prints why, and fails if FORKD_TEST_NO_SKIP is set. The exit code of a program that
 *  skips all its tests. */
int vmm_test_skip_all(const char *why);
/** The same for one test; does not return. Not inside a body: it jumps. */
void vmm_test_skip(const char *why);

/** Runs @body in a coroutine until it ends. Assertions may fail inside: cmocka's jump is made outside. */
void vmm_test_run(struct vmm_test *t, void (*body)(struct vmm_test *t));

/** Inside a body: as assert_*, but they end the coroutine instead of jumping off its stack. */
#define check(cond) vmm_test_check((cond), #cond, __FILE__, __LINE__)
#define check_ok(call) vmm_test_check_ok((call), &t->e, #call, __FILE__, __LINE__)
#define check_str(text, part) vmm_test_check_str((text), (part), __FILE__, __LINE__)
void vmm_test_check(bool ok, const char *what, const char *file, int line);
void vmm_test_check_ok(int r, const struct err *e, const char *what, const char *file, int line);
void vmm_test_check_str(const char *text, const char *part, const char *file, int line);

/** Callbacks that write down what they are told. */
extern const struct vmm_events vmm_test_events;
/** Waits until on_exit was called. */
int vmm_test_wait_exit(struct vmm_test *t, int timeout_ms);

/** Whole content of a file of the test's directory ("" if it is not there); to be freed. */
char *vmm_test_read(const char *path);
/** Waits (inotify) until the file @path contains @text. */
int vmm_test_wait_text(const char *path, const char *text, int timeout_ms);

/** Kernel and initramfs of a guest whose console says "forkd-agent: ready", and NULL with the reason printed if
 *  there are none: FORKD_TEST_KERNEL and FORKD_TEST_INITRD, else what `forkctl setup` made. */
const char *vmm_test_kernel(void);
const char *vmm_test_initrd(void);
/** libuffd-attach.so: FORKD_TEST_ATTACH, else of this build; NULL if not there. */
const char *vmm_test_attach_lib(void);
