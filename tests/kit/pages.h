/* SPDX-License-Identifier: GPL-2.0-only */
/* Memory of this process: pages that are one and the same, and pages that are held back */
#ifndef LAB_PAGES_H
#define LAB_PAGES_H

#include <stddef.h>

/* mmap() from the beginning of @fd; fails. */
char *must_map(void *at, size_t size, int prot, int flags, int fd);
/* @n pages that are one and the same, so that none continues the one before it */
char *same_page(int n);

/* A userfaultfd, O_CLOEXEC and FLAGS; or -1 and errno */
int open_userfaultfd(int flags);
/* Who touches PAGE, which is not there yet, waits until it comes. 0; or -1 and errno */
int hold_back(int userfaultfd, void *page);

#endif
