// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO external users
 *
 * A VM monitor hands KVM the VFIO files whose devices its VM uses.  KVM keeps
 * them open, and has to hear about every change of the coherency of their DMA
 * before that change takes effect.  VFIO's drivers have to know the VM.  KVM sees
 * <linux/vfio_external_user.h> of this, the rest of VFIO sees external_user.h.
 *
 * Each object that a VFIO file stands for has a slot.  VFIO records the state of
 * the DMA there when it changes; KVM registers its users there.  Neither has to
 * search for the other.
 */
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/vfio.h>
#include <linux/vfio_external_user.h>

#include "vfio.h"

void vfio_external_slot_init(struct vfio_external_slot *slot)
{
	mutex_init(&slot->lock);
	INIT_HLIST_HEAD(&slot->users);
	slot->coherency = VFIO_DMA_NONE;
	slot->left_by = 0;
}

void vfio_external_slot_destroy(struct vfio_external_slot *slot)
{
	/* A user holds the file, and the file holds the object of the slot. */
	WARN_ON_ONCE(!hlist_empty(&slot->users));
	mutex_destroy(&slot->lock);
}

/* Tell a user about a change of its file's DMA, if it is one. */
static void vfio_external_user_tell(struct vfio_external_user *user,
				    enum vfio_dma_coherency from,
				    enum vfio_dma_coherency to)
{
	lockdep_assert_held(&user->slot->lock);

	if (from != to)
		user->ops->coherency_changed(user, from, to);
}

/**
 * vfio_external_slot_update - tell a file's users about the state of its DMA
 * @slot: slot of the file
 * @coherency: that state from now on
 *
 * Called under the lock that protects the attachment of the file: before its owner can
 * use what it is attached to, and after detaching it.
 *
 * Context: may sleep; takes @slot->lock and what the users take
 */
void vfio_external_slot_update(struct vfio_external_slot *slot,
			       enum vfio_dma_coherency coherency)
{
	struct vfio_external_user *user;
	enum vfio_dma_coherency old;

	mutex_lock(&slot->lock);
	old = slot->coherency;
	WRITE_ONCE(slot->coherency, coherency);
	if (coherency == VFIO_DMA_NONE)
		slot->left_by = 0;
	hlist_for_each_entry(user, &slot->users, node)
		vfio_external_user_tell(user, old, coherency);
	mutex_unlock(&slot->lock);
}

static struct vfio_external_user *
vfio_external_slot_find(struct vfio_external_slot *slot, struct kvm *kvm)
{
	struct vfio_external_user *user;

	lockdep_assert_held(&slot->lock);

	hlist_for_each_entry(user, &slot->users, node) {
		if (user->kvm == kvm)
			return user;
	}
	return NULL;
}

/**
 * vfio_external_slot_kvm - which VM VFIO's drivers are told of
 * @slot: slot of the file
 *
 * Context: the caller holds @slot->lock, and goes on to refer to the VM under it or
 *	under a lock that vfio_file_drain_open() takes
 * Return: the VM that tracked the file last and still does, NULL if none does
 */
struct kvm *vfio_external_slot_kvm(struct vfio_external_slot *slot)
{
	struct vfio_external_user *user;

	lockdep_assert_held(&slot->lock);

	user = hlist_entry_safe(slot->users.first, struct vfio_external_user,
				node);
	return user ? user->kvm : NULL;
}

/**
 * vfio_external_user_get - begin to track a VFIO file for a VM
 * @user: the user, with its ops, its VM and its ID set
 * @file: the file; the caller's reference passes to @user if this succeeds
 *
 * Makes the VM known to the VFIO drivers that open a device of @file later.  If @file
 * is attached to an IOMMU domain, @user has been called when this returns.
 *
 * Context: may sleep; takes the slot's lock.  The caller must hold neither
 *	kvm->lock nor anything coherency_changed() takes.
 * Return: 0, or 1 if another VM tracks @file, too, or was the last that tracked it and
 *	it is still attached; -EINVAL if @file is not a VFIO file, -EEXIST if it is
 *	tracked for this VM already.  On failure nothing has changed.
 */
