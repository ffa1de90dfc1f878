// SPDX-License-Identifier: GPL-2.0-only
/*
 * What non-coherent DMA means to an x86 VM
 *
 * While the VM's flag is clear, all DMA to its memory snoops the caches.  Guest
 * memory is then mapped write-back whatever the guest asks for, and WBINVD does
 * nothing.  While it is set, some device bypasses the caches, and the guest's
 * memory types and its WBINVD are real.  Everybody reads the flag with
 * kvm_arch_has_noncoherent_dma(); it is changed here and nowhere else.
 *
 * A change has to be complete before the system call that causes it returns,
 * with vCPUs running, and it must not wait for anything that user space can hold
 * up: VFIO's locks are held.  All readers of the flag fall under one of these:
 *
 *  - SPTEs: their memory type, and on some kernels their level, depend on the flag.
 *    A page fault reads it for the last time under mmu_lock, in the section in
 *    which it makes the SPTE.  The change takes mmu_lock for write after the flag
 *    has changed, and puts all SPTEs that there are then out of use:
 *
 *      If the page fault takes mmu_lock before that, its SPTE is among these.
 *
 *      If it comes later, also while the change has dropped mmu_lock in between,
 *      it reads the new flag.
 *
 *    For the TDP MMU the change invalidates the roots and makes every vCPU leave
 *    them, in one write section.  So it does not depend on how much is mapped, but
 *    for a limit (see mmu.c).  The pages of the old roots are given back later, see
 *    kvm_tear_down_roots().  Shadow pages (nested guests, no TDP MMU) are zapped.
 *
 *    Nothing of that waits for page faults (kvm->srcu), which user space may have
 *    to resolve.
 *
 *  - WBINVD: either the vCPU sees the VM non-coherent and flushes, or the one
 *    who made it so sees in wbinvd_dirty_mask the CPUs the vCPU has run on and
 *    flushes them.  Both sides write, have a full barrier, then read: the bit
 *    of the CPU is set with a locked instruction when the vCPU is loaded on it,
 *    and the flag is set with one.  A CPU's bit is cleared only when the CPU
 *    has written its caches back.
 *
 *  - vCPUs that are being created: one runs only when online_vcpus counts it,
 *    since its mutex is held until then.  Either who makes the change finds it
 *    counted, or the vCPU's first load finds the flag changed, by the same pair
 *    of barriers.
 *
 * Flushes go to online CPUs.  One that is not online has written its caches back
 * since a vCPU last ran there, see kvm_wbinvd_cpu_offline().
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/ktime.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/task_work.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include <asm/special_insns.h>

#include "cpuid.h"
#include "kvm_emulate.h"
#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "mmu/tdp_mmu.h"
#include "noncoherent_dma.h"
#include "x86.h"

#define CREATE_TRACE_POINTS
#include "noncoherent_dma_trace.h"

/**
 * struct kvm_flush - CPUs write their caches back
 * @cpus: how many did
 */
struct kvm_flush {
	atomic_t cpus;
};

/* Not inlined where it is called directly: a probe here sees every flush. */
static noinline void wbinvd_ipi(void *data)
{
	struct kvm_flush *flush = data;

	wbinvd();
	atomic_inc(&flush->cpus);
}

/* The same, but what was written back stays cached. */
static noinline void wbnoinvd_ipi(void *data)
{
	struct kvm_flush *flush = data;

	wbnoinvd();
	atomic_inc(&flush->cpus);
}

/**
 * kvm_wbinvd_cpu_offline - write back the caches of a CPU that goes down
 *
 * A flush skips CPUs that are not online, and a CPU that goes down leaves
 * cpu_online_mask well before it writes its caches back by itself, when it stops.
 * So it does that here as well.  KVM's hotplug callback runs after the last vCPU
 * has left the CPU, and either while the CPU is still in the mask, or with all
 * other CPUs stopped: who does not find the CPU there comes after this.
 *
 * The callback also runs on all CPUs when the last VM goes.  They are active.
 *
 * Context: the CPU's hotplug thread, or interrupts disabled (stop_machine())
 */
void kvm_wbinvd_cpu_offline(void)
{
	if (!cpu_active(raw_smp_processor_id()))
		wbinvd();
}

/*
 * The CPUs in the vCPU's mask write their caches back, then it is empty.
 * Returns how many CPUs that were.
 */
static unsigned int kvm_flush_dirty_cpus(struct kvm_vcpu *vcpu)
{
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;
	struct kvm_flush flush = {};

	on_each_cpu_mask(dirty, wbinvd_ipi, &flush, true);
	/* kvm_inherit_caches_of_vcpus() may write it, too: see there. */
	(void)data_race((cpumask_clear(dirty), 0));
	return atomic_read(&flush.cpus);
}

