// SPDX-License-Identifier: GPL-2.0-only
// expect: kvm_of_users 1
// expect: kvm_of_first 1
// expect: no_kvm_of_first 1
// expect: watched 1
// expect: unheard 1
// expect: unheard_bind 1
// expect: attached 1
// expect: pasid_unwind 1
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

// What fails changes nothing, and binding may already take coherency away from others of
// the group: look whether the answer can be written before.
@unheard_bind@
identifier df, device, ret;
@@
 vfio_df_ioctl_bind_iommufd(struct vfio_device_file *df, ...)
 {
 <+...
+	if (copy_to_user(&arg->out_devid, &bind.out_devid, sizeof(bind.out_devid)))
+		return -EFAULT;
 	ret = vfio_device_block_group(device);
 ...+>
 }

// What fails changes nothing: look whether the answer can be written before
// attaching, which cannot be undone.  Not under the lock, since that may wait.
@unheard@
identifier df, device;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 <+...
+	if (copy_to_user(&arg->pt_id, &attach.pt_id, sizeof(attach.pt_id)))
+		return -EFAULT;
 	mutex_lock(&device->dev_set->lock);
 ...+>
 }

// Of PASIDs iommufd itself tells: an emulated device has none.  Expressions, and not
// statements: some versions of Coccinelle would put braces around what replaces one.
@attached@
identifier df, device, ret, attach;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 <+...
 	ret =
-	device->ops->attach_ioas(device, &attach.pt_id)
+	vfio_df_iommufd_attach(df, &attach.pt_id)
 	;
 ...+>
 }

// Not what the device is attached to without the PASID
@pasid_unwind@
identifier df, device, attach;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 struct vfio_device_attach_iommufd_pt attach;
 <+...
-	device->ops->detach_ioas(device);
+	if (attach.flags & VFIO_DEVICE_ATTACH_PASID)
+		device->ops->pasid_detach_ioas(device, attach.pasid);
+	else
+		device->ops->detach_ioas(device);
 ...+>
 }

@not_attached@
identifier df, device;
@@
 vfio_df_ioctl_attach_pt(struct vfio_device_file *df, ...)
 {
 <+...
-	device->ops->detach_ioas(device)
+	vfio_df_iommufd_detach(df)
 	;
 ...+>
 }

@detached@
identifier df, device;
@@
 vfio_df_ioctl_detach_pt(struct vfio_device_file *df, ...)
 {
 <+...
-	device->ops->detach_ioas(device)
+	vfio_df_iommufd_detach(df)
 	;
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
