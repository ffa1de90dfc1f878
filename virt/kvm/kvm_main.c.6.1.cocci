// SPDX-License-Identifier: GPL-2.0-only
// expect: vcpu_held 1
// expect: vcpu_counted 1
// expect: vcpu_failed 1

// A descriptor can be guessed before the vCPU is counted among the VM's.  It must
// not run before, or whoever goes through the vCPUs misses it.  As in 6e2b2358b3ef
// ("KVM: Grab vcpu->mutex across installing the vCPU's fd and bumping
// online_vcpus"), but by trylock, which cannot fail: nobody knows the vCPU yet.  To
// wait for it inside of kvm->lock would be the wrong way round where 6.1 takes
// kvm->lock inside of vcpu->mutex (Xen's attributes, arm64's timer, riscv).
@vcpu_held@
identifier r, vcpu;
@@
 kvm_vm_ioctl_create_vcpu(...)
 {
 <+...
+	WARN_ON_ONCE(!mutex_trylock(&vcpu->mutex));
 	r = create_vcpu_fd(vcpu);
 ...+>
 }

@vcpu_counted@
identifier kvm;
@@
 kvm_vm_ioctl_create_vcpu(...)
 {
 <+...
 	atomic_inc(&kvm->online_vcpus);
+	mutex_unlock(&vcpu->mutex);
 ...+>
 }

@vcpu_failed@
identifier kvm;
@@
 kvm_vm_ioctl_create_vcpu(...)
 {
 <+...
+	mutex_unlock(&vcpu->mutex);
 	kvm_put_kvm_no_destroy(kvm);
 ...+>
 }
