// SPDX-License-Identifier: GPL-2.0-only
// expect: include 1
// expect: vm_files 1

@include@
@@
 #include <linux/debugfs.h>
+#include "noncoherent_dma.h"

@vm_files@
identifier kvm;
@@
 kvm_arch_create_vm_debugfs(struct kvm *kvm)
 {
 <+...
 	debugfs_create_file("mmu_rmaps_stat", ...);
+	kvm_noncoherent_dma_create_vm_debugfs(kvm);
 ...+>
 }
