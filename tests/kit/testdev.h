/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the lab's programs share that drive vfio_testdev.ko: its devices and their
 * IOMMU groups, files to write to, vCPUs.
 *
 * A program says before it includes this how it fails: fail(FORMAT, ...) ends what
 * is running and does not return.
 */
#ifndef LAB_TESTDEV_H
#define LAB_TESTDEV_H

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define MIB		(1u << 20)

#define TESTDEV		"/sys/devices/vfio_testdev/"
#define DRIVER		"/sys/bus/platform/drivers/vfio_testdev/"

#define must(call)							\
({									\
	long must_ret = (call);						\
									\
	if (must_ret < 0)						\
		fail("%s: %s", #call, strerror(errno));			\
	must_ret;							\
})

/* ---- files --------------------------------------------------------------- */

/* Write to PATH in one go; it is truncated first. 0 or -errno. */
static inline int __attribute__((format(printf, 2, 3)))
put(const char *path, const char *format, ...)
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

#define must_put(path, ...)						\
do {									\
	int must_ret = put(path, __VA_ARGS__);				\
									\
	if (must_ret)							\
		fail("writing %s to %s: %s", #__VA_ARGS__, path,	\
		     strerror(-must_ret));				\
} while (0)

/* What PATH holds, as far as TEXT has room for it. 0 or -errno. */
static inline int get_text(const char *path, char *text, size_t size)
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

/* The number in PATH, or -errno */
static inline long get_number(const char *path)
{
	char text[40];
	int ret = get_text(path, text, sizeof(text));

	return ret ? ret : atol(text);
}

/* The kernel's function in which a thread of this process sleeps. 0 or -errno. */
static inline int get_wchan(pid_t tid, char *where, size_t size)
{
	char path[60];

	snprintf(path, sizeof(path), "/proc/self/task/%d/wchan", tid);
	return get_text(path, where, size);
}

static inline void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* ---- modules and the kernel ---------------------------------------------- */

static inline bool kernel_before(int major, int minor)
{
	struct utsname name;
	int x, y;

	uname(&name);
	if (sscanf(name.release, "%d.%d", &x, &y) != 2)
		fail("a kernel named %s", name.release);
	return x < major || (x == major && y < minor);
}

static inline void load(const char *path, const char *options)
{
	int fd = must(open(path, O_RDONLY | O_CLOEXEC));

	if (syscall(SYS_finit_module, fd, options, 0))
		fail("%s does not load: %s", path, strerror(errno));
	close(fd);
}

/* With OPTIONS. Its devices' interrupts are remapped by nothing. */
static inline void load_testdev(const char *options)
{
	load("vfio_testdev.ko", options);
	must_put("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "1");
}

/* ---- IOMMU groups -------------------------------------------------------- */

/* The number of the group of the device with this folder in sysfs. */
static inline int group_number_of(const char *device)
{
	char path[128], link[128];
	int got;

	snprintf(path, sizeof(path), "%s/iommu_group", device);
	got = must(readlink(path, link, sizeof(link) - 1));
	link[got] = '\0';
	return atoi(strrchr(link, '/') + 1);
}

static inline int testdev_group_number(int id)
{
	char device[96];

	snprintf(device, sizeof(device), TESTDEV "vfio_testdev.%d", id);
	return group_number_of(device);
}

/* A file descriptor or -errno */
static inline int open_group_number(int number)
{
	char path[40];
	int fd;

	snprintf(path, sizeof(path), "/dev/vfio/%d", number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static inline int must_open_group(int number)
{
	int fd = open_group_number(number);

	if (fd < 0)
		fail("/dev/vfio/%d: %s", number, strerror(-fd));
	return fd;
}

/* ---- vCPUs --------------------------------------------------------------- */

/* 32-bit protected mode without paging, all of memory in each segment */
static inline void set_protected_mode(int vcpu)
{
	struct kvm_segment code = {
		.limit = ~0u, .selector = 8, .type = 11, .present = 1, .db = 1,
		.s = 1, .g = 1,
	}, data = code;
	struct kvm_sregs sregs;

	data.selector = 16;
	data.type = 3;
	must(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x31;		/* PE, NE, ET */
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs));
}

static inline struct kvm_run *map_vcpu(int kvm, int vcpu, size_t *size)
{
	struct kvm_run *run;

	*size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	run = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		fail("mmap of a vCPU: %s", strerror(errno));
	return run;
}

#endif