/*
 * Without the WBINVD exit the guest's WBINVD reaches the CPU it runs on and no
 * other, so the caches of the one it leaves have to be written back at once.
 */
static void kvm_wbinvd_left_cpus(struct kvm_vcpu *vcpu, int cpu)
{
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;
	struct kvm_flush flush = {};

	if (!kvm_arch_has_noncoherent_dma(vcpu->kvm))
		return;

	/*
	 * Not the one it arrives at, which the guest's own WBINVD reaches.  That
	 * one's bit stays, if it is set: who makes the VM non-coherent at this
	 * moment may yet have to find it, for a WBINVD of before.
	 */
	smp_call_function_many(dirty, wbinvd_ipi, &flush, true);
	/* kvm_inherit_caches_of_vcpus() may write it, too: see there. */
	(void)data_race(cpumask_and(dirty, dirty, cpumask_of(cpu)));
	vcpu->stat.wbinvd_ipis += atomic_read(&flush.cpus);
}

/**
 * kvm_wbinvd_vcpu_moved - note that a vCPU is going to run on another CPU
 * @vcpu: the vCPU
 * @cpu: the CPU it is being loaded on, not the one it was loaded on last
 *
 * Context: preemption is disabled, interrupts are not
 */
void kvm_wbinvd_vcpu_moved(struct kvm_vcpu *vcpu, int cpu)
{
	if (!static_call(kvm_x86_has_wbinvd_exit)())
		kvm_wbinvd_left_cpus(vcpu, cpu);

	cpumask_set_cpu(cpu, vcpu->arch.wbinvd_dirty_mask);
}

/**
 * kvm_inherit_caches_of_vcpus - a guest may go on in this VM that ran in another one
 * @kvm: the VM, which has begun to track a file that another VM tracks
 *
 * What the guest has left in the caches there is this VM's to write back from then
 * on, and the masks of the other VM's vCPUs end with it.  It may still run, so
 * nobody knows yet on which CPUs: all of them are in the mask of each vCPU, until
 * its first WBINVD.  For vCPUs that are created later see kvm_wbinvd_vcpu_created().
 *
 * A vCPU that executes WBINVD right now may empty its mask after this, or see half of
 * it.  It runs a guest already, so it is not the one that stops in the other VM: hence
 * data_race() here and where a vCPU looks at its own mask.
 *
 * Context: any
 */
void kvm_inherit_caches_of_vcpus(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		/* The vCPU may write it, too: see above. */
		(void)data_race((cpumask_setall(vcpu->arch.wbinvd_dirty_mask), 0));
	}
}

/**
 * kvm_wbinvd_vcpu_created - note what a new vCPU's VM has inherited
 * @vcpu: the vCPU, which online_vcpus counts by now
 *
 * Either kvm_arch_inherit_caches() finds it counted, or this finds that it has been there.
 */
void kvm_wbinvd_vcpu_created(struct kvm_vcpu *vcpu)
{
	/* It was counted with a locked instruction. */
	smp_mb__after_atomic();
	if (test_bit(0, &vcpu->kvm->inherits_caches))
		cpumask_setall(vcpu->arch.wbinvd_dirty_mask);
}

/*
 * Execute the guest's WBINVD: every CPU that may hold dirty lines of the vCPU
 * writes its caches back.  Returns how many CPUs that were.
 */
static unsigned int kvm_wbinvd_noncoherent(struct kvm_vcpu *vcpu)
{
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;
	struct kvm_flush flush = {};
	unsigned int cpus = 1;
	int cpu;

	/*
	 * No preemption from the flush until the mask says that only this CPU
	 * is left, which the vCPU goes on to dirty: being loaded on another
	 * one in between would be forgotten.
	 */
	cpu = get_cpu();
	/* kvm_inherit_caches_of_vcpus() may write it, too: see there. */
	if (data_race(cpumask_any_but(dirty, cpu)) >= nr_cpu_ids) {
		wbinvd_ipi(&flush);
	} else {
		cpus = kvm_flush_dirty_cpus(vcpu);
		vcpu->stat.wbinvd_ipis += cpus - 1;
		cpumask_set_cpu(cpu, dirty);
	}
	put_cpu();

	vcpu->stat.wbinvd_flushes++;
	return cpus;
}

/*
 * The same for WBNOINVD.  All CPUs stay in the mask: none has lost what it has of
 * memory that a device may change, so a WBINVD that follows has to reach them again.
 */
