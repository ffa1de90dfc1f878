// SPDX-License-Identifier: GPL-2.0-only
/// a VM's non-coherent files are counted, and its flag written, in one place only
///
// The whole protocol of noncoherent_dma.c rests on this: who registers a VM and
// who unregisters it take turns, since the device does so for its first and its
// last file, and nobody but these two writes the flag.  What is left of the base's
// own count is its place in the structure.
// look in: all with noncoherent_dma|noncoherent_files|kvm_arch_(un)?register_noncoherent_dma
virtual report

// A file that shows it is read-only.
@read@
expression E, name, dir;
position p;
@@
(
 debugfs_create_ulong@p(name, 0444, dir, &E->noncoherent_dma)
|
 test_bit_acquire@p(KVM_NONCOHERENT_DMA, &E->noncoherent_dma)
)

@written@
expression E;
position p != read.p;
identifier f;
@@
 f@p(..., &E->noncoherent_dma, ...)

@script:python depends on report@
p << written.p;
f << written.f;
@@
for one in p:
    if not one.file.endswith("/noncoherent_dma.c") or (f, one.current_element) not in (
            ("set_bit", "kvm_arch_register_noncoherent_dma"),
            ("clear_bit", "kvm_arch_unregister_noncoherent_dma")):
        coccilib.report.print_report(one, "%s() of the flag of non-coherent DMA in %s()"
                                     % (f, one.current_element))

@assigned@
expression E, V;
position p;
@@
 E->noncoherent_dma@p = V

@script:python depends on report@
p << assigned.p;
@@
coccilib.report.print_report(p[0], "assignment to the flag of non-coherent DMA")

@another@
expression E;
position p;
@@
(
 E->noncoherent_dma_count@p
|
 E.noncoherent_dma_count@p
)

@script:python depends on report@
p << another.p;
@@
for one in p:
    coccilib.report.print_report(one, "a second count of non-coherent DMA in %s()"
                                 % one.current_element)

@turn@
expression E;
position p, q;
@@
(
 if (!E->noncoherent_files++@q)
	kvm_arch_register_noncoherent_dma@p(...);
|
 if (!--@q E->noncoherent_files)
	kvm_arch_unregister_noncoherent_dma@p(...);
)

@registered@
identifier f =~ "^kvm_arch_(un)?register_noncoherent_dma$";
position p != turn.p;
@@
 f@p(...)

@script:python depends on report@
p << registered.p;
f << registered.f;
@@
coccilib.report.print_report(p[0], "%s() in %s(), which is not the first or the last file"
                             % (f, p[0].current_element))

@counted@
expression E, V;
position p != turn.q;
@@
(
 E->noncoherent_files++@p
|
 ++@p E->noncoherent_files
|
 E->noncoherent_files--@p
|
 --@p E->noncoherent_files
|
 E->noncoherent_files =@p V
|
 E->noncoherent_files +=@p V
|
 E->noncoherent_files -=@p V
)

@script:python depends on report@
p << counted.p;
@@
coccilib.report.print_report(p[0], "non-coherent files are counted in %s(), and no VM registered"
                             % p[0].current_element)
