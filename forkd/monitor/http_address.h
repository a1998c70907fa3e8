/* SPDX-License-Identifier: MIT */
/* Where forkd's HTTP server may listen: loopback addresses and unix sockets. Nobody has to say who he is there, so it must not
 * be reached from other hosts. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

#include "common/err.h"

#define HTTP_DEFAULT_ADDRESS "127.0.0.1:9464"
#define HTTP_ADDRESS_LEN 128 /* "unix:" and a unix socket's longest path, with its end */

struct http_address {
        enum { HTTP_OFF, HTTP_TCP, HTTP_UNIX } kind;
        socklen_t len;
        union {
                struct sockaddr sa; /* of HTTP_TCP */
                struct sockaddr_storage room;
        };
        char path[sizeof(((struct sockaddr_un *) 0)->sun_path)]; /* of HTTP_UNIX */
};

/** "off", "unix:/PATH", "127.0.0.1:9464", "[::1]:0", "localhost:9464". -EINVAL with a sentence in *ret_why (static). */
int http_address_parse(const char *text, struct http_address *ret, const char **ret_why) attr_warn_unused;

/** Listens at @a, which is not HTTP_OFF; @told becomes the address with the port that it really has. A unix socket is for root and
 *  the group @gid (-1: nobody else). -EADDRINUSE: somebody else does. */
int http_address_listen(const struct http_address *a, gid_t gid, int *ret_fd, char *told, size_t size) attr_warn_unused;
