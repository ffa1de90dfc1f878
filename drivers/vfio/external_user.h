/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VFIO's side of the external users, see <linux/vfio_external_user.h>
 */
#ifndef __VFIO_EXTERNAL_USER_H__
#define __VFIO_EXTERNAL_USER_H__

#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/vfio_external_user.h>

struct file;

/**
 * struct vfio_external_slot - where a VFIO file's one external user registers
 * @lock: protects the other members and is held while the user is called, so
 *	that a user hears of changes in the order in which they happen and of
 *	none after it has left.  Taken inside VFIO's group and container locks.
 * @user: the user, NULL when nobody tracks the file
 * @coherency: of the file's DMA, right now.  Kept up to date whether or not
 *	there is a user, so that a new one need not take VFIO's locks to learn
 *	it.
 *
 * Embedded in the object that a VFIO file stands for.  The file, which the
 * user holds a reference to, keeps that object alive.
 */
struct vfio_external_slot {
	struct mutex lock;
	struct vfio_external_user *user;
	enum vfio_dma_coherency coherency;
};

/*
 * genksyms must not see slots.  Only vfio.ko ever looks into the objects that
 * embed one, so the symbol versions of what it exports stay what they were and
 * VFIO drivers built before it continue to load.
 */
#ifdef __GENKSYMS__
#define VFIO_EXTERNAL_SLOT(name)
#else
#define VFIO_EXTERNAL_SLOT(name)	struct vfio_external_slot name;
#endif

void vfio_external_slot_init(struct vfio_external_slot *slot);
void vfio_external_slot_destroy(struct vfio_external_slot *slot);
bool vfio_external_slot_update(struct vfio_external_slot *slot,
			       enum vfio_dma_coherency coherency);

static inline enum vfio_dma_coherency vfio_dma_coherency(bool attached,
							 bool enforced)
{
	if (!attached)
		return VFIO_DMA_NONE;
	return enforced ? VFIO_DMA_COHERENT : VFIO_DMA_NONCOHERENT;
}

/* Where @file's user registers, or NULL if @file is not of VFIO */
struct vfio_external_slot *vfio_file_external_slot(struct file *file);

#endif /* __VFIO_EXTERNAL_USER_H__ */
