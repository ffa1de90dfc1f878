/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Devices' own files, and iommufd.  What returns an int and is not said to fail returns
 * what the system call does: -1 and errno if it fails.
 */
#ifndef LAB_IOMMUFD_H
#define LAB_IOMMUFD_H

#include "vfio.h"
#include "../../tools/testing/selftests/kvm/vfio_iommufd_uapi.h"

/*
 * From Linux 7.3 on vfio_testdev.ko has this: its IOMMU attaches what cannot be coherent
 * to what enforces coherency for others.
 */
#define LAX	"/sys/module/vfio_testdev/parameters/lax"

/* These four fail.  An IOAS is known by its ID. */
int open_iommufd(void);
uint32_t new_ioas(int iommufd);
/* The file of a device of vfio_testdev.ko */
int device_file(int id);
/* That of one of the lab's edu devices */
int edu_file(int index);

/* For reading and writing, at this address */
int ioas_map(int iommufd, uint32_t ioas, void *memory, uint64_t iova, size_t size);
int ioas_unmap(int iommufd, uint32_t ioas, uint64_t iova, size_t size);
/* What one IOAS has mapped there, in the other one as well, at the same address */
int ioas_copy(int iommufd, uint32_t to, uint32_t from, uint64_t iova, size_t size);
/* From Linux 6.13 on: a file's pages, which need not be mapped by a process */
int ioas_map_file(int iommufd, uint32_t ioas, int fd, uint64_t iova, size_t size);

int device_file_bind(int file, int iommufd);
/* To a page table, or to one of an IOAS; @pt is what it is attached to then */
int device_file_attach(int file, uint32_t *pt);
int device_file_detach(int file);
/* By a PASID; of our bases only Linux 7.3 has them */
int device_file_attach_pasid(int file, uint32_t pasid, uint32_t pt);
int device_file_detach_pasid(int file, uint32_t pasid);
/*
 * A page table of the IOAS, made for a device of vfio_testdev.ko that nobody has open, and one
 * that PASIDs can be attached to. These fail.
 */
uint32_t new_table(int iommufd, int id, uint32_t ioas);
uint32_t new_pasid_table(int iommufd, int id, uint32_t ioas);

#endif
