/* SPDX-License-Identifier: MIT */
/* The files of setup/guest/, compiled in, so that setup needs no data directory at run time. */
#pragma once

#include <stddef.h>

struct guest_file {
        const char *path; /* inside the guest, without the leading slash */
        unsigned mode;    /* permission bits */
        const unsigned char *data, *end;
};

extern const struct guest_file guest_files[];
extern const size_t n_guest_files;
