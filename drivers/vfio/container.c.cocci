// SPDX-License-Identifier: GPL-2.0-only
// expect: joined 1
// expect: left 1
// expect: iommu_kept 1
// expect: iommu_chosen 1
// expect: iommu_used 1
// expect: refuse_header 1
// expect: noiommu_refused 1
// expect 6.1: close_notified 3
// expect 6.12: close_notified 0

// The last group that leaves takes what the driver is told of with it.
@close_notified@
expression container;
identifier driver;
@@
 vfio_fops_release(...)
 {
 ...
-	struct vfio_iommu_driver *driver = container->iommu_driver;
+	struct vfio_iommu_driver *driver;
 ...
+	down_read(&container->group_lock);
+	driver = container->iommu_driver;
 	if (driver && driver->ops->notify)
 		driver->ops->notify(container->iommu_data, VFIO_IOMMU_CONTAINER_CLOSE);
+	up_read(&container->group_lock);
 ...
 }

// Under container->group_lock, when the attachment is complete or undone
@joined@
identifier container, group;
@@
 vfio_container_attach_group(struct vfio_container *container, struct vfio_group *group)
 {
 ...
 	vfio_container_get(container);
+	vfio_container_report_joined(container, group);
 ...
 }

@left@
identifier container, group;
@@
 vfio_group_detach_container(struct vfio_group *group)
 {
 ...
 struct vfio_container *container = group->container;
 ...
+	vfio_container_report_left(container, group);
 	up_write(&container->group_lock);
 ...
 }

// Nobody can open a device before iommu_driver is set, so it is set when the
// groups' users know.  That is not under iommu_drivers_lock, which is everybody's.
@iommu_kept@
identifier container, driver;
@@
 vfio_ioctl_set_iommu(struct vfio_container *container, ...)
 {
+struct vfio_iommu_driver *chosen = NULL;
 struct vfio_iommu_driver *driver;
 ...
 }

@iommu_chosen@
identifier container, driver, data;
@@
 vfio_ioctl_set_iommu(struct vfio_container *container, ...)
 {
 <+...
-	container->iommu_driver = driver;
+	chosen = driver;
 	container->iommu_data = data;
 ...+>
 }

@iommu_used@
identifier container;
@@
 vfio_ioctl_set_iommu(struct vfio_container *container, ...)
 {
 ...
 	mutex_unlock(&vfio.iommu_drivers_lock);
+	if (chosen)
+		vfio_container_use_iommu(container, chosen);
 	up_write(&container->group_lock);
 ...
 }

@refuse_header@
@@
+#include "noncoherent.h"
 #include "vfio.h"

// By definition: nothing enforces anything.  The container has no IOMMU yet.
@noiommu_refused@
identifier iommu_group;
@@
 vfio_noiommu_attach_group(..., struct iommu_group *iommu_group, ...)
 {
-	return 0;
+	return vfio_group_permit_noncoherent(iommu_group);
 }
