// SPDX-License-Identifier: GPL-2.0-only
// expect: init_slot 1
// expect: destroy_slot 1

// Instead of a pointer to a VM and its lock
@init_slot@
expression df;
@@
 vfio_allocate_device_file(...)
 {
 <+...
-	spin_lock_init(&df->kvm_ref_lock);
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
