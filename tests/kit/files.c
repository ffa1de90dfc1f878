// SPDX-License-Identifier: GPL-2.0-only
/* Files of sysfs, procfs and debugfs; modules; what the kernel is */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "files.h"

#define DRIVER		"/sys/bus/platform/drivers/vfio_testdev/"

int put(const char *path, const char *format, ...)
{
	int length, fd, ret;
	char text[100];
	va_list args;

	va_start(args, format);
	length = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (length >= (int)sizeof(text))
		fail("too long for %s: %s", path, text);
	fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = write(fd, text, length) < 0 ? -errno : 0;
	close(fd);
	return ret;
}

int get_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), ret;

	text[0] = '\0';
	if (fd < 0)
		return -errno;
	ret = read(fd, text, size - 1);
	if (ret < 0)
		ret = -errno;
	close(fd);
	if (ret < 0)
		return ret;
	text[ret] = '\0';
	return 0;
}

long long get_number(const char *path)
{
	char text[40];
	int ret = get_text(path, text, sizeof(text));

	return ret ? ret : atoll(text);
}

long number_in(const char *path, const char *name)
{
	static char text[65536];
	char *line;
	int ret = get_text(path, text, sizeof(text));

	if (ret)
		fail("%s: %s", path, strerror(-ret));
	line = strstr(text, name);
	if (!line)
		fail("%s has no %s", path, name);
	return atol(line + strlen(name));
}

long pins(void)
{
	/* Each CPU counts for itself until then. */
	must_put("/proc/sys/vm/stat_refresh", "1");
	return number_in("/proc/vmstat", "nr_foll_pin_acquired ") -
	       number_in("/proc/vmstat", "nr_foll_pin_released ");
}

long locked_kb(void)
{
	return number_in("/proc/self/status", "VmLck:");
}

void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* ---- the kernel ---------------------------------------------------------- */

int get_wchan(pid_t tid, char *where, size_t size)
{
	char path[60];

	snprintf(path, sizeof(path), "/proc/self/task/%d/wchan", tid);
	return get_text(path, where, size);
}

bool sleeps_in(pid_t tid, const char *function)
{
	char where[100];

	return tid && !get_wchan(tid, where, sizeof(where)) && strstr(where, function);
}

bool is_stock(void)
{
	const char *modules = getenv("LAB_MODULES");

	return modules && !strcmp(modules, "stock");
}

bool kernel_before(int major, int minor)
{
	struct utsname name;
	int x, y;

	uname(&name);
	if (sscanf(name.release, "%d.%d", &x, &y) != 2)
		fail("a kernel named %s", name.release);
	return x < major || (x == major && y < minor);
}

/*
 * On Bochs it takes seconds until the kernel has written them all: it does so once.
 * What is loaded later is not among them.
 */
bool kernel_has(const char *function)
{
	static char *symbols;
	size_t size = 0, length = strlen(function);
	const char *at;
	FILE *file;

	if (!symbols) {
		file = fopen("/proc/kallsyms", "re");
		if (!file || getdelim(&symbols, &size, '\0', file) <= 0)
			fail("the kernel does not tell its symbols");
		fclose(file);
	}
	for (at = symbols; (at = strstr(at + 1, function));)
		if (at[-1] == ' ' && (at[length] == '\n' || at[length] == '\t'))
			return true;
	return false;
}

/* ---- modules ------------------------------------------------------------- */

void load(const char *path, const char *options)
{
	int fd = must(open(path, O_RDONLY | O_CLOEXEC));

	if (syscall(SYS_finit_module, fd, options, 0))
		fail("%s does not load: %s", path, strerror(errno));
	close(fd);
}

void load_kernels(const char *name, const char *options)
{
	struct utsname kernel;
	char path[200];

	uname(&kernel);
	snprintf(path, sizeof(path), "/lib/modules/%s/%s.ko", kernel.release, name);
	load(path, options);
}

int try_unload(const char *name)
{
	return syscall(SYS_delete_module, name, O_NONBLOCK) ? -errno : 0;
}

void unload(const char *name)
{
	int ret = try_unload(name);

	if (ret)
		fail("the module %s does not unload: %s", name, strerror(-ret));
}

long module_references(const char *name)
{
	char path[100];

	snprintf(path, sizeof(path), "/sys/module/%s/refcnt", name);
	return get_number(path);
}

/* ---- vfio_testdev.ko ----------------------------------------------------- */

void load_testdev(const char *options)
{
	load("vfio_testdev.ko", options);
	must_put("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "1");
}

int bind_testdev(int id)
{
	return put(DRIVER "bind", "vfio_testdev.%d", id);
}

int unbind_testdev(int id)
{
	return put(DRIVER "unbind", "vfio_testdev.%d", id);
}
