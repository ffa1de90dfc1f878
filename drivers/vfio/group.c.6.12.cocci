// SPDX-License-Identifier: GPL-2.0-only
// expect: init_slot 1
// expect: no_ref_lock 1
// expect: destroy_slot 1
// expect: destroy_device_slot 1
// expect: watched 1
// expect: closed 1
// expect: kvm_of_users 1
// expect: no_set_kvm 1

@init_slot@
expression group;
@@
 vfio_group_alloc(...)
 {
 <+...
 	mutex_init(&group->group_lock);
+	mutex_init(&group->coherency_lock);
+	INIT_LIST_HEAD(&group->open_files);
+	vfio_external_slot_init(&group->external);
 ...+>
 }

// It protected the group's pointer to a VM.
@no_ref_lock@
expression group;
@@
 vfio_group_alloc(...)
 {
 <+...
-	spin_lock_init(&group->kvm_ref_lock);
 ...+>
 }

@destroy_slot@
expression group;
@@
 vfio_group_release(...)
 {
 <+...
 	mutex_destroy(&group->group_lock);
+	mutex_destroy(&group->coherency_lock);
+	vfio_external_slot_destroy(&group->external);
 ...+>
 }

@destroy_device_slot@
expression df;
@@
 vfio_device_open_file(...)
 {
 <+...
+	vfio_external_slot_destroy(&df->external);
 	kfree(df);
 ...+>
 }

// Told of before DMA is possible, by iommufd
@watched@
expression df;
identifier device, ret;
@@
 vfio_df_group_open(...)
 {
 <+...
+	vfio_df_iommufd_watch(df);
 	ret = vfio_iommufd_compat_attach_ioas(device, df->iommufd);
 ...+>
 }

@closed@
expression df;
@@
 vfio_df_group_close(...)
 {
 ...
 	vfio_df_close(df);
+	vfio_df_group_closed(df);
 ...
 }

// The users' list is the one place.  The VM cannot go while it is on the list.
@kvm_of_users@
expression device;
@@
 vfio_device_group_get_kvm_safe(...)
 {
-	spin_lock(&device->group->kvm_ref_lock);
-	vfio_device_get_kvm_safe(device, device->group->kvm);
-	spin_unlock(&device->group->kvm_ref_lock);
+	vfio_external_slot_get_kvm(&device->group->external, device);
 }

@no_set_kvm@
identifier group, kvm;
@@
-void vfio_group_set_kvm(struct vfio_group *group, struct kvm *kvm) { ... }
