// SPDX-License-Identifier: GPL-2.0-only
/// who attaches a VFIO file to an IOMMU domain, or detaches it, reports it
///
// In the same function, after it, on every path.  What iommufd attaches is told
// by iommufd itself, to whoever watches the device: before DMA through another
// page table is possible, after it has ended, and again if the change fails.
// look in: drivers/vfio/*.c
// look in: drivers/iommu/iommufd/device.c
virtual report

@change@
expression E;
identifier m =~ "^(attach_ioas|detach_ioas|pasid_attach_ioas|pasid_detach_ioas|attach_group|detach_group)$";
position p;
@@
 E->ops->m@p(...)

@reported@
expression E;
identifier m;
identifier r =~ "^vfio_(external_slot_update|df_iommufd_report|container_report_.*)$";
position change.p;
@@
 E->ops->m@p(...)
 ... when any
 r(...)

@script:python depends on report && !reported@
p << change.p;
m << change.m;
@@
coccilib.report.print_report(p[0], "%s() in %s() is not reported to the file's slot"
                             % (m, p[0].current_element))

// An emulated device may be told to access memory at once.
@early exists@
expression E;
position change.p;
@@
 vfio_df_iommufd_report(..., true);
 ...
 E->ops->attach_ioas@p(...)

@attached@
expression E;
position change.p;
@@
 E->ops->attach_ioas@p(...)

@script:python depends on report && attached && !early@
p << change.p;
@@
coccilib.report.print_report(p[0], "attach_ioas() in %s() is not reported before"
                             % p[0].current_element)

@member@
expression G, L;
position p;
@@
(
 list_add@p(&G->container_next, L)
|
 list_add_tail@p(&G->container_next, L)
|
 list_del@p(&G->container_next)
)

@member_ok@
identifier r =~ "^vfio_(external_slot_update|container_report_.*)$";
identifier l;
position member.p;
@@
 l@p(...);
 ...
 r(...)

@script:python depends on report && !member_ok@
p << member.p;
@@
coccilib.report.print_report(p[0], "the groups of a container change and that is not reported")

@driver@
struct vfio_container *C;
expression V;
position p;
@@
 C->iommu_driver@p = V

@driver_ok@
expression C, V;
identifier r =~ "^vfio_container_report_.*$";
position driver.p;
@@
 C->iommu_driver@p = V
 ... when any
 r(...)

@script:python depends on report && !driver_ok@
p << driver.p;
@@
coccilib.report.print_report(p[0], "the IOMMU driver of a container changes in %s() and that is not reported"
                             % p[0].current_element)

@access@
expression df;
position p;
@@
 smp_store_release@p(&df->access_granted, true)

@access_ok@
position access.p;
identifier f;
@@
 vfio_df_group_opened(...);
 ...
 f@p(...)

@access_of_cdev@
position access.p;
identifier f;
@@
 vfio_df_ioctl_bind_iommufd(...)
 {
 <+...
 vfio_df_iommufd_watch(...);
 ...
 f@p(...);
 ...+>
 }

@script:python depends on report && !access_ok && !access_of_cdev@
p << access.p;
@@
coccilib.report.print_report(p[0], "%s() gives access to a device and does not report it"
                             % p[0].current_element)

@closed@
position p;
@@
 vfio_df_group_close(...)
 {
 <+...
 vfio_df_close@p(...);
 ...+>
 }

@closed_ok@
position closed.p;
identifier f;
@@
 f@p(...);
 ...
 vfio_df_group_closed(...)

@script:python depends on report && !closed_ok@
p << closed.p;
@@
coccilib.report.print_report(p[0], "%s() does not report what becomes of the group"
                             % p[0].current_element)

// A device that iommufd knows is watched while it may be attached.
@compat@
position p;
@@
 vfio_iommufd_compat_attach_ioas@p(...)

@compat_ok@
position compat.p;
identifier f;
@@
 vfio_df_iommufd_watch(...);
 ...
 f@p(...)

@script:python depends on report && !compat_ok@
p << compat.p;
@@
coccilib.report.print_report(p[0], "%s() attaches a device that nobody watches"
                             % p[0].current_element)

