// SPDX-License-Identifier: GPL-2.0-only
/// a VM is zapped inside kvm->srcu, and kvm->srcu is waited for outside of it
///
// The zap walks the memslots.  Who waits for readers and is one waits for ever.
// look in: own
virtual report

@outside exists@
identifier f;
expression E;
position p;
@@
 f(...)
 {
 ... when != srcu_read_lock(&E->srcu)
     when any
 kvm_zap_gfn_range@p(E, ...)
 ... when any
 }

@script:python depends on report@
p << outside.p;
@@
coccilib.report.print_report(p[0], "kvm_zap_gfn_range() outside of kvm->srcu")

@left_before exists@
expression E;
position p;
@@
 srcu_read_unlock(&E->srcu, ...);
 ... when != srcu_read_lock(&E->srcu)
     when any
 kvm_zap_gfn_range@p(E, ...)

@script:python depends on report@
p << left_before.p;
@@
coccilib.report.print_report(p[0], "kvm_zap_gfn_range() when kvm->srcu has been left")

@waits exists@
expression E;
identifier f =~ "^synchronize_srcu(_expedited)?$";
position p;
@@
 srcu_read_lock(&E->srcu)
 ... when != srcu_read_unlock(&E->srcu, ...)
     when any
 f@p(&E->srcu)

@script:python depends on report@
p << waits.p;
f << waits.f;
@@
coccilib.report.print_report(p[0], "%s() inside the same kvm->srcu" % f)
