// SPDX-License-Identifier: GPL-2.0-only
/*
 * A budget for the WBINVDs of a non-coherent VM
 *
 * A WBINVD takes milliseconds, during which all who share a cache with the CPUs
 * that execute it stall, and afterwards run without their caches.  A guest whose
 * WBINVDs are real can do that to its neighbours at will.  So the time that they
 * may take can be limited, by the module parameter wbinvd_budget for each VM, and
 * for one VM by its monitor, with KVM_CAP_X86_WBINVD_LIMIT.  The limit is a share
 * of time, in thousandths.
 *
 * What a flush costs depends on the sizes of the caches, on what is in them, and on
 * how many CPUs have to be reached.  So the VM pays for each the time that it took.
 * As time goes by it gets its share of that, up to what a second brings.  A flush
 * may begin while there is something left.  Its price is known only afterwards, so
 * the VM may then owe some, and the next one has to wait until that is paid.
 *
 * A WBINVD may take any time, but it may not be left out: the guest relies on what
 * it has written being in memory when the next instruction begins.  So a WBINVD
 * that has to wait neither flushes nor ends.  Its vCPU sleeps, without kvm->srcu
 * and without any lock, and is woken by all that wakes a halted one.  What that is
 * (an event for the guest, a signal for its thread) is served with the instruction
 * pointer still at the WBINVD, which is executed again after that.
 *
 * The vCPUs of a VM that wait at the same time share a flush, and only one is being
 * executed for them.  It is right for each of those whose WBINVD had begun before
 * the flush: they are on the list of waiters, under the lock, since they left the
 * guest, so their masks have all CPUs that may hold what they have written, and they
 * write nothing until they are told that the flush is done.  One that begins to
 * wait later is not told, and neither is one that has stopped waiting.
 *
 * The flush that a VM owes when it becomes non-coherent is not the guest's, and
 * never waits.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/kvm_host.h>
#include <linux/list.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>
#include <linux/spinlock.h>
#include <linux/timekeeping.h>

#include "kvm_emulate.h"
#include "lapic.h"
#include "noncoherent_dma.h"
#include "wbinvd_budget.h"
#include "x86.h"

#define CREATE_TRACE_POINTS
#include "wbinvd_budget_trace.h"

#define KVM_WBINVD_ALL_TIME	1000	/* per mille */

/* No flush is paid for more than this in advance. */
#define KVM_WBINVD_SAVED_NS	NSEC_PER_SEC

/*
 * Who waits looks that often whether there still is a limit, and the VM still not
 * coherent: nobody tells them.
 */
#define KVM_WBINVD_LOOK_NS	(100 * NSEC_PER_MSEC)

/* Credit is counted in ns * per mille, so that nothing is lost by dividing. */
#define KVM_WBINVD_MAX_NS	(S64_MAX / KVM_WBINVD_ALL_TIME / 2)

/**
 * struct kvm_wbinvd_waiter - a vCPU whose WBINVD waits, on the stack of its thread
 * @node: in the VM's list of them
 * @vcpu: the vCPU
 * @noinvd: it is a WBNOINVD
 * @covered: the flush that is being executed is for this one, too
 * @done: so was one that has been executed
 * @invalidated: by a WBINVD.  Not if the VM had become coherent, and nothing was done
 */
struct kvm_wbinvd_waiter {
	struct list_head node;
	struct kvm_vcpu *vcpu;
	bool noinvd;
	bool covered;
	bool done;
	bool invalidated;
};

struct kvm_wbinvd_alarm {
	struct hrtimer timer;
	struct kvm_vcpu *vcpu;
};

static unsigned int __read_mostly wbinvd_budget;

static int kvm_wbinvd_set_budget(const char *val, const struct kernel_param *kp)
{
	return param_set_uint_minmax(val, kp, 0, KVM_WBINVD_ALL_TIME);
}

static const struct kernel_param_ops kvm_wbinvd_budget_ops = {
	.set = kvm_wbinvd_set_budget,
	.get = param_get_uint,
};

module_param_cb(wbinvd_budget, &kvm_wbinvd_budget_ops, &wbinvd_budget, 0644);
MODULE_PARM_DESC(wbinvd_budget,
		 "Time that the WBINVDs of a VM may take, in thousandths (0: any)");

/* Per mille of time, 0 if there is no limit.  Both may change at any time. */
static unsigned int kvm_wbinvd_limit(struct kvm *kvm)
{
	unsigned int all = READ_ONCE(wbinvd_budget);
	unsigned int own = READ_ONCE(kvm->wbinvd_budget.limit);

	return min_not_zero(all, own);
}

/**
 * kvm_wbinvd_init_budget - initialise what a VM has of this
 * @kvm: the VM, which is being created
 */
