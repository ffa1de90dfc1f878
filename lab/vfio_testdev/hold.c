// SPDX-License-Identifier: GPL-2.0-only
/*
 * Holds the first thread that comes to a function of the kernel, or back from it,
 * until it is let go: a test can then do, at the one moment that matters, what
 * would meet that moment once in a million runs.
 *
 * The thread keeps its CPU meanwhile, with preemption disabled, so whatever else
 * the test does has to be done on other CPUs.
 *
 *	function	where, as kprobes name it, kvm:kvm_zap_gfn_range for example
 *	second		only if that is its second argument; 0 is any
 *	at_return	when it returns, not when it is called
 *	for_ms		lets go by itself after so many milliseconds; 0 is not
 *	armed		0: nobody is held until this is 1
 *	held		read: 1 from when somebody is held; 2 if nobody has let go in time
 *	go		write 1 to let go
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/timekeeping.h>

/* Long enough for any test, too short for the watchdogs, by the clock of both */
#define MOST_NS		(10 * NSEC_PER_SEC)

static char *function;
module_param(function, charp, 0444);
static unsigned long second;
module_param(second, ulong, 0444);
static bool at_return;
module_param(at_return, bool, 0444);
static int for_ms;
module_param(for_ms, int, 0444);
static bool armed = true;
module_param(armed, bool, 0644);
static int held;
module_param(held, int, 0444);
static bool go;
module_param(go, bool, 0644);

static void hold(void)
{
	u64 begin = ktime_get_mono_fast_ns(), end = begin + MOST_NS;

	if (!READ_ONCE(armed) || cmpxchg(&held, 0, 1))
		return;
	while (!READ_ONCE(go) && ktime_get_mono_fast_ns() < end) {
		if (for_ms && ktime_get_mono_fast_ns() - begin >= for_ms * NSEC_PER_MSEC)
			return;
		mdelay(1);
	}
	if (!READ_ONCE(go)) {
		WRITE_ONCE(held, 2);	/* first: the console is slow */
		pr_err("nobody has let go\n");
	}
}

static bool is_wanted(struct pt_regs *regs)
{
	return !second || regs_get_kernel_argument(regs, 1) == second;
}

static int called(struct kprobe *probe, struct pt_regs *regs)
{
	if (is_wanted(regs))
		hold();
	return 0;
}

static int called_to_return(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	return !is_wanted(regs);	/* other than 0: do not catch the return */
}

static int returned(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	hold();
	return 0;
}

static struct kprobe call_probe = { .pre_handler = called };

static struct kretprobe return_probe = {
	.entry_handler = called_to_return,
	.handler = returned,
	.maxactive = 16,
};

static int __init hold_init(void)
{
	if (!function)
		return -EINVAL;
	call_probe.symbol_name = function;
	return_probe.kp.symbol_name = function;
	return at_return ? register_kretprobe(&return_probe) : register_kprobe(&call_probe);
}
module_init(hold_init);

static void __exit hold_exit(void)
{
	if (at_return)
		unregister_kretprobe(&return_probe);
	else
		unregister_kprobe(&call_probe);
}
module_exit(hold_exit);

MODULE_DESCRIPTION("Test fixture: holds a thread at a function");
MODULE_LICENSE("GPL");
