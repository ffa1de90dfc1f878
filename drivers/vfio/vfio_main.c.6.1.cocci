// SPDX-License-Identifier: GPL-2.0-only
// expect: init_slot 1
// expect: destroy_slot 1
// expect: kvm_of_users 1

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

// Under group_lock, which keeps vfio_file_drain_open() waiting
@kvm_of_users@
expression device;
@@
 vfio_device_open(...)
 {
 <+...
-	device->kvm = device->group->kvm;
+	mutex_lock(&device->group->external.lock);
+	device->kvm = vfio_external_slot_kvm(&device->group->external);
+	mutex_unlock(&device->group->external.lock);
 ...+>
 }
