// SPDX-License-Identifier: GPL-2.0-only
// expect: close_before_release 1
// expect: fdinfo_op 1
// expect: debugfs 1
// expect 6.1: vendor_held 0
// expect 6.12: vendor_held 1
// expect 6.1: vendor_let_go 0
// expect 6.12: vendor_let_go 1

// A device may have something to let go of that must not wait for a lock
// under kvm->lock.  It is called while still on the list of devices.
@close_before_release@
identifier dev;
@@
 kvm_device_release(...)
 {
 ...
+	if (dev->ops->close)
+		dev->ops->close(dev);
 	if (dev->ops->release) { ... }
 ...
 }

// Const or not
@fdinfo_op@
identifier ioctl;
@@
 struct file_operations kvm_device_fops = {
+	.show_fdinfo = kvm_device_show_fdinfo,
 	.unlocked_ioctl = ioctl,
 };

@debugfs@
expression e1, e2;
@@
 kvm_init_debug(void)
 {
 ...
 	kvm_debugfs_dir = debugfs_create_dir(e1, e2);
+	kvm_arch_create_noncoherent_dma_debugfs(kvm_debugfs_dir);
 ...
 }

// VFIO's drivers, and files of its statistics, can have the VM longer than it has any
// file that holds kvm-amd or kvm-intel.  Linux 6.1 holds that for the VM by itself.
@vendor_held@
identifier kvm;
@@
 kvm_create_vm(...)
 {
 ... when != __module_get(...)
 	list_add(&kvm->vm_list, &vm_list);
 	mutex_unlock(&kvm_lock);
+	__module_get(kvm_vendor_module());
 ...
 }

// After all of the vendor's code, which may end with this
@vendor_let_go@
identifier mm;
@@
 kvm_destroy_vm(...)
 {
 ...
 	mmdrop(mm);
+	module_put(kvm_vendor_module());
 }
