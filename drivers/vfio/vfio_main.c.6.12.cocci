// SPDX-License-Identifier: GPL-2.0-only
// expect: init_slot 1
// expect: no_ref_lock 1
// expect: destroy_slot 1

@init_slot@
expression df;
@@
 vfio_allocate_device_file(...)
 {
 <+...
+	vfio_external_slot_init(&df->external);
 	spin_lock_init(&df->kvm_ref_lock);
 ...+>
 }

// It protected the file's pointer to a VM.
@no_ref_lock@
expression df;
@@
 vfio_allocate_device_file(...)
 {
 <+...
-	spin_lock_init(&df->kvm_ref_lock);
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
