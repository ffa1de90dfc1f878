// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM-VFIO pseudo device
 *
 * A VM may flush the host's caches, and choose the memory types its vCPUs use,
 * exactly while one of its devices can do DMA that bypasses the caches.  User
 * space cannot be taken at its word for that, so it creates this device and
 * hands it the VFIO files of the VM; what the IOMMU does with their DMA, and
 * when that changes, KVM hears from VFIO (see <linux/vfio_external_user.h>).
 *
 * Two mutexes, because VFIO's locks lie between them:
 *
 *   kvm_vfio.files_lock
 *     VFIO's group and container locks, the lock of the external slot
 *       kvm_vfio.coherency_lock
 *         kvm->mmu_lock and what else the architecture needs to change the VM
 *
 * The outer one is held across calls into VFIO, the inner one is taken when
 * VFIO calls.  Neither of them is taken under kvm->lock, nor is any of VFIO's
 * locks: some drivers take kvm->lock while VFIO's group lock is held.
 *
 * Neither is held across a wait that user space can prolong.  The exception is
 * the last close of the device, where no other task can want files_lock: some
 * kernels take VFIO's group lock there.  Readers of the state wait killably.
 *
 * Each fact has one place.  The coherency of a file is in VFIO's slot.  Which
 * files are tracked, and how many of them make the VM non-coherent, is here.
 * Whether the VM is non-coherent is up to the architecture.  The count saves a
 * change from walking the files; it and the architecture's flag change together,
 * under coherency_lock.
 */
#include <linux/err.h>
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vfio_external_user.h>

#ifdef CONFIG_SPAPR_TCE_IOMMU
#include <linux/iommu.h>
#include <asm/kvm_ppc.h>
#endif

#define CREATE_TRACE_POINTS
#include <trace/events/kvm_vfio.h>

/**
 * struct kvm_vfio - the device of one VM
 * @kvm: the VM, which outlives the device
 * @id: what VFIO knows the device by, at random: unlike @kvm it does not come again, not
 *	even from a module that is loaded anew while VFIO stays
 * @creator: the thread that created the VM, referenced; NULL if it had ended by
 *	the time the device was created
 * @files_lock: protects @files and @vfio and serialises all that user space does
 *	with the device
 * @files: the tracked files, struct kvm_vfio_file
 * @vfio: the way into vfio.ko.  A reference to it is held while @files is not
 *	empty, so that it is looked up by name once and not for every call.
 * @coherency_lock: protects @noncoherent_files and keeps what follows from it in
 *	order: files change independently of each other
 * @noncoherent_files: how many of @files do non-coherent DMA.  The VM is
 *	registered with the architecture while this is not zero.
 */
struct kvm_vfio {
	struct kvm *kvm;
	u64 id;
	struct pid *creator;

	struct mutex files_lock;
	struct list_head files;
	const struct vfio_external_user_api *vfio;

	struct mutex coherency_lock;
	unsigned int noncoherent_files;
};

/**
 * struct kvm_vfio_file - one tracked file
 * @user: what VFIO knows of it
 * @kv: the device that tracks it
 * @node: in &kvm_vfio.files
 * @iommu_group: the group a TCE table was attached to, referenced; NULL if
 *	there is none.  Protected by &kvm_vfio.files_lock.
 */
struct kvm_vfio_file {
	struct vfio_external_user user;
	struct kvm_vfio *kv;
	struct list_head node;
#ifdef CONFIG_SPAPR_TCE_IOMMU
	struct iommu_group *iommu_group;
#endif
};

/*
 * The architecture makes the change complete before it returns: nothing that
 * the VM does afterwards is based on the old state.
 */
static void kvm_vfio_coherency_changed(struct vfio_external_user *user,
				       enum vfio_dma_coherency from,
				       enum vfio_dma_coherency to)
{
	struct kvm_vfio *kv =
		container_of(user, struct kvm_vfio_file, user)->kv;

	mutex_lock(&kv->coherency_lock);
	if (to == VFIO_DMA_NONCOHERENT) {
		if (!kv->noncoherent_files++)
			kvm_arch_register_noncoherent_dma(kv->kvm);
	} else if (from == VFIO_DMA_NONCOHERENT) {
		if (!--kv->noncoherent_files)
			kvm_arch_unregister_noncoherent_dma(kv->kvm);
	}
	trace_kvm_vfio_coherency(kv->kvm, user->file, to,
				 kv->noncoherent_files);
	mutex_unlock(&kv->coherency_lock);
}

static const struct vfio_external_user_ops kvm_vfio_user_ops = {
	.coherency_changed = kvm_vfio_coherency_changed,
};

