/* SPDX-License-Identifier: GPL-2.0-only */
/* Files of sysfs, procfs and debugfs; modules; what the kernel is */
#ifndef LAB_FILES_H
#define LAB_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/types.h>

#include "lab.h"

#define DEBUGFS		"/sys/kernel/debug/"

/* Write to PATH in one go; it is truncated first. 0 or -errno. */
int __attribute__((format(printf, 2, 3))) put(const char *path, const char *format, ...);

#define must_put(path, ...)						\
do {									\
	int must_ret = put(path, __VA_ARGS__);				\
									\
	if (must_ret)							\
		fail("writing %s to %s: %s", #__VA_ARGS__, path,	\
		     strerror(-must_ret));				\
} while (0)

/* What PATH holds, as far as TEXT has room for it. 0 or -errno. */
int get_text(const char *path, char *text, size_t size);
/* The number in PATH, or -errno */
long long get_number(const char *path);

/* The number behind NAME in a file of /proc; fails */
long number_in(const char *path, const char *name);

/* Pins of user space's pages that are there now, in the whole host */
long pins(void);
/* What this process has locked, kB */
long locked_kb(void);

void close_fd(int *fd);

/* The kernel's function in which a thread of this process sleeps. 0 or -errno. */
int get_wchan(pid_t tid, char *where, size_t size);
/* Whether that has FUNCTION in its name */
bool sleeps_in(pid_t tid, const char *function);

/* Runs this on Debian's own modules? */
bool is_stock(void);
bool kernel_before(int major, int minor);
bool kernel_has(const char *function);

/* From a file of the lab, or from where lab/inside/init has taken the kernel's own */
void load(const char *path, const char *options);
void load_kernels(const char *name, const char *options);
/* 0 or -errno */
int try_unload(const char *name);
void unload(const char *name);
/* How many references it has; -ENOENT if it is not loaded, or built in */
long module_references(const char *name);

/* ---- vfio_testdev.ko ----------------------------------------------------- */

#define TESTDEV		"/sys/devices/vfio_testdev/"

/* With OPTIONS. Its devices' interrupts are remapped by nothing. */
void load_testdev(const char *options);

/* The driver of one of its devices: 0 or -errno */
int bind_testdev(int id);
int unbind_testdev(int id);

#endif
