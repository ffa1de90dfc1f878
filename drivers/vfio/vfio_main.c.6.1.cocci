// SPDX-License-Identifier: GPL-2.0-only
// expect: init_slot 1
// expect: destroy_slot 1
// expect: file_slot 1

@init_slot@
expression group;
@@
 vfio_group_alloc(...)
 {
 <+...
 	mutex_init(&group->group_lock);
+	vfio_external_slot_init(&group->external);
 ...+>
 }

@destroy_slot@
expression group;
@@
 vfio_group_release(...)
 {
 <+...
 	mutex_destroy(&group->group_lock);
+	vfio_external_slot_destroy(&group->external);
 ...+>
 }

@file_slot@
declarer name EXPORT_SYMBOL_GPL;
@@
EXPORT_SYMBOL_GPL(vfio_file_is_group);
+struct vfio_external_slot *vfio_file_external_slot(struct file *file)
+{
+	struct vfio_group *group = file->private_data;
+
+	return vfio_file_is_group(file) ? &group->external : NULL;
+}