/* KVM does not depend on VFIO: no VFIO, no VFIO file, no call to it. */
static int kvm_vfio_get_api(struct kvm_vfio *kv)
{
	lockdep_assert_held(&kv->files_lock);

	if (!kv->vfio)
		kv->vfio = symbol_get(vfio_external_user_api);
	return kv->vfio ? 0 : -EINVAL;
}

static void kvm_vfio_put_api_if_unused(struct kvm_vfio *kv)
{
	lockdep_assert_held(&kv->files_lock);

	if (kv->vfio && list_empty(&kv->files)) {
		/* As symbol_put() would, which searches for the name again */
		module_put(kv->vfio->owner);
		kv->vfio = NULL;
	}
}

static struct kvm_vfio_file *to_kvm_vfio_file(struct vfio_external_user *user)
{
	return container_of(user, struct kvm_vfio_file, user);
}

/* The tracked file, or -ENOENT, or -EINTR if the task was killed meanwhile */
static struct kvm_vfio_file *kvm_vfio_find_file(struct kvm_vfio *kv,
						struct file *file)
{
	struct vfio_external_user *user;

	lockdep_assert_held(&kv->files_lock);

	user = kv->vfio ? kv->vfio->find(file, kv->kvm) : NULL;
	if (!user)
		return ERR_PTR(-ENOENT);
	return IS_ERR(user) ? ERR_CAST(user) : to_kvm_vfio_file(user);
}

#ifdef CONFIG_SPAPR_TCE_IOMMU
static void kvm_vfio_detach_tce_table(struct kvm_vfio_file *kvf)
{
	if (!kvf->iommu_group)
		return;

	kvm_spapr_tce_release_iommu_group(kvf->kv->kvm, kvf->iommu_group);
	iommu_group_put(kvf->iommu_group);
	kvf->iommu_group = NULL;
}

/*
 * The IOMMU group of a file, referenced.  NULL for a device's file and for a group
 * that was removed.  This takes VFIO's group lock, which can be held for long, so
 * it runs without files_lock, and has to look vfio.ko up itself: kvm_vfio.vfio is
 * protected by files_lock.
 */
static struct iommu_group *kvm_vfio_get_iommu_group(struct file *file)
{
	const struct vfio_external_user_api *vfio;
	struct iommu_group *iommu_group;

	vfio = symbol_get(vfio_external_user_api);
	if (!vfio)
		return NULL;
	iommu_group = vfio->iommu_group(file);
	module_put(vfio->owner);
	return iommu_group;
}

static int kvm_vfio_attach_tce_table(struct kvm_vfio *kv, struct file *file,
				     struct iommu_group *iommu_group,
				     int tablefd)
{
	struct kvm_vfio_file *kvf;
	long ret;

	lockdep_assert_held(&kv->files_lock);

	kvf = kvm_vfio_find_file(kv, file);
	if (IS_ERR(kvf))
		return PTR_ERR(kvf);

	/* A file's group never becomes another one, but it can be removed. */
	if (kvf->iommu_group)
		return kvm_spapr_tce_attach_iommu_group(kv->kvm, tablefd,
							kvf->iommu_group);

	/* A group without tables makes the attach below complain. */
	if (!iommu_group || !iommu_group_get_iommudata(iommu_group))
		return -EINVAL;

	ret = kvm_spapr_tce_attach_iommu_group(kv->kvm, tablefd, iommu_group);
	if (!ret)
		kvf->iommu_group = iommu_group_ref_get(iommu_group);
	return ret;
}

static int kvm_vfio_set_spapr_tce(struct kvm_vfio *kv, void __user *arg)
{
	struct kvm_vfio_spapr_tce param;
	struct iommu_group *iommu_group;
	struct file *file;
	int ret;

	if (copy_from_user(&param, arg, sizeof(param)))
		return -EFAULT;

	file = fget(param.groupfd);
	if (!file)
		return -EBADF;

	iommu_group = kvm_vfio_get_iommu_group(file);
	mutex_lock(&kv->files_lock);
	ret = kvm_vfio_attach_tce_table(kv, file, iommu_group, param.tablefd);
	mutex_unlock(&kv->files_lock);
	iommu_group_put(iommu_group);

	fput(file);
	return ret;
}
#else
static void kvm_vfio_detach_tce_table(struct kvm_vfio_file *kvf)
{
}

static int kvm_vfio_set_spapr_tce(struct kvm_vfio *kv, void __user *arg)
{
	return -ENXIO;
}
#endif

