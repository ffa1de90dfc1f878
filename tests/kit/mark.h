/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Marks for the TCG plugin lab/machines/plugin/wbinvd.c, which counts the WBINVDs that an emulated
 * host executes: each one ends a phase, and begins another.
 */
#ifndef LAB_MARK_H
#define LAB_MARK_H

/* What tests/kit/wbinvd_compare knows: no phase, nor may there be any WBINVD; the test's end */
enum { MARK_NO_PHASE, MARK_BETWEEN, MARK_END, MARK_FIRST_PHASE = 10 };

/* For marks up to COUNT - 1, at most 65536. Fails. */
void make_marks(int count);
void mark(int number);

#endif
