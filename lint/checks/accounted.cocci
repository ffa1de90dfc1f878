// SPDX-License-Identifier: GPL-2.0-only
/// what user space makes KVM allocate is charged to it
///
// look in: virt/kvm/vfio.c
// look in: arch/x86/kvm/noncoherent_dma.c
virtual report

// What must not wait is not charged; it is of no process.
@charged@
identifier f =~ "^k[vm]?[mzc]alloc.*$";
expression E;
position p;
@@
(
 f@p(..., GFP_KERNEL_ACCOUNT)
|
 f@p(..., GFP_KERNEL_ACCOUNT | E)
|
 f@p(..., GFP_NOWAIT)
|
 f@p(..., GFP_NOWAIT | E)
)

// The macros of newer kernels charge nobody unless they are told to.
@plain@
identifier f =~ "^k[vm]?[mzc]alloc.*$";
position p != charged.p;
@@
 f@p(...)

@script:python depends on report@
p << plain.p;
f << plain.f;
@@
coccilib.report.print_report(p[0], "%s() without GFP_KERNEL_ACCOUNT" % f)
