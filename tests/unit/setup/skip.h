/* SPDX-License-Identifier: MIT */
/* Include after cmocka.h. */
#pragma once

#include <stdlib.h>

/** Skips the test because the host lacks something; a failure if FORKD_TEST_NO_SKIP is set. */
static inline void skip_because(const char *reason) {
        if (getenv("FORKD_TEST_NO_SKIP"))
                fail_msg("would skip: %s", reason);
        print_message("SKIPPED: %s\n", reason);
        skip();
}