void kvm_wbinvd_init_budget(struct kvm *kvm)
{
	struct kvm_wbinvd_budget *budget = &kvm->wbinvd_budget;

	raw_spin_lock_init(&budget->lock);
	INIT_LIST_HEAD(&budget->waiters);
}

/**
 * kvm_wbinvd_can_be_limited - does a guest's WBINVD exit?
 *
 * Return: what KVM_CHECK_EXTENSION says of KVM_CAP_X86_WBINVD_LIMIT
 */
bool kvm_wbinvd_can_be_limited(void)
{
	return static_call(kvm_x86_has_wbinvd_exit)();
}

/**
 * kvm_wbinvd_set_limit - a VM's monitor sets a limit of its own
 * @kvm: the VM
 * @cap: its KVM_CAP_X86_WBINVD_LIMIT: per mille of time, 0 for none
 *
 * It can only lower what wbinvd_budget allows.
 *
 * Return: 0, or -EINVAL
 */
int kvm_wbinvd_set_limit(struct kvm *kvm, const struct kvm_enable_cap *cap)
{
	if (!kvm_wbinvd_can_be_limited() || cap->flags ||
	    cap->args[0] > KVM_WBINVD_ALL_TIME ||
	    cap->args[1] || cap->args[2] || cap->args[3])
		return -EINVAL;

	WRITE_ONCE(kvm->wbinvd_budget.limit, cap->args[0]);
	return 0;
}

/*
 * Add to the credit what time has brought.  Nobody does that when the limit changes:
 * the new one counts from the last time, up to what may be saved.
 */
static void kvm_wbinvd_refill(struct kvm *kvm, unsigned int limit)
{
	struct kvm_wbinvd_budget *budget = &kvm->wbinvd_budget;
	u64 now = ktime_get_ns();
	s64 ns = min_t(u64, now - budget->refilled, KVM_WBINVD_MAX_NS);

	budget->refilled = now;
	budget->credit = min_t(s64, budget->credit + ns * limit,
			       (s64)KVM_WBINVD_SAVED_NS * limit);
}

/* How long to wait before looking whether a flush may begin; 0 if it may */
static u64 kvm_wbinvd_wait_ns(struct kvm *kvm)
{
	struct kvm_wbinvd_budget *budget = &kvm->wbinvd_budget;
	unsigned int limit = kvm_wbinvd_limit(kvm);

	lockdep_assert_held(&budget->lock);

	/* Who executes it wakes all others. */
	if (budget->flushing)
		return KVM_WBINVD_LOOK_NS;
	if (!limit || !kvm_arch_has_noncoherent_dma(kvm))
		return 0;

	kvm_wbinvd_refill(kvm, limit);
	if (budget->credit > 0)
		return 0;
	return min_t(u64, div_u64(-budget->credit, limit) + 1, KVM_WBINVD_LOOK_NS);
}

/* Callable in any context */
static void kvm_wbinvd_wake(struct kvm_vcpu *vcpu)
{
	kvm_make_request(KVM_REQ_UNBLOCK, vcpu);
	kvm_vcpu_wake_up(vcpu);
}

/* Execute it now.  Returns on how many CPUs, and in @ns how long that took. */
static unsigned int kvm_wbinvd_execute(struct kvm_vcpu *vcpu, bool noinvd, u64 *ns)
{
	unsigned int cpus;
	u64 start;

	/* The VM does not pay for the time of others who preempt this task. */
	preempt_disable();
	start = ktime_get_ns();
	cpus = kvm_wbinvd_not_skipped(vcpu, noinvd);
	*ns = ktime_get_ns() - start;
	preempt_enable();
	return cpus;
}

static void kvm_wbinvd_charge(struct kvm_vcpu *vcpu, u64 ns)
{
	struct kvm_wbinvd_budget *budget = &vcpu->kvm->wbinvd_budget;
	unsigned int limit = kvm_wbinvd_limit(vcpu->kvm);

	lockdep_assert_held(&budget->lock);

	if (limit)
		kvm_wbinvd_refill(vcpu->kvm, limit);
	budget->credit -= (s64)min_t(u64, ns, KVM_WBINVD_MAX_NS) * KVM_WBINVD_ALL_TIME;
	vcpu->stat.wbinvd_flush_ns += ns;
}

/*
 * One flush for all that wait.  The vCPU takes over the CPUs that the others may
 * have dirtied: a CPU too many in its mask costs time, one too few data.  It is a
 * WBINVD if it is one for any of them.
 *
 * Called, and returns, with the lock held, but does not hold it meanwhile.
 */
