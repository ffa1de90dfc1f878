// SPDX-License-Identifier: GPL-2.0-only
// expect: kvm_of_users 1
// expect: kvm_of_first 1
// expect: no_kvm_of_first 1
// expect: watched 1
// expect: unheard 1
// expect: attached 1
// expect: not_attached 1
// expect: detached 1

// A device that is open already, by another file, refers to its VM until it is closed.
@kvm_of_first@
identifier df;
@@
 vfio_df_ioctl_bind_iommufd(struct vfio_device_file *df, ...)
 {
 <+...
-	vfio_df_get_kvm_safe(df);
+	if (!device->open_count)
+		vfio_df_get_kvm_safe(df);
 ...+>
 }

@no_kvm_of_first@
identifier df, device;
@@
 vfio_df_ioctl_bind_iommufd(struct vfio_device_file *df, ...)
 {
 <+...
-	vfio_device_put_kvm(device);
+	if (!device->open_count)
+		vfio_device_put_kvm(device);
 ...+>
 }

// Under the device set's lock, as all of this.  Binding cannot fail any more.
@watched@
identifier df, device;
@@
 vfio_df_ioctl_bind_iommufd(struct vfio_device_file *df, ...)
 {
 ...
+	vfio_df_iommufd_watch(df);
 	device->cdev_opened = true;
 ...
 }

// What fails changes nothing: look whether the answer can be written before
// attaching, which cannot be undone.  Not under the lock, since that may wait.
@unheard@
identifier df, attach, minsz;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 ...
 	if (attach.argsz < minsz || attach.flags)
 		return -EINVAL;
+	if (copy_to_user(&arg->pt_id, &attach.pt_id, sizeof(attach.pt_id)))
+		return -EFAULT;
 ...
 }

@attached@
identifier df, device, ret, attach;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 ...
-	ret = device->ops->attach_ioas(device, &attach.pt_id);
+	ret = vfio_df_iommufd_attach(df, &attach.pt_id);
 ...
 }

@not_attached@
identifier df, device;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 <+...
-	device->ops->detach_ioas(device);
+	vfio_df_iommufd_detach(df);
 ...+>
 }

@detached@
identifier df, device;
@@
 vfio_df_ioctl_detach_pt(struct vfio_device_file *df, ...)
 {
 <+...
-	device->ops->detach_ioas(device);
+	vfio_df_iommufd_detach(df);
 ...+>
 }

@kvm_of_users@
identifier df;
@@
 vfio_df_get_kvm_safe(struct vfio_device_file *df)
 {
-	spin_lock(&df->kvm_ref_lock);
-	vfio_device_get_kvm_safe(df->device, df->kvm);
-	spin_unlock(&df->kvm_ref_lock);
+	vfio_external_slot_get_kvm(&df->external, df->device);
 }
