// SPDX-License-Identifier: GPL-2.0-only
/// no WARN or BUG that user space could reach
///
// Which is shown for each that there is in lint/checks/exceptions.
// look in: own
virtual report

@warn@
identifier w =~ "^(WARN|WARN_ON|WARN_ONCE|WARN_ON_ONCE|WARN_TAINT|BUG|BUG_ON|KVM_BUG|KVM_BUG_ON|VM_BUG_ON|VM_WARN_ON|VM_WARN_ON_ONCE|panic|dump_stack|__warn|KVM_MMU_WARN_ON)$";
position p;
@@
 w@p(...)

@script:python depends on report@
p << warn.p;
w << warn.w;
@@
coccilib.report.print_report(p[0], "%s() in %s()" % (w, p[0].current_element))