static unsigned int kvm_wbnoinvd_noncoherent(struct kvm_vcpu *vcpu)
{
	struct kvm_flush flush = {};
	unsigned int cpus;

	on_each_cpu_mask(vcpu->arch.wbinvd_dirty_mask, wbnoinvd_ipi, &flush, true);
	cpus = atomic_read(&flush.cpus);
	vcpu->stat.wbinvd_ipis += cpus - 1;
	vcpu->stat.wbinvd_flushes++;
	return cpus;
}

/*
 * Only a CPU that has WBNOINVD makes a difference, and only a guest that has been
 * told so means one.
 */
static bool kvm_has_wbnoinvd(struct kvm_vcpu *vcpu)
{
	struct kvm_cpuid_entry2 *entry;

	if (!boot_cpu_has(X86_FEATURE_WBNOINVD))
		return false;

	/*
	 * What the VM has inherited is written back once, and not by each WBNOINVD.
	 * kvm_inherit_caches_of_vcpus() may write it, too: see there.
	 */
	if (data_race(cpumask_full(vcpu->arch.wbinvd_dirty_mask)) &&
	    test_bit(0, &vcpu->kvm->inherits_caches))
		return false;

	entry = kvm_find_cpuid_entry(vcpu, 0x80000008);
	return entry && entry->ebx & feature_bit(WBNOINVD);
}

/**
 * kvm_wbinvd_exit_is_wbnoinvd - which of the two has caused the exit?
 * @vcpu: the vCPU, loaded, behind an exit for WBINVD
 *
 * Both cause the same exit.  WBNOINVD is WBINVD with the prefix F3, and three bytes
 * long.  So are others with a prefix that means nothing, which are WBINVDs, hence a
 * look at the code.  Whatever is in doubt is a WBINVD, which does all that a WBNOINVD
 * does: other prefixes as well, or code that is not at hand.
 *
 * The length is asked for first, so that a WBINVD is not searched in guest memory.
 *
 * Context: as kvm_wbinvd_not_skipped(), kvm->srcu held
 */
bool kvm_wbinvd_exit_is_wbnoinvd(struct kvm_vcpu *vcpu)
{
	static const u8 wbnoinvd_code[] = { 0xf3, 0x0f, 0x09 };
	u8 code[sizeof(wbnoinvd_code)];
	struct x86_exception e;
	int len, r;

	if (!boot_cpu_has(X86_FEATURE_WBNOINVD))
		return false;

	len = static_call(kvm_x86_exit_insn_len)(vcpu);
	if (len && len != sizeof(wbnoinvd_code))
		return false;
	if (!kvm_has_wbnoinvd(vcpu) || vcpu->arch.guest_state_protected)
		return false;

	/* It has just been executed, so it is there, or not worth waiting for. */
	pagefault_disable();
	r = kvm_read_guest_virt(vcpu, kvm_get_linear_rip(vcpu), code, sizeof(code), &e);
	pagefault_enable();
	return r == X86EMUL_CONTINUE && !memcmp(code, wbnoinvd_code, sizeof(code));
}

/**
 * kvm_emulated_is_wbnoinvd - which of the two is being emulated?
 * @vcpu: the vCPU, whose emulator has decoded it
 */
bool kvm_emulated_is_wbnoinvd(struct kvm_vcpu *vcpu)
{
	struct x86_emulate_ctxt *ctxt = vcpu->arch.emulate_ctxt;

	return ctxt->rep_prefix == REPE_PREFIX && ctxt->_eip - ctxt->eip == 3 &&
	       kvm_has_wbnoinvd(vcpu);
}

/**
 * kvm_wbinvd_not_skipped - do what kvm_wbinvd_skipped() could not leave undone
 * @vcpu: the vCPU that executed WBINVD, loaded
 * @noinvd: it was WBNOINVD
 *
 * Context: process context, interrupts enabled
 * Return: how many CPUs wrote their caches back, 0 if the VM is coherent
 */
unsigned int kvm_wbinvd_not_skipped(struct kvm_vcpu *vcpu, bool noinvd)
{
	unsigned int cpus = 0;

	if (kvm_arch_has_noncoherent_dma(vcpu->kvm))
		cpus = noinvd ? kvm_wbnoinvd_noncoherent(vcpu) :
				kvm_wbinvd_noncoherent(vcpu);
	trace_kvm_wbinvd(vcpu, cpus);
	return cpus;
}

/**
 * kvm_emulate_wbinvd_not_skipped - the same for an exit of the guest
 * @vcpu: the vCPU that executed WBINVD, loaded
 *
 * Context: as kvm_wbinvd_not_skipped()
 * Return: as kvm_skip_emulated_instruction()
 */
