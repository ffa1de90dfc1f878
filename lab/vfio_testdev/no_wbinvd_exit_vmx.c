// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes KVM believe that the processor's VMX cannot exit on WBINVD, as some
 * cannot and none that is emulated: while this module is loaded, the control is
 * not in the configuration from which KVM makes each VMCS and which it asks
 * whether there is such an exit.  A guest's WBINVD then really stays in the
 * guest, of all vCPUs created meanwhile.
 *
 * Load it when there is no VM.  An open /dev/kvm keeps kvm_intel in its place.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/vmalloc.h>

#include "vmx/capabilities.h"

/* kvm_intel's vmcs_config.cpu_based_2nd_exec_ctrl */
static u32 *controls;

/* Modules may not call kallsyms_lookup_name(), but may ask where it is. */
static void *look_up(const char *name)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long (*lookup)(const char *name);

	if (register_kprobe(&probe))
		return NULL;
	lookup = (void *)probe.addr;
	unregister_kprobe(&probe);
	return (void *)lookup(name);
}

/* Its page may be read-only by now. */
static int put_controls(u32 value)
{
	struct page *page = vmalloc_to_page(controls);
	void *mapped = page ? vmap(&page, 1, VM_MAP, PAGE_KERNEL) : NULL;

	if (!mapped)
		return -ENOMEM;
	*(u32 *)(mapped + offset_in_page(controls)) = value;
	vunmap(mapped);
	return 0;
}

static int __init no_wbinvd_exit_init(void)
{
	struct vmcs_config *config = look_up("kvm_intel:vmcs_config");

	if (!config)
		return -ENOENT;
	controls = &config->cpu_based_2nd_exec_ctrl;
	if (!(*controls & SECONDARY_EXEC_WBINVD_EXITING))
		return -ENODEV;
	return put_controls(*controls & ~SECONDARY_EXEC_WBINVD_EXITING);
}
module_init(no_wbinvd_exit_init);

static void __exit no_wbinvd_exit_exit(void)
{
	if (put_controls(*controls | SECONDARY_EXEC_WBINVD_EXITING))
		pr_err("the exit cannot be given back\n");
}
module_exit(no_wbinvd_exit_exit);

MODULE_DESCRIPTION("Test fixture: no WBINVD exit of VMX");
MODULE_LICENSE("GPL");
