// SPDX-License-Identifier: GPL-2.0-only
// expect: close_before_release 1
// expect: fdinfo_op 1
// expect: debugfs 1
// expect: vendor_held 2

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

// After all of the vendor's code, which may end with this
@vendor_held@
identifier mm;
@@
 kvm_destroy_vm(struct kvm *kvm)
 {
 ...
 	struct mm_struct *mm = kvm->mm;
+	struct module *vendor = kvm_arch_vendor(kvm);
 ...
 	mmdrop(mm);
+	module_put(vendor);
 ...
 }
