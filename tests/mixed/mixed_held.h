/* SPDX-License-Identifier: GPL-2.0-only */
/* What is called in the cases of mixed_held.c, and in those of mixed_signals.c */
#ifndef LAB_MIXED_HELD_H
#define LAB_MIXED_HELD_H

#include "mixed.h"

/* What the calls are about, and the file of a device that one of them opens */
extern int their_device, their_file, their_fd;

int call_add(void);
int call_del(void);
int call_set_iommu(void);		/* of container 0 */
int call_set_another_iommu(void);	/* of container 1 */
int call_leave(void);
int call_open_device(void);
int read_vm_state(void);
int read_file_state(void);
int read_fdinfo(void);

/* Two that wait: all pairs, between them, in each of the places where one that reads does */
extern const struct pair {
	int (*first)(void), (*second)(void);
	const char *waits_in;		/* the first one */
} pairs[3];
void start_pair(const struct pair *pair);

#endif
