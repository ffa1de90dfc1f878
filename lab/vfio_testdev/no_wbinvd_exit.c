// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes KVM believe that the processor cannot exit on WBINVD, as some with VMX
 * cannot. None that can be emulated lacks that, and SVM always has it, so the
 * function that tells KVM is made to return false while this module is loaded.
 *
 * A guest's WBINVD still exits here. What can be shown is the rest: that a vCPU
 * has the CPUs it leaves written back.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/ptrace.h>

static int return_false(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	regs_set_return_value(regs, false);
	return 0;
}

static struct kretprobe probe = {
	.handler = return_false,
	.kp.symbol_name = "svm_has_wbinvd_exit",
	.maxactive = 64,
};

static int __init no_wbinvd_exit_init(void)
{
	return register_kretprobe(&probe);
}
module_init(no_wbinvd_exit_init);

static void __exit no_wbinvd_exit_exit(void)
{
	unregister_kretprobe(&probe);
}
module_exit(no_wbinvd_exit_exit);

MODULE_DESCRIPTION("Test fixture: no WBINVD exit");
MODULE_LICENSE("GPL");