static int vfio_external_user_get(struct vfio_external_user *user,
				  struct file *file)
{
	struct vfio_external_slot *slot = vfio_file_external_slot(file);
	int ret = 0;

	if (!slot)
		return -EINVAL;

	mutex_lock(&slot->lock);
	if (vfio_external_slot_find(slot, user->kvm)) {
		ret = -EEXIST;
		goto out_unlock;
	}
	ret = !hlist_empty(&slot->users);
	if (unlikely(slot->left_by))
		ret |= slot->left_by != user->id;
	user->file = file;
	user->slot = slot;
	hlist_add_head(&user->node, &slot->users);
	vfio_external_user_tell(user, VFIO_DMA_NONE, slot->coherency);
out_unlock:
	mutex_unlock(&slot->lock);
	return ret;
}

/**
 * vfio_external_user_del - stop tracking a VFIO file for a VM
 * @file: any file
 * @kvm: the VM
 *
 * If the file is attached, the user gets a final callback with VFIO_DMA_NONE.
 * The reference to the file passes to the caller, who has to call
 * vfio_file_drain_open() before dropping it and before the VM may end.
 *
 * Context: as vfio_external_user_get()
 * Return: the user, or NULL if @file is not tracked for @kvm, and then nothing
 *	has changed
 */
static struct vfio_external_user *vfio_external_user_del(struct file *file,
							 struct kvm *kvm)
{
	struct vfio_external_slot *slot = vfio_file_external_slot(file);
	struct vfio_external_user *user;

	if (!slot)
		return NULL;

	mutex_lock(&slot->lock);
	user = vfio_external_slot_find(slot, kvm);
	if (user) {
		vfio_external_user_tell(user, slot->coherency, VFIO_DMA_NONE);
		hlist_del(&user->node);
		if (slot->coherency != VFIO_DMA_NONE)
			slot->left_by = user->id;
	}
	mutex_unlock(&slot->lock);
	return user;
}

/**
 * vfio_external_user_find - find a VM's user of a VFIO file
 * @file: any file
 * @kvm: the VM
 *
 * Context: may sleep; takes the slot's lock.  The caller keeps the VM's users
 *	from being deleted meanwhile.
 * Return: the user, NULL if @file is not tracked for @kvm, or -EINTR if the task
 *	was killed while it waited for a change in progress
 */
static struct vfio_external_user *vfio_external_user_find(struct file *file,
							  struct kvm *kvm)
{
	struct vfio_external_slot *slot = vfio_file_external_slot(file);
	struct vfio_external_user *user;

	if (!slot)
		return NULL;

	if (mutex_lock_killable(&slot->lock))
		return ERR_PTR(-EINTR);
	user = vfio_external_slot_find(slot, kvm);
	mutex_unlock(&slot->lock);

	return user;
}

/**
 * vfio_external_user_coherency - what a user's file does right now
 * @user: a user, between get() and del()
 *
 * During a change this is the state that the user is about to be told.
 *
 * Context: any; takes nothing
 * Return: the coherency of the file's DMA
 */
static enum vfio_dma_coherency
vfio_external_user_coherency(struct vfio_external_user *user)
{
	return READ_ONCE(user->slot->coherency);
}

const struct vfio_external_user_api vfio_external_user_api = {
	.owner = THIS_MODULE,
	.get = vfio_external_user_get,
	.del = vfio_external_user_del,
	.find = vfio_external_user_find,
	.coherency = vfio_external_user_coherency,
	.drain_open = vfio_file_drain_open,
	.iommu_group = IS_ENABLED(CONFIG_VFIO_GROUP) ? vfio_file_iommu_group : NULL,
};
EXPORT_SYMBOL_GPL(vfio_external_user_api);