static int kvm_vfio_add_file(struct kvm_vfio *kv, struct file *file)
{
	struct kvm_vfio_file *kvf;
	int ret;

	lockdep_assert_held(&kv->files_lock);

	kvf = kzalloc_obj(*kvf, GFP_KERNEL_ACCOUNT);
	if (!kvf)
		return -ENOMEM;
	kvf->user.ops = &kvm_vfio_user_ops;
	kvf->user.kvm = kv->kvm;
	kvf->user.id = kv->id;
	kvf->kv = kv;

	ret = kvm_vfio_get_api(kv);
	if (ret)
		goto err_free;

	ret = kv->vfio->get(&kvf->user, file);
	if (ret < 0)
		goto err_put_api;

	/* Another VM has it, or had: the one that this one replaces (live update)? */
	if (ret)
		kvm_arch_inherit_caches(kv->kvm);

	list_add_tail(&kvf->node, &kv->files);
	return 0;

err_put_api:
	kvm_vfio_put_api_if_unused(kv);
err_free:
	kfree(kvf);
	return ret;
}

/*
 * Stop tracking @file.  The caller passes the result to kvm_vfio_free_file(), after
 * dropping files_lock.  Returns NULL if the VM does not track @file.
 */
static struct kvm_vfio_file *kvm_vfio_del_file(struct kvm_vfio *kv,
					       struct file *file)
{
	struct vfio_external_user *user;
	struct kvm_vfio_file *kvf;

	lockdep_assert_held(&kv->files_lock);

	user = kv->vfio ? kv->vfio->del(file, kv->kvm) : NULL;
	if (!user)
		return NULL;

	kvf = to_kvm_vfio_file(user);
	list_del(&kvf->node);
	kvm_vfio_detach_tce_table(kvf);
	return kvf;
}

/*
 * This waits until a device of the file that is just being opened is open, which
 * can take long: hold no lock that another task may want.  The file pins vfio.ko.
 */
static void kvm_vfio_free_file(const struct vfio_external_user_api *vfio,
			       struct kvm_vfio_file *kvf)
{
	vfio->drain_open(kvf->user.file);
	fput(kvf->user.file);
	kfree(kvf);
}

static int kvm_vfio_add(struct kvm_vfio *kv, s32 fd, struct file *file)
{
	int ret;

	mutex_lock(&kv->files_lock);
	ret = kvm_vfio_add_file(kv, file);
	trace_kvm_vfio_file(kv->kvm, true, fd, file, ret);
	mutex_unlock(&kv->files_lock);
	return ret;
}

static int kvm_vfio_del(struct kvm_vfio *kv, s32 fd, struct file *file)
{
	const struct vfio_external_user_api *vfio;
	struct kvm_vfio_file *kvf;
	int ret;

	mutex_lock(&kv->files_lock);
	vfio = kv->vfio;
	kvf = kvm_vfio_del_file(kv, file);
	ret = kvf ? 0 : -ENOENT;
	trace_kvm_vfio_file(kv->kvm, false, fd, file, ret);
	kvm_vfio_put_api_if_unused(kv);
	mutex_unlock(&kv->files_lock);

	if (kvf)
		kvm_vfio_free_file(vfio, kvf);
	return ret;
}

/* Both take the address of a file descriptor. */
static int kvm_vfio_set_file(struct kvm_vfio *kv, u64 attr, s32 __user *arg)
{
	struct file *file;
	s32 fd;
	int ret;

	if (get_user(fd, arg))
		return -EFAULT;

	file = fget(fd);
	if (!file)
		return -EBADF;

	if (attr == KVM_DEV_VFIO_FILE_ADD) {
		ret = kvm_vfio_add(kv, fd, file);
		if (!ret)
			return 0;	/* with the reference */
	} else {
		ret = kvm_vfio_del(kv, fd, file);
	}

	fput(file);
	return ret;
}

/* The same numbers inside and outside */
static_assert(VFIO_DMA_NONE == KVM_VFIO_FILE_NOT_ATTACHED);
static_assert(VFIO_DMA_COHERENT == KVM_VFIO_FILE_ENFORCED);
static_assert(VFIO_DMA_NONCOHERENT == KVM_VFIO_FILE_NOT_ENFORCED);

/* No holes: what is copied to user space is all written. */
static_assert(sizeof(struct kvm_vfio_vm_state) == 16);
static_assert(sizeof(struct kvm_vfio_file_state) == 8);

static unsigned int kvm_vfio_count_files(struct kvm_vfio *kv)
{
	struct list_head *node;
	unsigned int count = 0;

	lockdep_assert_held(&kv->files_lock);

	list_for_each(node, &kv->files)
		count++;
	return count;
}

