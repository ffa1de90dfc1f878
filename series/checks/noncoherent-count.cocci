// SPDX-License-Identifier: GPL-2.0-only
/// a VM's non-coherent DMA is counted, and its flag written, in one place only
///
// The whole protocol of noncoherent_dma.c rests on this.
// look in: all with noncoherent_dma
virtual report

// A file that shows it is read-only.
@read@
expression E, name, dir;
position p;
@@
(
 debugfs_create_atomic_t@p(name, 0444, dir, &E.noncoherent_dma_count)
|
 atomic_read@p(&E->noncoherent_dma_count)
|
 atomic_read_acquire@p(&E->noncoherent_dma_count)
|
 atomic_read@p(&E.noncoherent_dma_count)
)

@counted@
expression E;
position p != read.p;
identifier f;
@@
(
 f@p(..., &E->noncoherent_dma_count, ...)
|
 f@p(..., &E->arch.noncoherent_dma_count, ...)
|
 f@p(..., &E.noncoherent_dma_count, ...)
|
 f@p(..., &E->noncoherent_dma)
)

@script:python depends on report@
p << counted.p;
f << counted.f;
@@
for one in p:
    if f not in ("atomic_read", "atomic_read_acquire", "test_bit_acquire") and (
            not one.file.endswith("/noncoherent_dma.c") or one.current_element not in (
            "kvm_arch_register_noncoherent_dma", "kvm_arch_unregister_noncoherent_dma")):
        coccilib.report.print_report(one, "%s() of non-coherent DMA in %s()"
                                     % (f, one.current_element))

@assigned@
expression E, V;
position p;
@@
(
 E->arch.noncoherent_dma_count@p = V
|
 E->noncoherent_dma_count@p = V
|
 E->noncoherent_dma@p = V
)

@script:python depends on report@
p << assigned.p;
@@
coccilib.report.print_report(p[0], "assignment to the count or the flag of non-coherent DMA")