int kvm_emulate_wbinvd_not_skipped(struct kvm_vcpu *vcpu)
{
	kvm_wbinvd_not_skipped(vcpu, kvm_wbinvd_exit_is_wbnoinvd(vcpu));
	return kvm_skip_emulated_instruction(vcpu);
}

/*
 * What the VM owes for the WBINVDs that were skipped: all CPUs that its vCPUs may
 * have dirtied write their caches back, each one once.  Returns how many did.
 */
static unsigned int kvm_flush_owed(struct kvm *kvm)
{
	struct kvm_flush owed = {};
	struct kvm_vcpu *vcpu;
	cpumask_var_t dirty;
	unsigned long i;

	/* VFIO's locks are held: do not wait for memory that can be done without. */
	if (!zalloc_cpumask_var(&dirty, GFP_NOWAIT | __GFP_NOWARN)) {
		/* Too many is right, too few is not. */
		on_each_cpu(wbinvd_ipi, &owed, true);
		return atomic_read(&owed.cpus);
	}

	kvm_for_each_vcpu(i, vcpu, kvm) {
		/*
		 * One that runs may clear bits meanwhile, not atomically.  Such
		 * a bit may be read as either: its CPU has written its caches
		 * back.
		 */
		(void)data_race((cpumask_or(dirty, dirty,
					    vcpu->arch.wbinvd_dirty_mask), 0));
	}
	on_each_cpu_mask(dirty, wbinvd_ipi, &owed, true);
	free_cpumask_var(dirty);
	return atomic_read(&owed.cpus);
}

/*
 * The pages of old roots are given back in kvm_tear_down_roots(), without VFIO's
 * locks.  One for each VM is enough: it finds all roots that are marked when it
 * begins.
 *
 * The mark of a root that is to be zapped is set under mmu_lock held for write,
 * and cleared under kvm->slots_lock and mmu_lock.  An update of the memslots
 * relies on no marked root being half zapped, hence slots_lock.  But such an
 * update holds it while it waits for page faults that user space may have to
 * resolve, perhaps in the very task that is on its way back there.  So it is only
 * tried, and tried again later by the work.
 *
 * The work holds no reference to the VM: the end of the VM cancels it, in
 * kvm_noncoherent_dma_pre_destroy_vm().  The task work holds one, and the module.
 */
#define KVM_ROOTS_TEARDOWN_RETRY	(HZ / 50 ?: 1)

static void kvm_queue_roots_teardown(struct kvm *kvm, unsigned long delay)
{
	queue_delayed_work(system_dfl_wq, &kvm->roots_teardown.work, delay);
}

static void kvm_tear_down_roots(struct kvm *kvm)
{
	struct kvm_roots_teardown *teardown = &kvm->roots_teardown;

	if (!mutex_trylock(&kvm->slots_lock)) {
		kvm_queue_roots_teardown(kvm, KVM_ROOTS_TEARDOWN_RETRY);
		return;
	}
	clear_bit(0, &teardown->pending);
	/* Before looking: a root that is marked later may not be found any more. */
	smp_mb__after_atomic();
	kvm_mmu_tear_down_roots(kvm);
	mutex_unlock(&kvm->slots_lock);
}

static void kvm_roots_teardown_task(struct callback_head *head)
{
	struct kvm *kvm = container_of(head, struct kvm,
				       roots_teardown.task_work);

	kvm_tear_down_roots(kvm);
	/*
	 * If all of its files are closed the VM ends here, which takes time, and lets
	 * go of the vendor's module.  From then on this module can be unloaded, too,
	 * but kvm_noncoherent_dma_exit() waits until nobody is here any more.
	 */
	kvm_put_kvm(kvm);
}

static void kvm_roots_teardown_work(struct work_struct *work)
{
	kvm_tear_down_roots(container_of(to_delayed_work(work), struct kvm,
					 roots_teardown.work));
}

static void kvm_schedule_roots_teardown(struct kvm *kvm)
{
	struct kvm_roots_teardown *teardown = &kvm->roots_teardown;

	/* After the roots have been marked, under mmu_lock */
	if (test_and_set_bit(0, &teardown->pending))
		return;

	/*
	 * Only in a task of the VM's own process.  Another one may have to wait
	 * in the same system call for the monitor of another VM, and would keep
	 * this one until then.  Nor must it destroy the VM, which leaves private
	 * memslots mapped where the mm is not the VM's.
	 */
	if (current->mm == kvm->mm && !(current->flags & PF_KTHREAD)) {
		/* It is held by its files, of which none may be left then. */
		kvm_get_kvm(kvm);
		/* Not possible in a task that has done its last work before it ends */
		if (!task_work_add(current, &teardown->task_work, TWA_RESUME))
			return;
		kvm_put_kvm_no_destroy(kvm);
	}
	kvm_queue_roots_teardown(kvm, 0);
}

