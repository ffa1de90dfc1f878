/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Devices' files and iommufd, for programs that are built with headers older than
 * Linux 6.6, too.  <linux/vfio.h> comes before this.
 */
#ifndef SELFTEST_KVM_VFIO_IOMMUFD_UAPI_H
#define SELFTEST_KVM_VFIO_IOMMUFD_UAPI_H

#include <stdint.h>

#ifndef VFIO_DEVICE_BIND_IOMMUFD
#define VFIO_DEVICE_BIND_IOMMUFD	_IO(VFIO_TYPE, VFIO_BASE + 18)
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT	_IO(VFIO_TYPE, VFIO_BASE + 19)
#define VFIO_DEVICE_DETACH_IOMMUFD_PT	_IO(VFIO_TYPE, VFIO_BASE + 20)
#endif

#ifndef IOMMUFD_TYPE
#define IOMMUFD_TYPE	(';')
#define IOMMU_IOAS_ALLOC	_IO(IOMMUFD_TYPE, 0x81)
#define IOMMU_IOAS_COPY	_IO(IOMMUFD_TYPE, 0x83)
#define IOMMU_IOAS_MAP	_IO(IOMMUFD_TYPE, 0x85)
#define IOMMU_IOAS_UNMAP	_IO(IOMMUFD_TYPE, 0x86)
#endif

#ifndef IOMMU_VFIO_IOAS
#define IOMMU_VFIO_IOAS	_IO(IOMMUFD_TYPE, 0x88)
#endif

#ifndef IOMMU_HWPT_ALLOC
#define IOMMU_HWPT_ALLOC	_IO(IOMMUFD_TYPE, 0x89)
#endif

/* What a page table is to be good for: a parent of others, a PASID */
#define FOR_NESTED	1
#define FOR_PASID	8

struct bind_iommufd {
	uint32_t argsz;
	uint32_t flags;
	int32_t iommufd;
	uint32_t out_devid;
};

struct vfio_ioas {
	uint32_t size;
	uint32_t ioas_id;
	uint16_t op;		/* 1: to be that of groups */
	uint16_t reserved;
};

struct attach_pt {
	uint32_t argsz;
	uint32_t flags;		/* 1: by a PASID */
	uint32_t pt_id;
	uint32_t pasid;		/* from Linux 6.15 on */
};

struct detach_pt {
	uint32_t argsz;
	uint32_t flags;		/* 1: by a PASID */
	uint32_t pasid;		/* from Linux 6.15 on */
};

struct ioas_alloc {
	uint32_t size;
	uint32_t flags;
	uint32_t out_ioas_id;
};

struct hwpt_alloc {
	uint32_t size;
	uint32_t flags;
	uint32_t dev_id;
	uint32_t pt_id;
	uint32_t out_hwpt_id;
	uint32_t reserved;
	uint32_t data_type;
	uint32_t data_len;
	uint64_t data_uptr;
	uint32_t fault_id;
	uint32_t reserved2;
};

struct ioas_map {
	uint32_t size;
	uint32_t flags;		/* 7: at this address, writable, readable */
	uint32_t ioas_id;
	uint32_t reserved;
	uint64_t user_va;
	uint64_t length;
	uint64_t iova;
};

struct ioas_unmap {
	uint32_t size;
	uint32_t ioas_id;
	uint64_t iova;
	uint64_t length;	/* and how much it was */
};

struct ioas_copy {
	uint32_t size;
	uint32_t flags;		/* as of ioas_map */
	uint32_t dst_ioas_id;
	uint32_t src_ioas_id;
	uint64_t length;
	uint64_t dst_iova;
	uint64_t src_iova;
};

#endif /* SELFTEST_KVM_VFIO_IOMMUFD_UAPI_H */
