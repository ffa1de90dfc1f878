// SPDX-License-Identifier: GPL-2.0-only
/// what user space makes KVM allocate is charged to it
///
// look in: virt/kvm/vfio.c
// look in: arch/x86/kvm/noncoherent_dma.c
virtual report

@plain@
identifier f =~ "^k[vm]?[mzc]alloc.*|kvmalloc.*|kvzalloc.*$";
position p;
@@
 f@p(..., GFP_KERNEL)

@script:python depends on report@
p << plain.p;
f << plain.f;
@@
coccilib.report.print_report(p[0], "%s() with GFP_KERNEL, not GFP_KERNEL_ACCOUNT" % f)
