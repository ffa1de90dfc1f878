// SPDX-License-Identifier: GPL-2.0-only
// expect: init_slot 1
// expect: destroy_slot 1
// expect: destroy_device_slot 1
// expect: opened 1
// expect: closed 1
// expect: device_joined 1
// expect: device_leaves 1
// expect: device_left 1
// expect: linked 1

@init_slot@
expression group;
@@
 vfio_group_alloc(...)
 {
 <+...
 	mutex_init(&group->group_lock);
+	vfio_external_slot_init(&group->external);
+	INIT_LIST_HEAD(&group->leaving_devices);
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

@opened@
expression df;
identifier device;
@@
 vfio_df_group_open(...)
 {
 ...
 struct vfio_device *device = df->device;
 ...
 	smp_store_release(&df->access_granted, true);
+	if (device->open_count == 1)
+		device->group->open_devices++;
+	vfio_df_report_coherency(df, true);
+	vfio_group_report_coherency(device->group);
 ...
 }

@closed@
expression df;
identifier device;
@@
 vfio_df_group_close(...)
 {
 ...
 struct vfio_device *device = df->device;
 ...
 	vfio_df_close(df);
+	if (device->open_count == 0)
+		device->group->open_devices--;
+	vfio_group_report_coherency(device->group);
 ...
 }

@device_joined@
identifier device;
@@
 vfio_device_group_register(struct vfio_device *device)
 {
 ...
 	mutex_unlock(&device->group->device_lock);
+	vfio_group_devices_changed(device->group);
 }

// It cannot be opened any more, but who has it open may go on doing DMA.
@device_leaves@
identifier device;
@@
 vfio_device_group_unregister(struct vfio_device *device)
 {
 ...
-	list_del(&device->group_next);
+	list_move(&device->group_next, &device->group->leaving_devices);
 ...
 }

// At the end of its time, when nobody has it open any more
@device_left@
identifier device, group;
@@
 vfio_device_remove_group(struct vfio_device *device)
 {
 struct vfio_group *group = device->group;
 ...
 	if (...)
 		iommu_group_remove_device(device->dev);
+	vfio_group_device_left(device);
 ...
 }

// Removing one that was never registered is no special case then.
@linked@
identifier device, group;
@@
 vfio_device_set_group(struct vfio_device *device, ...)
 {
 ...
+	INIT_LIST_HEAD(&device->group_next);
 	device->group = group;
 ...
 }
