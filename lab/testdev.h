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

/* What is written to PATH in one go; it is truncated first. 0 or -errno. */
static inline int __attribute__((format(printf, 2, 0)))
vput(const char *path, const char *format, va_list args)
{
	char text[100];
	int length = vsnprintf(text, sizeof(text), format, args), fd, ret;

	if (length >= (int)sizeof(text))
		fail("too long for %s: %s", path, text);
	fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = write(fd, text, length) < 0 ? -errno : 0;
	close(fd);
	return ret;
}

static inline int __attribute__((format(printf, 2, 3)))
put(const char *path, const char *format, ...)
{
	va_list args;
	int ret;

	va_start(args, format);
	ret = vput(path, format, args);
	va_end(args);
	return ret;
}

static inline void __attribute__((format(printf, 2, 3)))
must_put(const char *path, const char *format, ...)
{
	va_list args;
	int ret;

	va_start(args, format);
	ret = vput(path, format, args);
	va_end(args);
	if (ret)
		fail("writing to %s: %s", path, strerror(-ret));
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
