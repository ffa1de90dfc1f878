// SPDX-License-Identifier: GPL-2.0-only
// expect: init_slot 1
// expect: destroy_slot 1
// expect: file_slot 1

@init_slot@
expression df;
@@
 vfio_allocate_device_file(...)
 {
 <+...
 	spin_lock_init(&df->kvm_ref_lock);
+	vfio_external_slot_init(&df->external);
 ...+>
 }

@destroy_slot@
expression df;
@@
 vfio_device_fops_release(...)
 {
 <+...
+	vfio_external_slot_destroy(&df->external);
 	kfree(df);
 ...+>
 }

@file_slot@
declarer name EXPORT_SYMBOL_GPL;
@@
 EXPORT_SYMBOL_GPL(vfio_file_is_valid);
+struct vfio_external_slot *vfio_file_external_slot(struct file *file)
+{
+	struct vfio_group *group = vfio_group_from_file(file);
+	struct vfio_device_file *df = file->private_data;
+
+	if (group)
+		return vfio_group_external_slot(group);
+	return vfio_device_from_file(file) ? &df->external : NULL;
+}
