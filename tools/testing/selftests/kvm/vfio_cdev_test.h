/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of the KVM-VFIO pseudo device with devices' files share: iommufd,
 * and the files.
 */
#ifndef SELFTEST_KVM_VFIO_CDEV_TEST_H
#define SELFTEST_KVM_VFIO_CDEV_TEST_H

#include "vfio_dev_test.h"
#include "vfio_iommufd_uapi.h"

/* --- iommufd, and the files of devices --- */

static inline int iommufd_open(void)
{
	return call(open("/dev/iommu", O_RDWR | O_CLOEXEC));
}

static inline int ioas_alloc(int iommufd, uint32_t *id)
{
	struct ioas_alloc arg = { .size = sizeof(arg) };
	int ret = call(ioctl(iommufd, IOMMU_IOAS_ALLOC, &arg));

	*id = arg.out_ioas_id;
	return ret;
}

/* No x86 device can be attached to this: its interrupts go to that address. */
static inline int ioas_spoil(int iommufd, uint32_t id)
{
	struct ioas_map arg = {
		.size = sizeof(arg),
		.flags = 7,
		.ioas_id = id,
		.length = 4096,
		.iova = 0xfee00000,
	};
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	if (page == MAP_FAILED)
		return -errno;
	arg.user_va = (uintptr_t)page;
	return call(ioctl(iommufd, IOMMU_IOAS_MAP, &arg));
}

/* "/dev/vfio/devices/vfioN" of a PCI device. */
static inline int cdev_path(int i, char *path, size_t size)
{
	struct dirent *entry;
	int ret = -ENOENT;
	char sys[128];
	DIR *dir;

	snprintf(sys, sizeof(sys), "/sys/bus/pci/devices/%.31s/vfio-dev", host.bdf[i]);
	dir = opendir(sys);
	while (dir && ret && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, size, "/dev/vfio/devices/%.31s", entry->d_name);
		ret = access(path, F_OK) ? -ENOENT : 0;
	}
	if (dir)
		closedir(dir);
	return ret;
}

static inline int cdev_open(int i)
{
	char path[64];
	int ret = cdev_path(i, path, sizeof(path));

	return ret ? ret : call(open(path, O_RDWR | O_CLOEXEC));
}

static inline int cdev_bind(int fd, int iommufd)
{
	struct bind_iommufd arg = { .argsz = sizeof(arg), .iommufd = iommufd };

	return call(ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &arg));
}

/* The call's answer, which goes into its argument, cannot be written. */
static inline int ioctl_in_vain(int fd, unsigned long request, const void *arg, size_t size)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int ret;

	if (page == MAP_FAILED)
		return -errno;
	memcpy(page, arg, size);
	mprotect(page, 4096, PROT_READ);
	ret = call(ioctl(fd, request, page));
	munmap(page, 4096);
	return ret;
}

static inline int cdev_bind_in_vain(int fd, int iommufd)
{
	struct bind_iommufd arg = { .argsz = sizeof(arg), .iommufd = iommufd };

	return ioctl_in_vain(fd, VFIO_DEVICE_BIND_IOMMUFD, &arg, sizeof(arg));
}

static inline int cdev_attach(int fd, uint32_t ioas)
{
	struct attach_pt arg = { .argsz = sizeof(arg), .pt_id = ioas };

	return call(ioctl(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &arg));
}

static inline int cdev_attach_pasid(int fd, uint32_t pasid, uint32_t pt)
{
	struct attach_pt arg = {
		.argsz = sizeof(arg), .flags = 1, .pt_id = pt, .pasid = pasid,
	};

	return call(ioctl(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &arg));
}

/*
 * It could not be told what it is attached to: EFAULT, and nothing happens.  PASID 0:
 * without one
 */
static inline int cdev_attach_in_vain(int fd, uint32_t pasid, uint32_t pt)
{
	struct attach_pt arg = {
		.argsz = sizeof(arg), .flags = !!pasid, .pt_id = pt, .pasid = pasid,
	};

	return ioctl_in_vain(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &arg, sizeof(arg));
}

static inline int cdev_detach(int fd)
{
	struct detach_pt arg = { .argsz = sizeof(arg) };

	return call(ioctl(fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &arg));
}

static inline int cdev_detach_pasid(int fd, uint32_t pasid)
{
	struct detach_pt arg = { .argsz = sizeof(arg), .flags = 1, .pasid = pasid };

	return call(ioctl(fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &arg));
}

/*
 * The device is nobody's. The last reference to a file that another test used
 * may be put a moment after its end.
 */
static inline int cdev_wait(int i)
{
	int iommufd = iommufd_open(), ret = -EBUSY, tries, fd;

	for (tries = 0; tries < 200 && ret; tries++) {
		if (tries)
			sleep_ms(10);
		fd = cdev_open(i);
		ret = fd < 0 ? fd : cdev_bind(fd, iommufd);
		close(fd);
	}
	close(iommufd);
	return ret;
}

/* --- What the host has of that --- */

static inline const char *no_iommufd(void)
{
	return access("/dev/iommu", F_OK) ? "the kernel has no /dev/iommu (CONFIG_IOMMUFD)" : "";
}

static inline const char *no_cdev(int nr)
{
	char path[64];
	int i;

	for (i = 0; i < nr; i++)
		if (cdev_path(i, path, sizeof(path)))
			return "the kernel has no /dev/vfio/devices (CONFIG_VFIO_DEVICE_CDEV)";
	return "";
}

/* What the kernel lacks is a better reason than what the machine lacks. */
#define REQUIRE_IOMMUFD(nr) do {						\
	const int devices = (nr);						\
										\
	REQUIRE(no_iommufd());							\
	REQUIRE(no_groups(devices));						\
	REQUIRE(no_pci(devices - 1));						\
	REQUIRE(host.no_probe);							\
} while (0)

#endif /* SELFTEST_KVM_VFIO_CDEV_TEST_H */