/*
 * A consistent snapshot of the VM's state.  Keep coherency_lock for that only: a
 * change that waits for a preempted reader does so with VFIO's locks held.  The
 * reader, in turn, waits for a change in progress killably.
 */
static int kvm_vfio_read_vm_state(struct kvm_vfio *kv,
				  struct kvm_vfio_vm_state *to)
{
	struct kvm_vfio_vm_state state = {};

	lockdep_assert_held(&kv->files_lock);

	state.files = kvm_vfio_count_files(kv);
	if (mutex_lock_killable(&kv->coherency_lock))
		return -EINTR;
	state.noncoherent = !!kvm_arch_has_noncoherent_dma(kv->kvm);
	state.noncoherent_files = kv->noncoherent_files;
	mutex_unlock(&kv->coherency_lock);

	*to = state;
	return 0;
}

static int kvm_vfio_get_vm_state(struct kvm_vfio *kv, void __user *arg)
{
	struct kvm_vfio_vm_state state;
	int ret;

	if (mutex_lock_killable(&kv->files_lock))
		return -EINTR;
	ret = kvm_vfio_read_vm_state(kv, &state);
	mutex_unlock(&kv->files_lock);
	if (ret)
		return ret;

	return copy_to_user(arg, &state, sizeof(state)) ? -EFAULT : 0;
}

static int kvm_vfio_get_file_state(struct kvm_vfio *kv, void __user *arg)
{
	struct kvm_vfio_file_state state;
	struct kvm_vfio_file *kvf;
	struct file *file;
	int ret = -EINTR;

	if (copy_from_user(&state, arg, sizeof(state)))
		return -EFAULT;

	file = fget(state.fd);
	if (!file)
		return -EBADF;

	if (mutex_lock_killable(&kv->files_lock))
		goto out_fput;
	kvf = kvm_vfio_find_file(kv, file);
	ret = PTR_ERR_OR_ZERO(kvf);
	if (!ret)
		state.coherency = kv->vfio->coherency(&kvf->user);
	mutex_unlock(&kv->files_lock);

out_fput:
	fput(file);
	if (ret)
		return ret;
	return copy_to_user(arg, &state, sizeof(state)) ? -EFAULT : 0;
}

/* If the creator had ended before the device was created, only the host knows its ID. */
static pid_t kvm_vfio_creator(struct kvm_vfio *kv)
{
	struct pid_namespace *reader = task_active_pid_ns(current);

	if (!kv->creator && reader == &init_pid_ns)
		return kv->kvm->userspace_pid;
	return pid_nr_ns(kv->creator, reader);
}

static void kvm_vfio_show_fdinfo(struct kvm_device *dev, struct seq_file *m)
{
	static const char * const coherency[] = {
		[VFIO_DMA_NONE] = "not-attached",
		[VFIO_DMA_COHERENT] = "enforced",
		[VFIO_DMA_NONCOHERENT] = "not-enforced",
	};
	struct kvm_vfio *kv = dev->private;
	struct kvm_vfio_vm_state state;
	struct kvm_vfio_file *kvf;

	if (mutex_lock_killable(&kv->files_lock))
		return;
	if (kvm_vfio_read_vm_state(kv, &state))
		goto out_unlock;
	seq_printf(m, "vm:\t%d\n", kvm_vfio_creator(kv));
	seq_printf(m, "noncoherent:\t%u\n", state.noncoherent);
	seq_printf(m, "files:\t%u\n", state.files);
	seq_printf(m, "noncoherent_files:\t%u\n", state.noncoherent_files);
	/* A file may have changed since. */
	list_for_each_entry(kvf, &kv->files, node) {
		seq_puts(m, "file:\t");
		seq_file_path(m, kvf->user.file, " \t\n\\");
		seq_printf(m, " %s\n",
			   coherency[kv->vfio->coherency(&kvf->user)]);
	}
out_unlock:
	mutex_unlock(&kv->files_lock);
}

static int kvm_vfio_has_attr(struct kvm_device *dev,
			     struct kvm_device_attr *attr)
{
	switch (attr->group) {
	case KVM_DEV_VFIO_FILE:
		switch (attr->attr) {
		case KVM_DEV_VFIO_FILE_ADD:
		case KVM_DEV_VFIO_FILE_DEL:
			return 0;
		case KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE:
			return IS_ENABLED(CONFIG_SPAPR_TCE_IOMMU) ? 0 : -ENXIO;
		}
		break;
	case KVM_DEV_VFIO_STATE:
		switch (attr->attr) {
		case KVM_DEV_VFIO_STATE_VM:
		case KVM_DEV_VFIO_STATE_FILE:
			return 0;
		}
		break;
	}
	return -ENXIO;
}

