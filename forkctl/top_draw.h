/* SPDX-License-Identifier: MIT */
/* What the table (top_draw.c) and the lines around it (top_lines.c) of `forkctl top` share. */
#pragma once

#include "forkctl/top.h"

/** How a VM stands out. */
unsigned top_look_of(const struct top_vm *vm);

/** The lines above the table, from row 0 on: up to @lines of them. Returns how many there are. */
unsigned top_draw_above(const struct top *t, struct canvas *cv, unsigned lines);
/** More of a VM; @vm NULL: of the one that does worst, if one does badly. */
void top_line_vm(const struct top *t, const struct top_vm *vm, struct canvas *cv, unsigned row);
void top_line_keys(const struct top *t, struct canvas *cv, unsigned row);
void top_draw_help(struct canvas *cv);
