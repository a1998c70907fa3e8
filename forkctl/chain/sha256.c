/* SPDX-License-Identifier: MIT */
#include "forkctl/chain/sha256.h"

#include <endian.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/ids.h"

/* FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t k256[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
        0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
        0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
        0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
        0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
        0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t ror(uint32_t x, unsigned n) {
        return x >> n | x << (32 - n);
}

static void one_block(uint32_t h[8], const uint8_t *p) {
        uint32_t w[64], s[8];

        for (unsigned i = 0; i < 16; i++) {
                memcpy(&w[i], p + 4 * (size_t) i, 4);
                w[i] = be32toh(w[i]);
        }
        for (unsigned i = 16; i < 64; i++) {
                uint32_t a = w[i - 15], b = w[i - 2];

                w[i] = w[i - 16] + w[i - 7] + (ror(a, 7) ^ ror(a, 18) ^ a >> 3) + (ror(b, 17) ^ ror(b, 19) ^ b >> 10);
        }
        memcpy(s, h, sizeof(s));
        for (unsigned i = 0; i < 64; i++) {
                uint32_t t1 =
                        s[7] + (ror(s[4], 6) ^ ror(s[4], 11) ^ ror(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k256[i] + w[i];
                uint32_t t2 = (ror(s[0], 2) ^ ror(s[0], 13) ^ ror(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

                memmove(s + 1, s, 7 * sizeof(s[0]));
                s[4] += t1;
                s[0] = t1 + t2;
        }
        for (unsigned i = 0; i < 8; i++)
                h[i] += s[i];
}

void sha256_init(struct sha256 *s) {
        /* 5.3.3: of the square roots of the first eight primes */
        *s = (struct sha256){ .h = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
                                     0x5be0cd19 } };
}

void sha256_add(struct sha256 *s, const void *data, size_t len) {
        const uint8_t *p = data;
        size_t have = s->len % 64;

        s->len += len;
        if (have) {
                size_t n = MIN_OF(len, 64 - have);

                memcpy(s->block + have, p, n);
                p += n;
                len -= n;
                if (have + n < 64)
                        return;
                one_block(s->h, s->block);
        }
        for (; len >= 64; p += 64, len -= 64)
                one_block(s->h, p);
        memcpy(s->block, p, len);
}

void sha256_end(struct sha256 *s, char ret_hex[SHA256_HEX]) {
        uint64_t bits = htobe64(s->len * 8);
        uint8_t pad[72] = { 0x80 }, out[32];
        size_t have = s->len % 64, n = (have < 56 ? 56 : 120) - have;

        memcpy(pad + n, &bits, sizeof(bits));
        sha256_add(s, pad, n + sizeof(bits));
        for (unsigned i = 0; i < 8; i++) {
                uint32_t be = htobe32(s->h[i]);

                memcpy(out + 4 * (size_t) i, &be, 4);
        }
        hex_encode(out, sizeof(out), ret_hex);
}
