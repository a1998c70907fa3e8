/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/http_check.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

#define MAX_PORT_DIGITS 5u

static bool is(const char *s, const char *word) {
        return s && strcasecmp(s, word) == 0;
}

/* "" or ":" and digits. */
static bool is_port(const char *s) {
        size_t n;

        if (s[0] == '\0')
                return true;
        n = strspn(s + 1, "0123456789");
        return s[0] == ':' && n <= MAX_PORT_DIGITS && s[1 + n] == '\0';
}

bool http_host_is_local(const char *host) {
        static const char v6[] = "[::1]";
        size_t n = strcspn(host, ":");
        char buf[INET_ADDRSTRLEN];
        struct in_addr v4;

        if (strncmp(host, v6, sizeof(v6) - 1) == 0)
                return is_port(host + sizeof(v6) - 1);
        if (n == 0 || n >= sizeof(buf) || !is_port(host + n))
                return false;
        memcpy(buf, host, n);
        buf[n] = '\0';
        return is(buf, "localhost") || (inet_pton(AF_INET, buf, &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127);
}

static bool is_printable(const char *s) {
        for (; *s; s++)
                if ((unsigned char) *s <= ' ' || (unsigned char) *s >= 0x7f)
                        return false;
        return true;
}

int http_check(const struct http_headers *h, bool by_name, const char **ret_why) {
        *ret_why = "there is nothing here but to be read: GET or HEAD";
        if (strcmp(h->method, "GET") != 0 && strcmp(h->method, "HEAD") != 0)
                return 405;
        *ret_why = "a request has no body here";
        if ((h->content_length && strcmp(h->content_length, "0") != 0) || h->transfer_encoding)
                return 413;
        *ret_why = "the address is too long";
        if (strlen(h->target) > HTTP_MAX_TARGET)
                return 414;
        *ret_why = "a request names a path";
        if (h->target[0] != '/' || !is_printable(h->target))
                return 400;
        *ret_why = "a request names its host, once";
        if (h->n_host > 1)
                return 400;
        if (!by_name)
                return 0;
        *ret_why = "forkd answers under a loopback address or as localhost only";
        if (h->host && !http_host_is_local(h->host))
                return 403;
        /* A page elsewhere may link to us; it may not load us. Who is no browser does not say. */
        *ret_why = "another site's page has asked for this";
        if ((is(h->site, "cross-site") || is(h->site, "same-site")) && !is(h->mode, "navigate"))
                return 403;
        return 0;
}
