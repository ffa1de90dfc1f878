// SPDX-License-Identifier: GPL-2.0-only
/*
 * Statistics about non-coherent DMA: files in each VM's debugfs directory, and
 * their sums over all VMs in the directory above, by whose names kvm_stat
 * knows what there is.
 *
 * Binary statistics of the VM would be the better place.  But they lie in the
 * middle of struct kvm, and modules that use kvm.ko may have been built with
 * an earlier one: what comes after them must not move.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/debugfs.h>
#include <linux/kvm_host.h>

#include "noncoherent_dma.h"

static const struct {
	const char *name;
	size_t offset;
} kvm_noncoherent_dma_counters[] = {
#define COUNTER(name)							\
	{ "noncoherent_dma_" #name,					\
	  offsetof(struct kvm, noncoherent_dma_stat.name) }

	COUNTER(changes),
	COUNTER(zaps),
	COUNTER(zap_ns),
	COUNTER(flushes),
#undef COUNTER
};

/**
 * kvm_noncoherent_dma_create_vm_debugfs - create the files of one VM
 * @kvm: the VM, whose debugfs directory there is.  It goes before the VM does.
 */
void kvm_noncoherent_dma_create_vm_debugfs(struct kvm *kvm)
{
	int i;

	/* The flag is bit 0, and there is no other. */
	debugfs_create_ulong("noncoherent_dma", 0444, kvm->debugfs_dentry,
			     &kvm->noncoherent_dma);
	for (i = 0; i < ARRAY_SIZE(kvm_noncoherent_dma_counters); i++)
		debugfs_create_u64(kvm_noncoherent_dma_counters[i].name, 0444,
				   kvm->debugfs_dentry,
				   (void *)kvm +
				   kvm_noncoherent_dma_counters[i].offset);
}

/* Of a counter, by its offset; 0 stands for the flag, so that VMs are counted. */
static int kvm_noncoherent_dma_sum(void *offset, u64 *val)
{
	struct kvm *kvm;

	*val = 0;
	mutex_lock(&kvm_lock);
	list_for_each_entry(kvm, &vm_list, vm_list)
		*val += offset ? READ_ONCE(*(u64 *)((void *)kvm + (long)offset)) :
				 kvm_arch_has_noncoherent_dma(kvm);
	mutex_unlock(&kvm_lock);
	return 0;
}

DEFINE_DEBUGFS_ATTRIBUTE(kvm_noncoherent_dma_sum_fops, kvm_noncoherent_dma_sum,
			 NULL, "%llu\n");

/**
 * kvm_arch_create_noncoherent_dma_debugfs - create the files for all VMs
 * @dir: KVM's debugfs directory, with which they go
 */
void kvm_arch_create_noncoherent_dma_debugfs(struct dentry *dir)
{
	int i;

	debugfs_create_file_unsafe("noncoherent_dma", 0444, dir, NULL,
				   &kvm_noncoherent_dma_sum_fops);
	for (i = 0; i < ARRAY_SIZE(kvm_noncoherent_dma_counters); i++) {
		const char *name = kvm_noncoherent_dma_counters[i].name;
		void *offset = (void *)kvm_noncoherent_dma_counters[i].offset;

		debugfs_create_file_unsafe(name, 0444, dir, offset,
					   &kvm_noncoherent_dma_sum_fops);
	}
}
