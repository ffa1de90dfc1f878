// SPDX-License-Identifier: GPL-2.0-only
// expect: attaching 3
// expect: not_attached 1
// expect: detached 1

// Under the device set's lock.  The device is open and may do DMA as soon as it is
// attached.  Where that fails it may still be attached to something else.
@attaching@
identifier df, device, ret, unlock;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 ...
+	vfio_df_report_coherency(df, true);
 	ret = device->ops->attach_ioas(device, ...);
-	if (ret)
-		goto unlock;
+	if (ret) {
+		vfio_df_report_coherency(df, device->iommufd_attached);
+		goto unlock;
+	}
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
