/* SPDX-License-Identifier: GPL-2.0-only */
/* What <linux/kvm.h> has of the KVM-VFIO device, where the installed one lacks it. */
#ifndef SELFTEST_KVM_VFIO_DEV_UAPI_H
#define SELFTEST_KVM_VFIO_DEV_UAPI_H

#include <linux/kvm.h>

/* Headers older than Linux 6.6 have the group names only, or not even these. */
#ifndef KVM_DEV_VFIO_FILE
#define KVM_DEV_VFIO_FILE	1
#define KVM_DEV_VFIO_FILE_ADD	1
#define KVM_DEV_VFIO_FILE_DEL	2
#endif
#ifndef KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE
#define KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE	3
#endif

/* What can be read back is an extension that few headers have. */
#ifndef KVM_DEV_VFIO_STATE
#define KVM_DEV_VFIO_STATE		0x1000
#define KVM_DEV_VFIO_STATE_VM		1
#define KVM_DEV_VFIO_STATE_FILE		2

struct kvm_vfio_vm_state {
	__u32	noncoherent;
	__u32	files;
	__u32	noncoherent_files;
	__u32	pad;
};

struct kvm_vfio_file_state {
	__s32	fd;
	__u32	coherency;
};

#define KVM_VFIO_FILE_NOT_ATTACHED	0
#define KVM_VFIO_FILE_ENFORCED		1
#define KVM_VFIO_FILE_NOT_ENFORCED	2
#endif

#endif /* SELFTEST_KVM_VFIO_DEV_UAPI_H */