static int kvm_vfio_get_attr(struct kvm_device *dev,
			     struct kvm_device_attr *attr)
{
	struct kvm_vfio *kv = dev->private;

	if (attr->group != KVM_DEV_VFIO_STATE)
		return -ENXIO;

	switch (attr->attr) {
	case KVM_DEV_VFIO_STATE_VM:
		return kvm_vfio_get_vm_state(kv, u64_to_user_ptr(attr->addr));
	case KVM_DEV_VFIO_STATE_FILE:
		return kvm_vfio_get_file_state(kv, u64_to_user_ptr(attr->addr));
	default:
		return -ENXIO;
	}
}

static int kvm_vfio_set_attr(struct kvm_device *dev,
			     struct kvm_device_attr *attr)
{
	struct kvm_vfio *kv = dev->private;

	if (attr->group != KVM_DEV_VFIO_FILE)
		return -ENXIO;

	switch (attr->attr) {
	case KVM_DEV_VFIO_FILE_ADD:
	case KVM_DEV_VFIO_FILE_DEL:
		return kvm_vfio_set_file(kv, attr->attr,
					 u64_to_user_ptr(attr->addr));
	case KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE:
		return kvm_vfio_set_spapr_tce(kv, u64_to_user_ptr(attr->addr));
	default:
		return -ENXIO;
	}
}

/*
 * The thread that created the VM, NULL if it has ended.  Its ID may have been
 * reused since: believe it only for a thread of this process, by which the VM
 * can be found just as well.
 */
static struct pid *kvm_vfio_get_creator(struct kvm *kvm)
{
	struct task_struct *task;
	struct pid *pid;

	rcu_read_lock();
	pid = find_pid_ns(kvm->userspace_pid, &init_pid_ns);
	task = pid_task(pid, PIDTYPE_PID);
	pid = task && same_thread_group(task, current) ? get_pid(pid) : NULL;
	rcu_read_unlock();
	return pid;
}

static int kvm_vfio_create(struct kvm_device *dev, u32 type)
{
	struct kvm_device *other;
	struct kvm_vfio *kv;

	lockdep_assert_held(&dev->kvm->lock);

	/*
	 * One for each VM.  A device whose last reference is being dropped is
	 * on the list until it has let go of its files.
	 */
	list_for_each_entry(other, &dev->kvm->devices, vm_node) {
		if (other->ops == &kvm_vfio_ops)
			return -EBUSY;
	}

	kv = kzalloc(sizeof(*kv), GFP_KERNEL_ACCOUNT);
	if (!kv)
		return -ENOMEM;

	kv->kvm = dev->kvm;
	kv->id = get_random_u64() ?: 1;
	kv->creator = kvm_vfio_get_creator(dev->kvm);
	mutex_init(&kv->files_lock);
	INIT_LIST_HEAD(&kv->files);
	mutex_init(&kv->coherency_lock);
	dev->private = kv;
	return 0;
}

/*
 * The last descriptor is closed: only VFIO can still call.  Not done in
 * kvm_vfio_release(), which runs under kvm->lock.
 */
static void kvm_vfio_close(struct kvm_device *dev)
{
	struct kvm_vfio *kv = dev->private;
	struct kvm_vfio_file *kvf, *tmp;

	lockdep_assert_not_held(&dev->kvm->lock);

	/* No other task can want files_lock, so it may be held across waits. */
	mutex_lock(&kv->files_lock);
	list_for_each_entry_safe(kvf, tmp, &kv->files, node) {
		kvm_vfio_del_file(kv, kvf->user.file);
		trace_kvm_vfio_file(kv->kvm, false, -1, kvf->user.file, 0);
		kvm_vfio_free_file(kv->vfio, kvf);
	}
	kvm_vfio_put_api_if_unused(kv);
	mutex_unlock(&kv->files_lock);
}

static void kvm_vfio_release(struct kvm_device *dev)
{
	struct kvm_vfio *kv = dev->private;

	mutex_destroy(&kv->coherency_lock);
	mutex_destroy(&kv->files_lock);
	put_pid(kv->creator);
	kfree(kv);
	kfree(dev);
}

const struct kvm_device_ops kvm_vfio_ops = {
	.name = "kvm-vfio",
	.create = kvm_vfio_create,
	.close = kvm_vfio_close,
	.release = kvm_vfio_release,
	.show_fdinfo = kvm_vfio_show_fdinfo,
	.set_attr = kvm_vfio_set_attr,
	.get_attr = kvm_vfio_get_attr,
	.has_attr = kvm_vfio_has_attr,
};
