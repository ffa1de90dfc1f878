// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO external users
 *
 * A VM monitor hands KVM the VFIO files whose devices its VM uses.  KVM then
 * needs three things from VFIO: that the file stays, that no other VM uses it,
 * and to hear about every change of the coherency of its DMA before the change
 * can have an effect.  <linux/vfio_external_user.h> is what KVM sees of this,
 * external_user.h what the rest of VFIO sees.
 *
 * Each object that a VFIO file stands for has a slot.  VFIO writes the state
 * of the DMA into it where that state changes, KVM puts its user into it.
 * That way neither of the two has to search for the other.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/vfio.h>
#include <linux/vfio_external_user.h>

#include "vfio.h"

void vfio_external_slot_init(struct vfio_external_slot *slot)
{
	mutex_init(&slot->lock);
	slot->user = NULL;
	slot->coherency = VFIO_DMA_NONE;
}

void vfio_external_slot_destroy(struct vfio_external_slot *slot)
{
	/* A user holds the file, and the file holds the object of the slot. */
	WARN_ON_ONCE(slot->user);
	mutex_destroy(&slot->lock);
}

/* Tell the user of a slot, if it has one, that its DMA changes to @to. */
static void vfio_external_slot_tell(struct vfio_external_slot *slot,
				    enum vfio_dma_coherency from,
				    enum vfio_dma_coherency to)
{
	struct vfio_external_user *user = slot->user;

	lockdep_assert_held(&slot->lock);

	if (user && from != to)
		user->ops->coherency_changed(user, from, to);
}

/**
 * vfio_external_slot_update - tell a file's user about the state of its DMA
 * @slot: slot of the file
 * @coherency: that state from now on
 *
 * Call this with the lock held that protects the attachment of the file, after
 * attaching it and before its owner can know, or after detaching it.
 *
 * Context: may sleep; takes @slot->lock and what the user takes
 * Return: true if that was a change
 */
bool vfio_external_slot_update(struct vfio_external_slot *slot,
			       enum vfio_dma_coherency coherency)
{
	enum vfio_dma_coherency old;

	mutex_lock(&slot->lock);
	old = slot->coherency;
	slot->coherency = coherency;
	vfio_external_slot_tell(slot, old, coherency);
	mutex_unlock(&slot->lock);

	return old != coherency;
}

/**
 * vfio_external_user_get - begin to track a VFIO file for a VM
 * @user: the user, with its ops and its VM set
 * @file: the file
 *
 * Takes a reference to @file and makes its VM known to the VFIO drivers that
 * open a device of it later.  If the file is attached to an IOMMU domain, @user
 * has heard so when this returns.
 *
 * Context: may sleep; takes VFIO's group lock and the slot's lock.  The caller
 *	must hold neither kvm->lock nor anything coherency_changed() takes.
 * Return: 0, -EINVAL if @file is not a VFIO file, -EEXIST if it is tracked for
 *	this VM already, -EBUSY if it is tracked for another one.  On failure
 *	nothing has changed.
 */
static int vfio_external_user_get(struct vfio_external_user *user,
				  struct file *file)
{
	struct vfio_external_slot *slot = vfio_file_external_slot(file);
	int ret = 0;

	if (!slot)
		return -EINVAL;

	mutex_lock(&slot->lock);
	if (slot->user) {
		ret = slot->user->kvm == user->kvm ? -EEXIST : -EBUSY;
		goto out_unlock;
	}
	user->file = get_file(file);
	user->slot = slot;
	slot->user = user;
	vfio_external_slot_tell(slot, VFIO_DMA_NONE, slot->coherency);
out_unlock:
	mutex_unlock(&slot->lock);

	/*
	 * Not under the slot's lock: the group's lock comes first.  Nobody
	 * else can set the VM, since the slot is taken, and a device opened in
	 * between is one opened before the file was tracked.
	 */
	if (!ret)
		vfio_file_set_kvm(file, user->kvm);
	return ret;
}

/**
 * vfio_external_user_put - stop tracking a VFIO file
 * @user: a user that vfio_external_user_get() succeeded for
 *
 * The user hears for the last time, that its file does no DMA, if the last it
 * had heard was that it does.  Then the reference to the file is dropped.
 *
 * Context: as vfio_external_user_get()
 */
static void vfio_external_user_put(struct vfio_external_user *user)
{
	struct vfio_external_slot *slot = user->slot;
	struct file *file = user->file;

	/* While the slot is still taken: the next user may be another VM's. */
	vfio_file_set_kvm(file, NULL);

	mutex_lock(&slot->lock);
	vfio_external_slot_tell(slot, slot->coherency, VFIO_DMA_NONE);
	slot->user = NULL;
	mutex_unlock(&slot->lock);

	fput(file);
}

/**
 * vfio_external_user_find - find a VM's user of a VFIO file
 * @file: any file
 * @kvm: the VM
 *
 * Context: may sleep; takes the slot's lock.  The caller makes sure that the
 *	VM's users do not go away meanwhile.
 * Return: the user, or NULL if @file is not tracked for @kvm
 */
static struct vfio_external_user *vfio_external_user_find(struct file *file,
							  struct kvm *kvm)
{
	struct vfio_external_slot *slot = vfio_file_external_slot(file);
	struct vfio_external_user *user;

	if (!slot)
		return NULL;

	mutex_lock(&slot->lock);
	user = slot->user;
	/* Another VM's user may be freed as soon as the lock is dropped. */
	if (user && user->kvm != kvm)
		user = NULL;
	mutex_unlock(&slot->lock);

	return user;
}

const struct vfio_external_user_api vfio_external_user_api = {
	.owner = THIS_MODULE,
	.get = vfio_external_user_get,
	.put = vfio_external_user_put,
	.find = vfio_external_user_find,
	.iommu_group = vfio_file_iommu_group,
};
EXPORT_SYMBOL_GPL(vfio_external_user_api);
