/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VFIO's side of the external users, see <linux/vfio_external_user.h>
 */
#ifndef __VFIO_EXTERNAL_USER_H__
#define __VFIO_EXTERNAL_USER_H__

#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/vfio_external_user.h>

struct file;
struct kvm;
struct vfio_device;

/**
 * struct vfio_external_slot - where a VFIO file's external users register
 * @lock: protects the other members.  Held while users are called, so that a
 *	user is told of changes in their order, and of none after del().  Taken
 *	inside VFIO's group, container and device set locks.  Never held across
 *	a wait for user space.
 * @users: the users, one for each VM that tracks the file, the latest first
 * @coherency: the present state of the file's DMA.  Kept up to date even without
 *	users, so that a new one can learn it without VFIO's locks.  Written
 *	under @lock; a single read does without.
 * @left_by: the &vfio_external_user.id of who left last while the file was
 *	attached, 0 if it has been detached since.  A guest of its VM may go on in
 *	the VM that comes next, with the DMA that it knows.
 *
 * Embedded in the object that a VFIO file stands for.  The file, which each user
 * holds a reference to, keeps that object alive.
 */
struct vfio_external_slot {
	struct mutex lock;
	struct hlist_head users;
	enum vfio_dma_coherency coherency;
	u64 left_by;
};

void vfio_external_slot_init(struct vfio_external_slot *slot);
void vfio_external_slot_destroy(struct vfio_external_slot *slot);
void vfio_external_slot_update(struct vfio_external_slot *slot,
			       enum vfio_dma_coherency coherency);
struct kvm *vfio_external_slot_kvm(struct vfio_external_slot *slot);
void vfio_external_slot_get_kvm(struct vfio_external_slot *slot,
				struct vfio_device *device);

static inline enum vfio_dma_coherency vfio_dma_coherency(bool attached,
							 bool enforced)
{
	if (!attached)
		return VFIO_DMA_NONE;
	return enforced ? VFIO_DMA_COHERENT : VFIO_DMA_NONCOHERENT;
}

/* Where @file's users register, or NULL if @file is not of VFIO */
struct vfio_external_slot *vfio_file_external_slot(struct file *file);

void vfio_file_drain_open(struct file *file);

#endif /* __VFIO_EXTERNAL_USER_H__ */
