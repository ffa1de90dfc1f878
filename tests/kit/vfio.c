// SPDX-License-Identifier: GPL-2.0-only
/* IOMMU groups, containers, and the KVM-VFIO device */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vfio.h"

int group_number_of(const char *device)
{
	char path[128], link[128];
	int got;

	snprintf(path, sizeof(path), "%s/iommu_group", device);
	got = must(readlink(path, link, sizeof(link) - 1));
	link[got] = '\0';
	return atoi(strrchr(link, '/') + 1);
}

int testdev_group_number(int id)
{
	char device[96];

	snprintf(device, sizeof(device), TESTDEV "vfio_testdev.%d", id);
	return group_number_of(device);
}

int open_group_number(int number)
{
	char path[40];
	int fd;

	snprintf(path, sizeof(path), "/dev/vfio/%d", number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int must_open_group(int number)
{
	int fd = open_group_number(number);

	if (fd < 0)
		fail("/dev/vfio/%d: %s", number, strerror(-fd));
	return fd;
}

const char *edu_device(int index)
{
	const char *list = getenv("LAB_EDU");
	static char device[96];
	char bdf[32];
	int i;

	for (i = 0; list && i < index; i++)
		list = strchr(list + (*list == ' '), ' ');
	if (!list || sscanf(list, "%31s", bdf) != 1)
		fail("LAB_EDU names fewer than %d devices", index + 1);
	snprintf(device, sizeof(device), "/sys/bus/pci/devices/%s", bdf);
	return device;
}

/* ---- containers ---------------------------------------------------------- */

int open_container(void)
{
	return open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
}

int group_join(int group, int container)
{
	return ioctl(group, VFIO_GROUP_SET_CONTAINER, &container);
}

int group_leave(int group)
{
	return ioctl(group, VFIO_GROUP_UNSET_CONTAINER);
}

int container_set_iommu(int container)
{
	return ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
}

int container_map_flags(int container, void *memory, uint64_t iova, size_t size,
			uint32_t flags)
{
	struct vfio_iommu_type1_dma_map request = {
		.argsz = sizeof(request),
		.flags = flags,
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = size,
	};

	return ioctl(container, VFIO_IOMMU_MAP_DMA, &request);
}

int container_map(int container, void *memory, uint64_t iova, size_t size)
{
	return container_map_flags(container, memory, iova, size,
				   VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
}

static long unmap_flags(int container, uint64_t iova, size_t size, uint32_t flags)
{
	struct vfio_iommu_type1_dma_unmap request = {
		.argsz = sizeof(request),
		.flags = flags,
		.iova = iova,
		.size = size,
	};

	return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &request) ? -1 : (long)request.size;
}

long container_unmap(int container, uint64_t iova, size_t size)
{
	return unmap_flags(container, iova, size, 0);
}

long container_unmap_all(int container)
{
	return unmap_flags(container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL);
}

/* ---- the KVM-VFIO device of a VM ----------------------------------------- */

int kvm_vfio_create(int vm)
{
	struct kvm_create_device request = { .type = KVM_DEV_TYPE_VFIO };
	int ret = ioctl(vm, KVM_CREATE_DEVICE, &request);

	return ret ? ret : (int)request.fd;
}

int kvm_vfio_attr(int device, unsigned long op, int group, uint64_t attr, void *addr)
{
	struct kvm_device_attr request = {
		.group = group, .attr = attr, .addr = (uintptr_t)addr,
	};

	return ioctl(device, op, &request);
}

/* Kernel headers call the file attributes by the groups' old names. */
int kvm_vfio_add(int device, int file)
{
	return kvm_vfio_attr(device, KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP,
			     KVM_DEV_VFIO_GROUP_ADD, &file);
}

int kvm_vfio_del(int device, int file)
{
	return kvm_vfio_attr(device, KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP,
			     KVM_DEV_VFIO_GROUP_DEL, &file);
}
