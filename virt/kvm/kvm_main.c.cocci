// SPDX-License-Identifier: GPL-2.0-only
// expect: close_before_release 1
// expect: fdinfo_op 1
// expect: debugfs 1

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
