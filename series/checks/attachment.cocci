// SPDX-License-Identifier: GPL-2.0-only
/// who attaches a VFIO file to an IOMMU domain, or detaches it, reports it
///
// In the same function, after it, on every path on which it has succeeded; or
// before it, and again if it fails.  What iommufd attaches when a device is opened
// through its group is reported at the end of that.
// look in: drivers/vfio/*.c
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
identifier r =~ "^vfio_(external_slot_update|df_report_coherency|group_report_coherency|container_report_.*)$";
position change.p;
@@
 E->ops->m@p(...)
 ... when any
 r(...)

@before@
expression E, ret;
identifier m;
identifier r =~ "^vfio_df_report_coherency$";
position change.p;
@@
 r(..., true);
 ret = E->ops->m@p(...);
 if (ret) {
	...
	r(...);
	...
 }

@script:python depends on report && !reported && !before@
p << change.p;
m << change.m;
@@
coccilib.report.print_report(p[0], "%s() in %s() is not reported to the file's slot"
                             % (m, p[0].current_element))

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

@through_group@
identifier f =~ "^vfio_df_group_(open|close)$";
expression df;
position p;
@@
 f(...)
 {
 <+...
(
 smp_store_release@p(&df->access_granted, true);
|
 vfio_df_close@p(df);
)
 ...+>
 }

@through_group_ok@
position through_group.p;
identifier f =~ "^(smp_store_release|vfio_df_close)$";
@@
 f@p(...);
 ... when any
 vfio_group_report_coherency(...)

@script:python depends on report && !through_group_ok@
p << through_group.p;
@@
coccilib.report.print_report(p[0], "%s() does not report what becomes of the group"
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
