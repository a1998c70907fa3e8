/* SPDX-License-Identifier: MIT */
/* Numbers as small pictures made of characters, and times and rates as people read them. All of it is text: with block elements
 * where @utf8, else in ASCII. What is not known is a NaN, and drawn as a blank. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DRAW_MAX 300u  /* columns of a picture */
#define DRAW_IDLE 0.01 /* CPUs that something needs which has nothing to do: drawn as none */

/** A line of columns of height @v[i] / @max each, the last @width of @n, in @buf (4 × width + 1 bytes are enough). At less than
 *  @width values it begins with blanks: the newest is at the right. @max 0 or less: all are lowest. Returns @buf. */
char *draw_spark(char *buf, size_t size, const float *v, size_t n, unsigned width, double max, bool utf8);
/** A bar that fills @share (0 … 1) of @width columns, in steps of an eighth of one, and blanks up to there. Something that is not
 *  0 is at least the smallest step. Returns @buf. */
char *draw_bar(char *buf, size_t size, double share, unsigned width, bool utf8);
/** One character for a share: an eighth (also for less than a hundredth) … eight eighths; a digit 0 … 9 in ASCII. */
const char *draw_share(double share, bool utf8);

/** "0", "16 µs", "1.2 ms", "3.4 s", "2m10s", "3h04m", "5d06h"; "-" for what is negative or no number. @utf8: µ, else u. Returns @buf. */
char *draw_seconds(char *buf, size_t size, double s, bool utf8);
/** "0", "0.4", "12", "3.4k", "12M"; "-". Returns @buf. */
char *draw_count(char *buf, size_t size, double n);
/** "0%", "0.4%", "99%", "412%"; "-". Returns @buf. */
char *draw_percent(char *buf, size_t size, double share);