static void kvm_wbinvd_flush_for_all(struct kvm_vcpu *vcpu)
{
	struct kvm_wbinvd_budget *budget = &vcpu->kvm->wbinvd_budget;
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;
	struct kvm_wbinvd_waiter *waiter;
	bool noinvd = true;
	unsigned int cpus;
	u64 ns;

	lockdep_assert_held(&budget->lock);

	list_for_each_entry(waiter, &budget->waiters, node) {
		waiter->covered = true;
		noinvd = noinvd && waiter->noinvd;
		/*
		 * This task cannot be moved while it holds the lock, so no bit
		 * of its own is lost.  The others can be moved in their sleep.
		 * Such a bit may be read as either: their guest has not run
		 * there.
		 */
		(void)data_race((cpumask_or(dirty, dirty,
					    waiter->vcpu->arch.wbinvd_dirty_mask), 0));
	}
	budget->flushing = true;
	raw_spin_unlock(&budget->lock);

	cpus = kvm_wbinvd_execute(vcpu, noinvd, &ns);

	raw_spin_lock(&budget->lock);
	budget->flushing = false;
	kvm_wbinvd_charge(vcpu, ns);
	list_for_each_entry(waiter, &budget->waiters, node) {
		waiter->done = waiter->covered;
		waiter->invalidated = waiter->done && cpus && !noinvd;
		/* Also one that is not done: it may have to execute the next. */
		if (waiter->vcpu != vcpu)
			kvm_wbinvd_wake(waiter->vcpu);
	}
}

static enum hrtimer_restart kvm_wbinvd_alarm(struct hrtimer *timer)
{
	kvm_wbinvd_wake(container_of(timer, struct kvm_wbinvd_alarm, timer)->vcpu);
	return HRTIMER_NORESTART;
}

/*
 * Sleep for @ns at most, as a halted vCPU does.  Returns true if there is something
 * that the vCPU has to leave its WBINVD for.
 *
 * It is halted in the way in which async page faults halt a vCPU: all that such a
 * one is woken by, and the timers and posted interrupts that go on without it, are
 * in kvm_vcpu_block().  Nobody else looks at that while the vCPU's mutex is held.
 */
static bool kvm_wbinvd_sleep(struct kvm_vcpu *vcpu, u64 ns)
{
	struct kvm_wbinvd_alarm alarm = { .vcpu = vcpu };
	bool hv_timer = kvm_lapic_hv_timer_in_use(vcpu);
	bool unhalted, leave;

	hrtimer_setup_on_stack(&alarm.timer, kvm_wbinvd_alarm, CLOCK_MONOTONIC,
			       HRTIMER_MODE_REL);
	hrtimer_start(&alarm.timer, ns_to_ktime(ns), HRTIMER_MODE_REL);

	/* That one runs only in the guest: see vcpu_block(). */
	if (hv_timer)
		kvm_lapic_switch_to_sw_timer(vcpu);

	/*
	 * A kick that has found the vCPU running is for its next HLT, and only that
	 * takes it away: it would end each wait until then.  One that comes
	 * meanwhile ends this one.
	 */
	unhalted = xchg(&vcpu->arch.pv.pv_unhalted, false);

	/*
	 * What the exit handlers have called holds nothing that kvm->srcu protects,
	 * and what called them lets go of it between two exits.
	 */
	vcpu->arch.apf.halted = true;
	kvm_vcpu_srcu_read_unlock(vcpu);
	kvm_vcpu_block(vcpu);
	kvm_vcpu_srcu_read_lock(vcpu);
	leave = kvm_arch_vcpu_runnable(vcpu) || kvm_cpu_has_pending_timer(vcpu) ||
		signal_pending(current);
	vcpu->arch.apf.halted = false;

	/* Others only ever set it. */
	if (unhalted)
		vcpu->arch.pv.pv_unhalted = true;

	if (hv_timer)
		kvm_lapic_switch_to_hv_timer(vcpu);
	hrtimer_cancel(&alarm.timer);
	destroy_hrtimer_on_stack(&alarm.timer);
	return leave;
}

/*
 * The same for a guest whose registers are hidden.  It has made a call for its WBINVD
 * and goes on behind that: it cannot be made to come back.  So nothing that it can do
 * itself ends the wait, or it would never wait.  What there is for it comes late, as
 * to a vCPU whose thread does not get a CPU.
 */
static bool kvm_wbinvd_sleep_protected(struct kvm_vcpu *vcpu, u64 ns)
{
	struct rcuwait *wait = kvm_arch_vcpu_get_wait(vcpu);
	ktime_t expires = ns_to_ktime(ns);

	kvm_vcpu_srcu_read_unlock(vcpu);
	prepare_to_rcuwait(wait);
	set_current_state(TASK_INTERRUPTIBLE);
	/* After both: kvm_wbinvd_wake() makes the request and then looks for who waits. */
	if (!kvm_test_request(KVM_REQ_UNBLOCK, vcpu))
		schedule_hrtimeout(&expires, HRTIMER_MODE_REL);
	finish_rcuwait(wait);
	kvm_clear_request(KVM_REQ_UNBLOCK, vcpu);
	kvm_vcpu_srcu_read_lock(vcpu);
	return signal_pending(current);
}

