/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VFIO external users: how KVM tracks the VFIO files of a VM
 *
 * An external user is somebody outside VFIO (KVM) whose behaviour depends on
 * what the IOMMU does with the DMA of a VFIO file.  It holds on to the file,
 * tells the VFIO drivers behind it which VM it belongs to, and is told each
 * time the coherency of the file's DMA changes.
 *
 * Nothing here is called directly: KVM must load, and do everything else,
 * without VFIO.  It gets hold of vfio_external_user_api with symbol_get() and
 * keeps that reference, and so vfio.ko, for as long as it has any user.
 *
 * Several VMs may track one file: that is how a monitor hands its devices to the
 * one that replaces it.  Each is told every change, and each stops on its own.
 *
 * Lock order, outermost first:
 *
 *   1. what the external user holds while it calls get(), del(), find()
 *   2. VFIO's group, container and device set locks
 *   3. iommufd's lock of the IOMMU group, then watch_lock in it
 *   4. vfio_group.coherency_lock, where devices have files of their own
 *   5. the lock of the external slot (struct vfio_external_slot)
 *   6. what coherency_changed() takes
 *
 * 1 and 6 are therefore different locks.  get(), del() and find() take none of 2 to
 * 4, and 5 is never held across a wait for user space, so they do not wait for it
 * either.  drain_open() takes a lock of 2 and can take long: call it without 1,
 * unless no other task can want 1 any more.
 */
#ifndef _LINUX_VFIO_EXTERNAL_USER_H
#define _LINUX_VFIO_EXTERNAL_USER_H

#include <linux/types.h>

struct file;
struct iommu_group;
struct kvm;
struct module;
struct vfio_external_slot;
struct vfio_external_user;

/**
 * enum vfio_dma_coherency - what the IOMMU does with the DMA of a VFIO file
 * @VFIO_DMA_NONE: the file is attached to no IOMMU domain, so it does no DMA
 *	and counts as coherent
 * @VFIO_DMA_COHERENT: its IOMMU domain enforces cache coherency
 * @VFIO_DMA_NONCOHERENT: its IOMMU domain does not
 */
enum vfio_dma_coherency {
	VFIO_DMA_NONE,
	VFIO_DMA_COHERENT,
	VFIO_DMA_NONCOHERENT,
};

/**
 * struct vfio_external_user_ops - what an external user is told
 * @coherency_changed: the coherency of the DMA of the user's file changed from
 *	@from to @to, which are never the same.  A user begins and ends with
 *	VFIO_DMA_NONE.  Calls for one user do not overlap.  The system call
 *	that causes the change does not return before the callback does.
 *	Called in process context with VFIO's locks held, see the lock order
 *	above.  May sleep, but must not call back into VFIO, and must not wait
 *	for anything that user space can hold up: other VMs, and who binds or
 *	unbinds devices on the host, wait for these locks.
 */
struct vfio_external_user_ops {
	void (*coherency_changed)(struct vfio_external_user *user,
				  enum vfio_dma_coherency from,
				  enum vfio_dma_coherency to);
};

/**
 * struct vfio_external_user - one VM's use of one VFIO file
 * @node: private to VFIO: in &vfio_external_slot.users.  First, so that a walk of
 *	a file's users takes the least.
 * @kvm: the VM the file is used for; set by the owner before get()
 * @ops: the callbacks; set by the owner before get()
 * @id: not 0, the same for all users of a VM's KVM-VFIO device, and never that of
 *	another one, even one that comes later; set by the owner before get()
 * @file: the VFIO file, with the reference that get() was given.  From del() on it is
 *	the owner's to drop.
 * @slot: private to VFIO: where the file's users are registered
 *
 * Embedded in a structure of its owner, which allocates it and may free it
 * once del() has returned.  Nothing but @ops, @kvm and @id has to be
 * initialised.
 */
struct vfio_external_user {
	struct hlist_node node;
	struct kvm *kvm;
	const struct vfio_external_user_ops *ops;
	u64 id;
	struct file *file;
	struct vfio_external_slot *slot;
};

/**
 * struct vfio_external_user_api - the way into vfio.ko
 * @owner: vfio.ko, for module_put() in place of symbol_put()
 * @get: vfio_external_user_get()
 * @del: vfio_external_user_del()
 * @find: vfio_external_user_find()
 * @coherency: vfio_external_user_coherency()
 * @drain_open: vfio_file_drain_open()
 * @iommu_group: vfio_file_iommu_group(), for the sPAPR TCE tables of ppc64, which
 *	select groups; NULL in a kernel without
 *
 * One symbol for all of them, because looking a symbol up by its name is what
 * costs most.
 */
struct vfio_external_user_api {
	struct module *owner;
	int (*get)(struct vfio_external_user *user, struct file *file);
	struct vfio_external_user *(*del)(struct file *file, struct kvm *kvm);
	struct vfio_external_user *(*find)(struct file *file, struct kvm *kvm);
	enum vfio_dma_coherency (*coherency)(struct vfio_external_user *user);
	void (*drain_open)(struct file *file);
	struct iommu_group *(*iommu_group)(struct file *file);
};

extern const struct vfio_external_user_api vfio_external_user_api;

#endif /* _LINUX_VFIO_EXTERNAL_USER_H */
