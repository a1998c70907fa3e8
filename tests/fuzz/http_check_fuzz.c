/* SPDX-License-Identifier: MIT */
/* A request's line and header fields, and an address of the configuration: what is answered has a path that is printable, no body, and
 * a name that is this host's. The input is fields that end with NULs: method, target, Host, Content-Length, Transfer-Encoding,
 * Sec-Fetch-Site, Sec-Fetch-Mode; an empty one is not there. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "forkd/monitor/http_address.h"
#include "forkd/monitor/http_check.h"

#define FIELDS 7

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* abort, not assert: a build with NDEBUG must find things too */
static void must(int ok) {
        if (!ok)
                abort();
}

static const char *or_null(const char *s) {
        return s[0] ? s : NULL;
}

/* Said with other words: what may stand before the port. */
static void check_name(const char *host) {
        unsigned a, b, c, d;
        char rest[8] = "";

        must(!strpbrk(host, " /@\\,#?%"));
        if (strncasecmp(host, "localhost", 9) == 0)
                must(host[9] == '\0' || host[9] == ':');
        else if (host[0] == '[')
                must(strncmp(host, "[::1]", 5) == 0 && (host[5] == '\0' || host[5] == ':'));
        else
                must(sscanf(host, "%3u.%3u.%3u.%3u%1s", &a, &b, &c, &d, rest) >= 4 && a == 127 &&
                     (rest[0] == '\0' || rest[0] == ':'));
}

static void check_address(const char *text) {
        struct http_address a;
        const char *why = NULL;

        if (http_address_parse(text, &a, &why) < 0) {
                must(why != NULL);
                return;
        }
        if (a.kind == HTTP_UNIX)
                must(a.path[0] == '/' && strlen(a.path) < sizeof(a.path));
        if (a.kind == HTTP_TCP && a.sa.sa_family == AF_INET)
                must(ntohl(((struct sockaddr_in *) &a.room)->sin_addr.s_addr) >> 24 == 127);
        if (a.kind == HTTP_TCP && a.sa.sa_family == AF_INET6)
                must(IN6_IS_ADDR_LOOPBACK(&((struct sockaddr_in6 *) &a.room)->sin6_addr));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        char *text = malloc(size + FIELDS), *field[FIELDS], *p = text;
        struct http_headers h;
        const char *why = NULL;
        int status;

        must(text != NULL);
        if (size > 0)
                memcpy(text, data, size);
        memset(text + size, 0, FIELDS);
        for (int i = 0; i < FIELDS; i++) {
                field[i] = p;
                p += p < text + size + i ? strlen(p) + 1 : 0;
        }
        h = (struct http_headers){ .method = field[0],
                                   .target = field[1],
                                   .host = or_null(field[2]),
                                   .n_host = field[2][0] != '\0',
                                   .content_length = or_null(field[3]),
                                   .transfer_encoding = or_null(field[4]),
                                   .site = or_null(field[5]),
                                   .mode = or_null(field[6]) };
        status = http_check(&h, true, &why);
        must(status == 0 || (status >= 400 && status < 500 && why));
        if (status == 0) {
                must(strcmp(h.method, "GET") == 0 || strcmp(h.method, "HEAD") == 0);
                must(h.target[0] == '/' && strlen(h.target) <= HTTP_MAX_TARGET && !strpbrk(h.target, " \r\n\t"));
                must(!h.transfer_encoding && (!h.content_length || strcmp(h.content_length, "0") == 0));
                if (h.host)
                        check_name(h.host);
        }
        check_address(field[1]);
        check_address(field[2]);
        free(text);
        return 0;
}
