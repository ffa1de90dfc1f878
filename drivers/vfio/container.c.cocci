// SPDX-License-Identifier: GPL-2.0-only
// expect: joined 1
// expect: left 1
// expect: iommu_set 1

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

@iommu_set@
identifier container;
@@
 vfio_ioctl_set_iommu(struct vfio_container *container, ...)
 {
 ...
 	mutex_unlock(&vfio.iommu_drivers_lock);
+	vfio_container_report_iommu(container);
 	up_write(&container->group_lock);
 ...
 }
