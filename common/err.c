/* SPDX-License-Identifier: MIT */
#include "common/err.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

const char *err_code_of(int r) {
        switch (-r) {
        case ENOSPC:
        case EDQUOT:
        case ENOMEM:
                return ERR_NO_SPACE;
        case ENOENT:
        case ESRCH:
                return ERR_NOT_FOUND;
        case EEXIST:
                return ERR_EXISTS;
        case EINVAL:
        case ERANGE:
        case ENAMETOOLONG:
                return ERR_INVALID;
        case EBUSY:
                return ERR_BUSY;
        case ETIMEDOUT:
                return ERR_TIMEOUT;
        case EBADMSG:
                return ERR_CORRUPT;
        case EOPNOTSUPP:
        case ENOSYS:
                return ERR_UNSUPPORTED;
        case ECANCELED:
                return ERR_CANCELED;
        case EMFILE:
        case ENFILE:
                return ERR_LIMIT;
        default:
                return ERR_IO;
        }
}

static void err_start(struct err *e, const char *code, int r) {
        e->r = r == 0 ? -EIO : r;
        (void) snprintf(e->code, sizeof(e->code), "%s", code);
        e->hint[0] = '\0';
}

int err_set(struct err *e, const char *code, int r, const char *fmt, ...) {
        va_list ap;

        if (!e)
                return r == 0 ? -EIO : r;
        err_start(e, code, r);
        va_start(ap, fmt);
        (void) vsnprintf(e->message, sizeof(e->message), fmt, ap);
        va_end(ap);
        return e->r;
}

int err_errno(struct err *e, int r, const char *fmt, ...) {
        va_list ap;
        size_t n;

        if (!e)
                return r == 0 ? -EIO : r;
        err_start(e, err_code_of(r), r);
        va_start(ap, fmt);
        (void) vsnprintf(e->message, sizeof(e->message), fmt, ap);
        va_end(ap);
        n = strlen(e->message);
        (void) snprintf(e->message + n, sizeof(e->message) - n, ": %s", strerror(-e->r));
        return e->r;
}

int err_prefix(struct err *e, const char *fmt, ...) {
        char old[sizeof(e->message)];
        va_list ap;
        size_t n;

        if (!e)
                return -EIO;
        memcpy(old, e->message, sizeof(old));
        va_start(ap, fmt);
        (void) vsnprintf(e->message, sizeof(e->message), fmt, ap);
        va_end(ap);
        n = strlen(e->message);
        (void) snprintf(e->message + n, sizeof(e->message) - n, ": %s", old);
        return e->r;
}

int err_hint(struct err *e, const char *fmt, ...) {
        va_list ap;

        if (!e)
                return -EIO;
        va_start(ap, fmt);
        (void) vsnprintf(e->hint, sizeof(e->hint), fmt, ap);
        va_end(ap);
        return e->r;
}
