// SPDX-License-Identifier: GPL-2.0-only
// expect: attached 1
// expect: not_attached 1
// expect: detached 1

// Under the device set's lock
@attached@
identifier df, device;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 ...
 	if (copy_to_user(...)) { ... }
+	vfio_df_report_coherency(df, true);
 	mutex_unlock(&device->dev_set->lock);
 ...
 }

// It may have been attached to something else before.
@not_attached@
identifier df, device;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 <+...
 	device->ops->detach_ioas(device);
+	vfio_df_report_coherency(df, false);
 ...+>
 }

@detached@
identifier df, device;
@@
 vfio_df_ioctl_detach_pt(struct vfio_device_file *df, ...)
 {
 <+...
 	device->ops->detach_ioas(device);
+	vfio_df_report_coherency(df, false);
 ...+>
 }
