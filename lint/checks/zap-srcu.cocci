// SPDX-License-Identifier: GPL-2.0-only
/// a VM leaves its SPTEs in one way, which waits for no page fault
///
// That is kvm_mmu_leave_sptes(): shadow pages inside kvm->srcu, since memslots are
// looked at; then, in the same write section of mmu_lock, the roots and the request
// that makes vCPUs leave them.  The pages of the roots are torn down under slots_lock.
// look in: own
// look in: arch/x86/kvm/mmu/mmu.c
virtual report

@other@
identifier f =~ "^(kvm_zap_gfn_range|kvm_mmu_zap_all(_fast)?|kvm_tdp_mmu_zap_all|kvm_arch_flush_shadow_all)$";
position p;
@@
 f@p(...)

@script:python depends on report@
p << other.p;
f << other.f;
@@
for one in p:
    if not one.file.endswith("/mmu.c"):
        coccilib.report.print_report(one, "%s() in %s(), not kvm_mmu_leave_sptes()"
                                     % (f, one.current_element))

@outside exists@
expression E;
position p;
@@
 kvm_mmu_leave_sptes(...)
 {
 ... when != srcu_read_lock(&E->srcu)
     when any
 kvm_zap_shadow_pages@p(E)
 ... when any
 }

@script:python depends on report@
p << outside.p;
@@
coccilib.report.print_report(p[0], "shadow pages are zapped outside of kvm->srcu")

@left_before exists@
expression E;
position p;
@@
 kvm_mmu_leave_sptes(...)
 {
 ... when any
 srcu_read_unlock(&E->srcu, ...);
 ... when != srcu_read_lock(&E->srcu)
     when any
 kvm_zap_shadow_pages@p(E)
 ... when any
 }

@script:python depends on report@
p << left_before.p;
@@
coccilib.report.print_report(p[0], "shadow pages are zapped when kvm->srcu has been left")

// Zapping shadow pages may drop mmu_lock.
@roots@
expression E;
position p;
@@
 kvm_leave_tdp_mmu_sptes(...)
 {
 <+...
(
 kvm_tdp_mmu_invalidate_all_roots@p(E)
|
 kvm_tdp_mmu_invalidate_roots@p(E, ...)
)
 ...+>
 }

@roots_ok exists@
expression E;
position roots.p;
identifier f;
@@
 lockdep_assert_held_write(&E->mmu_lock);
 ... when != write_unlock(&E->mmu_lock)
 f@p(E, ...);
 ... when != write_unlock(&E->mmu_lock)
     when != cond_resched_rwlock_write(...)
     when != kvm_zap_shadow_pages(...)
     when != kvm_tdp_mmu_zap_leafs(...)
 kvm_make_all_cpus_request(E, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)

@script:python depends on report && !roots_ok@
p << roots.p;
@@
coccilib.report.print_report(p[0], "roots are invalidated without mmu_lock, or vCPUs not made to leave them under it")

@torn_down@
position p;
@@
 kvm_mmu_tear_down_roots@p(...)

@torn_down_ok exists@
expression E;
identifier f;
position torn_down.p;
@@
(
 if (!mutex_trylock(&E->slots_lock)) { ... return ...; }
|
 mutex_lock(&E->slots_lock);
)
 ... when != mutex_unlock(&E->slots_lock)
 f@p(E)

@script:python depends on report && !torn_down_ok@
p << torn_down.p;
@@
if not p[0].file.endswith("/mmu.c"):
    coccilib.report.print_report(p[0], "roots are torn down without slots_lock")