@unbound@
expression E;
position p;
@@
 E->ops->unbind_iommufd@p(...)

@unbound_ok exists@
expression E;
position unbound.p;
@@
 iommufd_device_unwatch(...);
 ...
 E->ops->unbind_iommufd@p(...)

@script:python depends on report && !unbound_ok@
p << unbound.p;
@@
coccilib.report.print_report(p[0], "%s() unbinds a device that is watched"
                             % p[0].current_element)

// In iommufd.  Before the IOMMU driver is asked, and no earlier: what fails before
// that is not told.
@driver_asked@
identifier f =~ "^iommu_(attach|replace)_(group_handle|device_pasid)$";
expression rc;
position p;
@@
 rc = f@p(...)

@told_before@
position driver_asked.p;
identifier f;
expression rc;
statement S;
@@
(
 iommufd_group_tell_before(...);
|
 iommufd_group_tell(...);
)
(
 rc = f@p(...);
|
 if (...)
	rc = f@p(...);
 else
	S
|
 if (...)
	S
 else
	rc = f@p(...);
)

@script:python depends on report && !told_before@
p << driver_asked.p;
f << driver_asked.f;
@@
coccilib.report.print_report(p[0], "%s() in %s(), and nobody is told before"
                             % (f, p[0].current_element))

@page_table@
identifier f =~ "^iommufd_hwpt_(attach|replace)_device$";
expression rc;
position p;
@@
 rc = f@p(...)

@told_after@
position page_table.p;
identifier f;
expression rc;
@@
(
 rc = f@p(...);
 if (rc) {
	iommufd_group_tell(...);
	...
 }
|
 rc = f@p(...);
 iommufd_group_tell(...);
)

@script:python depends on report && !told_after@
p << page_table.p;
f << page_table.f;
@@
coccilib.report.print_report(p[0], "%s() in %s(), and nobody is told if it fails"
                             % (f, p[0].current_element))

@no_page_table@
expression E;
position p;
@@
 E->igroup->hwpt@p = NULL

@no_page_table_ok@
expression E;
position no_page_table.p;
@@
 E->igroup->hwpt@p = NULL;
 ...
 iommufd_group_tell(..., NULL)

@script:python depends on report && !no_page_table_ok@
p << no_page_table.p;
@@
coccilib.report.print_report(p[0], "%s() detaches a group, and nobody is told"
                             % p[0].current_element)

// From Linux 7.3 on it may be attached by PASIDs, too.
@no_attach@
identifier detach =~ "^iommufd_hw_pagetable_detach$";
expression E, pasid;
position p;
@@
 detach(...)
 {
 <+...
 xa_erase@p(&E->pasid_attach, pasid)
 ...+>
 }

@no_attach_ok@
expression E, pasid;
position no_attach.p;
@@
 xa_erase@p(&E->pasid_attach, pasid);
 ...
 iommufd_group_tell(E, NULL)

@script:python depends on report && !no_attach_ok@
p << no_attach.p;
@@
coccilib.report.print_report(p[0], "%s() detaches a group, and nobody is told"
                             % p[0].current_element)

// Who takes the driver for the container's reads it without a lock, so that comes last.
@stored@
expression C, V;
position p;
@@
 smp_store_release@p(&C->iommu_driver, V)

@stored_ok@
identifier r =~ "^vfio_container_report.*$";
identifier s;
position stored.p;
@@
 r(...);
 ... when any
 s@p(...)

@script:python depends on report && !stored_ok@
p << stored.p;
@@
coccilib.report.print_report(p[0], "the IOMMU driver of a container changes in %s() and that is not reported"
                             % p[0].current_element)

@groups@
position p;
@@
 __vfio_container_attach_groups@p(...)

@groups_ok@
identifier a;
position groups.p;
@@
 a@p(...)
 ... when exists
     when any
 vfio_container_use_iommu(...)

@script:python depends on report && !groups_ok@
p << groups.p;
@@
coccilib.report.print_report(p[0], "groups are attached in %s() and that is not reported"
                             % p[0].current_element)