/**
 * kvm_noncoherent_dma_init_vm - initialise what a VM has of this
 * @kvm: the VM, which is being created and is coherent
 */
void kvm_noncoherent_dma_init_vm(struct kvm *kvm)
{
	init_task_work(&kvm->roots_teardown.task_work, kvm_roots_teardown_task);
	INIT_DELAYED_WORK(&kvm->roots_teardown.work, kvm_roots_teardown_work);
}

/**
 * kvm_noncoherent_dma_pre_destroy_vm - stop what works for a VM in the background
 * @kvm: the VM, which nobody refers to any more: no task work is pending, and
 *	nothing can change its coherency.  The roots that are left go with it.
 *
 * Context: may sleep; waits for a teardown in progress, which waits for nobody
 */
void kvm_noncoherent_dma_pre_destroy_vm(struct kvm *kvm)
{
	cancel_delayed_work_sync(&kvm->roots_teardown.work);
}

/**
 * kvm_noncoherent_dma_exit - let the module be unloaded
 *
 * There is no VM any more, so no teardown is pending; but the task whose task work
 * has put the last VM, and so the vendor's module, may not have returned from
 * there.  With TASKS_RCU, which KVM selects where kernel code can be preempted, this
 * waits until each task has scheduled voluntarily or is in user space; without,
 * until it has scheduled.  It does neither between that and its return.
 */
void kvm_noncoherent_dma_exit(void)
{
	synchronize_rcu_tasks();
}

/* No SPTE with a memory type of before is in use when this returns. */
static void kvm_leave_memtypes(struct kvm *kvm)
{
	struct kvm_noncoherent_dma_stat *stat = &kvm->noncoherent_dma_stat;
	ktime_t start;

	/*
	 * Of a VM that has memory types of its own.  It may have disabled the
	 * quirk by which they depend on the flag, but when is not known: SPTEs
	 * that were made before have the type of before.
	 *
	 * A VM without vCPUs has no SPTEs.
	 */
	if (!kvm_mmu_has_memtypes(kvm) || !atomic_read(&kvm->online_vcpus))
		return;

	start = ktime_get();
	if (kvm_mmu_leave_sptes(kvm))
		kvm_schedule_roots_teardown(kvm);

	stat->zaps++;
	stat->zap_ns += ktime_to_ns(ktime_sub(ktime_get(), start));
}

/**
 * kvm_arch_register_noncoherent_dma - a VM's DMA is no longer all coherent
 * @kvm: the VM, which is coherent
 *
 * When this returns, the guest's memory types and its WBINVD are in effect on
 * all vCPUs, and what they had left in the caches before is in memory: each
 * WBINVD of the guest so far was skipped on the promise that DMA would find
 * the data there.
 *
 * The caller makes sure that this and kvm_arch_unregister_noncoherent_dma()
 * take turns and do not overlap.
 *
 * Context: may sleep; takes kvm->mmu_lock.  Waits for vCPUs to leave the guest
 *	and for CPUs to write their caches back, for nothing that user space
 *	can hold up.
 */
void kvm_arch_register_noncoherent_dma(struct kvm *kvm)
{
	set_bit(KVM_NONCOHERENT_DMA, &kvm->noncoherent_dma);
	/* Before the vCPUs are counted and their dirty masks are read */
	smp_mb__after_atomic();

	kvm->noncoherent_dma_stat.changes++;
	kvm_leave_memtypes(kvm);

	/* Last, when no vCPU dirties lines through an old mapping any more. */
	if (atomic_read(&kvm->online_vcpus))
		kvm->noncoherent_dma_stat.flushes += kvm_flush_owed(kvm);
}

/**
 * kvm_arch_unregister_noncoherent_dma - a VM's DMA is all coherent again
 * @kvm: the VM, which is non-coherent
 *
 * All guest memory is write-back again when this returns.  Nothing is flushed:
 * the DMA that needed it has ended.
 *
 * Context: as kvm_arch_register_noncoherent_dma()
 */
void kvm_arch_unregister_noncoherent_dma(struct kvm *kvm)
{
	clear_bit(KVM_NONCOHERENT_DMA, &kvm->noncoherent_dma);
	/* As above: a vCPU that is not counted has not read the old state. */
	smp_mb__after_atomic();

	kvm->noncoherent_dma_stat.changes++;
	kvm_leave_memtypes(kvm);
}