/* The CPUs noted before have been flushed, and the guest has not run since. */
static void kvm_wbinvd_note_this_cpu_only(struct kvm_vcpu *vcpu)
{
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;
	int cpu = get_cpu();

	cpumask_clear(dirty);
	cpumask_set_cpu(cpu, dirty);
	put_cpu();
}

/* Returns false if the WBINVD has to be executed again. */
static bool kvm_wbinvd_within_budget(struct kvm_vcpu *vcpu, bool noinvd)
{
	struct kvm_wbinvd_budget *budget = &vcpu->kvm->wbinvd_budget;
	struct kvm_wbinvd_waiter self = { .vcpu = vcpu, .noinvd = noinvd };
	bool flushed = false, leave = false;
	u64 since = 0, ns;

	raw_spin_lock(&budget->lock);
	list_add_tail(&self.node, &budget->waiters);
	while (!self.done && !leave) {
		ns = kvm_wbinvd_wait_ns(vcpu->kvm);
		if (!ns) {
			flushed = true;
			kvm_wbinvd_flush_for_all(vcpu);
			continue;
		}
		raw_spin_unlock(&budget->lock);
		if (!since) {
			since = ktime_get_ns();
			vcpu->stat.wbinvd_delays++;
		}
		leave = vcpu->arch.guest_state_protected ?
			kvm_wbinvd_sleep_protected(vcpu, ns) : kvm_wbinvd_sleep(vcpu, ns);
		raw_spin_lock(&budget->lock);
	}
	list_del(&self.node);
	raw_spin_unlock(&budget->lock);

	if (self.done && !flushed) {
		if (self.invalidated)
			kvm_wbinvd_note_this_cpu_only(vcpu);
		vcpu->stat.wbinvd_shared++;
	}
	if (since) {
		ns = ktime_get_ns() - since;
		vcpu->stat.wbinvd_delay_ns += ns;
		trace_kvm_wbinvd_delayed(vcpu, ns, flushed ? KVM_WBINVD_EXECUTED :
					 self.done ? KVM_WBINVD_SHARED :
					 KVM_WBINVD_INTERRUPTED);
	}
	if (self.done)
		return true;

	/* Its monitor wants the thread now, so the guest gets into debt. */
	if (vcpu->arch.guest_state_protected) {
		kvm_wbinvd_execute(vcpu, noinvd, &ns);
		raw_spin_lock(&budget->lock);
		kvm_wbinvd_charge(vcpu, ns);
		raw_spin_unlock(&budget->lock);
		return true;
	}
	return false;
}

static bool kvm_wbinvd_is_free(struct kvm *kvm)
{
	return !kvm_wbinvd_limit(kvm) || !kvm_arch_has_noncoherent_dma(kvm);
}

/**
 * kvm_emulate_wbinvd_contained - kvm_emulate_wbinvd_not_skipped(), within the budget
 * @vcpu: the vCPU that executed WBINVD, loaded
 *
 * Context: process context, preemption and interrupts enabled, kvm->srcu held
 *	once, by kvm_vcpu_srcu_read_lock().  May sleep, without it.
 * Return: as kvm_skip_emulated_instruction(); also 1 if the guest has to execute it
 *	again, when what interrupted it has been seen to
 */
int kvm_emulate_wbinvd_contained(struct kvm_vcpu *vcpu)
{
	if (kvm_wbinvd_is_free(vcpu->kvm))
		return kvm_emulate_wbinvd_not_skipped(vcpu);

	if (!kvm_wbinvd_within_budget(vcpu, kvm_wbinvd_exit_is_wbnoinvd(vcpu)))
		return 1;
	return kvm_skip_emulated_instruction(vcpu);
}

/**
 * kvm_wbinvd_emulated - the same for the emulator
 * @vcpu: the vCPU that executed WBINVD, loaded
 *
 * Context: as kvm_emulate_wbinvd_contained()
 * Return: X86EMUL_CONTINUE, or what ends an emulation without any effect on the
 *	guest: it goes on at the same instruction
 */
int kvm_wbinvd_emulated(struct kvm_vcpu *vcpu)
{
	bool noinvd = kvm_emulated_is_wbnoinvd(vcpu);

	if (kvm_wbinvd_is_free(vcpu->kvm)) {
		kvm_wbinvd_not_skipped(vcpu, noinvd);
		return X86EMUL_CONTINUE;
	}
	return kvm_wbinvd_within_budget(vcpu, noinvd) ? X86EMUL_CONTINUE :
							X86EMUL_INTERCEPTED;
}
