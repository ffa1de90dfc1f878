/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * IOMMU groups, containers, and the KVM-VFIO device.  What returns an int and is
 * not said to fail returns what the system call does: -1 and errno if it fails.
 */
#ifndef LAB_VFIO_H
#define LAB_VFIO_H

#include <linux/kvm.h>
#include <linux/vfio.h>
#include <stddef.h>
#include <stdint.h>

#include "files.h"
#include "../../tools/testing/selftests/kvm/vfio_dev_uapi.h"

/* ---- IOMMU groups -------------------------------------------------------- */

/* The number of the group of the device with this folder in sysfs; fails */
int group_number_of(const char *device);
int testdev_group_number(int id);

/* A file descriptor or -errno */
int open_group_number(int number);
/* Fails */
int must_open_group(int number);

/* The folder of one of the lab's edu devices; fails */
const char *edu_device(int index);

/* ---- containers ---------------------------------------------------------- */

int open_container(void);
int group_join(int group, int container);
int group_leave(int group);
int container_set_iommu(int container);
/* For reading and writing, unless it says something else */
int container_map(int container, void *memory, uint64_t iova, size_t size);
int container_map_flags(int container, void *memory, uint64_t iova, size_t size,
			uint32_t flags);
/* The number of bytes, or -1 */
long container_unmap(int container, uint64_t iova, size_t size);
long container_unmap_all(int container);

/* ---- the KVM-VFIO device of a VM ----------------------------------------- */

int kvm_vfio_create(int vm);
int kvm_vfio_attr(int device, unsigned long op, int group, uint64_t attr, void *addr);
int kvm_vfio_add(int device, int file);
int kvm_vfio_del(int device, int file);

#endif
