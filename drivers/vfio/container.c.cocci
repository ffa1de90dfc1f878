// SPDX-License-Identifier: GPL-2.0-only
// expect: attached 1
// expect: detached 1
// expect: iommu_set 1

@attached@
identifier container, group;
@@
 vfio_container_attach_group(struct vfio_container *container, struct vfio_group *group)
 {
 ...
 	vfio_container_get(container);
+	vfio_container_report_coherency(container, group);
 ...
 }

@detached@
identifier container, group;
@@
 vfio_group_detach_container(struct vfio_group *group)
 {
 ...
 struct vfio_container *container = group->container;
 ...
+	vfio_external_slot_update(&group->external, false);
+	vfio_container_report_coherency(container, NULL);
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
+	vfio_container_report_coherency(container, NULL);
 	up_write(&container->group_lock);
 ...
 }
