/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A thread held at a function of the kernel, by hold.ko: it keeps its CPU, so the test
 * goes on on another one.
 */
#ifndef LAB_HOLD_H
#define LAB_HOLD_H

#include "files.h"

#define HOLD	"/sys/module/hold/parameters/"

/* FUNCTION as kprobes name it, of kvm.ko if it begins so; OPTIONS are more of hold.ko's */
void hold_at(const char *function, const char *options);
bool somebody_is_held(void);
/* Fails if nobody is held any more: the test was too slow. */
void let_go(void);
/* After a test that has left it there; does nothing if there is none */
void release_held(void);
void forget_hold(void);

#endif
