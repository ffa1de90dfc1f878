// SPDX-License-Identifier: GPL-2.0-only
// expect: keep_while_coherent 2
// expect: keep_this_cpu 2
// expect: include 1
// expect: load 1
// expect: emulate_noskip 1
// expect: emulate_noskip_if 1
// expect: emulate 1
// expect 6.1: no_ipi 1
// expect 7.3: no_ipi 0
// expect: no_need 1
// expect 6.1: no_start_or_stop 0
// expect 6.12: no_start_or_stop 1
// expect: no_register 1
// expect 6.1: no_register_export 1
// expect 7.3: no_register_export 0
// expect: no_unregister 1
// expect 6.1: no_unregister_export 1
// expect 7.3: no_unregister_export 0
// expect: no_has 1
// expect 6.1: no_has_export 1
// expect 7.3: no_has_export 0
// expect 6.1: no_has_internal_export 0
// expect 7.3: no_has_internal_export 1
// expect: init_vm 1
// expect 6.1: offline 1
// expect 6.12: offline 0
// expect 6.1: offline_virtualization 0
// expect 6.12: offline_virtualization 1
// expect 7.3: offline_virtualization 0
// expect 6.1: offline_or_reboot 0
// expect 7.3: offline_or_reboot 1
// expect: vcpu_created 1
// expect: pre_destroy_vm 1
// expect: exit 1
// expect: include_budget 1
// expect: noskip_contained 1
// expect: emulate_contained 1
// expect: emulator_result 2
// expect: init_budget 1

// The repair of wbinvd_dirty_mask alone, for those who want no more.  What comes
// below replaces it.
@keep_while_coherent@
identifier vcpu, cpu;
expression exits, mask;
statement S;
@@
 kvm_arch_vcpu_load(struct kvm_vcpu *vcpu, int cpu)
 {
 ...
-	if (need_emulate_wbinvd(vcpu)) {
+	if (vcpu->cpu != cpu) {
+		/* Coherent or not: it has to be known when the VM becomes non-coherent. */
 		if (exits)
 			cpumask_set_cpu(cpu, mask);
 		else if (vcpu->cpu != -1 &&
-			 vcpu->cpu != cpu
+			 need_emulate_wbinvd(vcpu)
 			)
 			S
 	}
 ...
 }

@keep_this_cpu@
identifier vcpu, cpu;
expression mask;
@@
 kvm_emulate_wbinvd_noskip(struct kvm_vcpu *vcpu)
 {
 <+...
 		int cpu = get_cpu();
 		...
+		/* The vCPU goes on to dirty this one. */
+		cpumask_copy(mask, cpumask_of(cpu));
 		put_cpu();
-		cpumask_clear(mask);
 ...+>
 }

@include@
@@
 #include "x86.h"
+#include "noncoherent_dma.h"

@load@
identifier vcpu, cpu;
expression exits, mask, left;
statement S;
@@
 kvm_arch_vcpu_load(struct kvm_vcpu *vcpu, int cpu)
 {
 ...
-	if (vcpu->cpu != cpu) { if (exits) cpumask_set_cpu(cpu, mask); else if (left) S }
+	kvm_wbinvd_vcpu_load(vcpu, cpu);
 ...
 }

@emulate_noskip@
identifier vcpu;
@@
 kvm_emulate_wbinvd_noskip(struct kvm_vcpu *vcpu)
 {
-	...
+	kvm_wbinvd(vcpu);
+	return X86EMUL_CONTINUE;
 }

// In two steps: a compound statement in place of ... gets an empty line before it.
@emulate_noskip_if@
identifier vcpu;
@@
 kvm_emulate_wbinvd_noskip(struct kvm_vcpu *vcpu)
 {
-	kvm_wbinvd(vcpu);
+	if (!kvm_wbinvd_skipped(vcpu))
+		kvm_wbinvd_not_skipped(vcpu, kvm_emulated_is_wbnoinvd(vcpu));
 	return X86EMUL_CONTINUE;
 }

@emulate@
identifier vcpu;
@@
 kvm_emulate_wbinvd(struct kvm_vcpu *vcpu)
 {
-	kvm_emulate_wbinvd_noskip(vcpu);
+	if (!kvm_wbinvd_skipped(vcpu))
+		return kvm_emulate_wbinvd_not_skipped(vcpu);
 	return kvm_skip_emulated_instruction(vcpu);
 }

// What noncoherent_dma.c has instead
@no_ipi@
identifier unused;
@@
-static void wbinvd_ipi(void *unused) { ... }

@no_need@
typedef bool;
identifier vcpu;
@@
-static bool need_emulate_wbinvd(struct kvm_vcpu *vcpu) { ... }

@no_start_or_stop@
identifier kvm;
@@
-static void kvm_noncoherent_dma_assignment_start_or_stop(struct kvm *kvm) { ... }

@no_register@
identifier kvm;
@@
-void kvm_arch_register_noncoherent_dma(struct kvm *kvm) { ... }

@no_register_export@
declarer name EXPORT_SYMBOL_GPL;
@@
-EXPORT_SYMBOL_GPL(kvm_arch_register_noncoherent_dma);

@no_unregister@
identifier kvm;
@@
-void kvm_arch_unregister_noncoherent_dma(struct kvm *kvm) { ... }

@no_unregister_export@
declarer name EXPORT_SYMBOL_GPL;
@@
-EXPORT_SYMBOL_GPL(kvm_arch_unregister_noncoherent_dma);

@no_has@
typedef bool;
identifier kvm;
@@
-bool kvm_arch_has_noncoherent_dma(struct kvm *kvm) { ... }

@no_has_export@
declarer name EXPORT_SYMBOL_GPL;
@@
-EXPORT_SYMBOL_GPL(kvm_arch_has_noncoherent_dma);

// The exports that only KVM's own modules use are for them alone.
@no_has_internal_export@
declarer name EXPORT_SYMBOL_FOR_KVM_INTERNAL;
@@
-EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_arch_has_noncoherent_dma);

// The flag is the one place: no count.
@init_vm@
expression kvm;
@@
-	atomic_set(&kvm->arch.noncoherent_dma_count, 0);
+	kvm_noncoherent_dma_init_vm(kvm);

@vcpu_created@
identifier vcpu;
@@
 kvm_arch_vcpu_postcreate(struct kvm_vcpu *vcpu)
 {
 ...
+	kvm_wbinvd_vcpu_created(vcpu);
 	if (mutex_lock_killable(&vcpu->mutex))
 		return;
 ...
 }

@pre_destroy_vm@
identifier kvm;
@@
 kvm_arch_pre_destroy_vm(struct kvm *kvm)
 {
+	kvm_noncoherent_dma_pre_destroy_vm(kvm);
 ...
 }

@offline@
@@
 kvm_arch_hardware_disable(void)
 {
 ...
 	drop_user_return_notifiers();
+	kvm_wbinvd_cpu_offline();
 }

// Renamed by 0617a769ce16 ("KVM: x86: Rename virtualization {en,dis}abling APIs")
@offline_virtualization@
@@
 kvm_arch_disable_virtualization_cpu(void)
 {
 ...
 	drop_user_return_notifiers();
+	kvm_wbinvd_cpu_offline();
 }

// Where the last statement depends on whether the CPU goes down for a reboot
@offline_or_reboot@
expression e;
@@
 kvm_arch_disable_virtualization_cpu(void)
 {
 ...
 	if (e)
 		drop_user_return_notifiers();
 	else
 		__module_get(THIS_MODULE);
+	kvm_wbinvd_cpu_offline();
 }

@exit@
@@
 kvm_x86_exit(void)
 {
+	kvm_noncoherent_dma_exit();
 ...
 }

// The budget: what comes with wbinvd_budget.c
@include_budget@
@@
 #include "noncoherent_dma.h"
+#include "wbinvd_budget.h"

@noskip_contained@
expression vcpu;
@@
 	if (!kvm_wbinvd_skipped(vcpu))
-		kvm_wbinvd_not_skipped(vcpu, ...);
+		return kvm_wbinvd_emulated(vcpu);

@emulate_contained@
expression vcpu;
@@
-	kvm_emulate_wbinvd_not_skipped(vcpu)
+	kvm_emulate_wbinvd_contained(vcpu)

@emulator_result@
identifier ctxt;
@@
-static void emulator_wbinvd(struct x86_emulate_ctxt *ctxt)
+static int emulator_wbinvd(struct x86_emulate_ctxt *ctxt)
 {
-	kvm_emulate_wbinvd_noskip(emul_to_vcpu(ctxt));
+	return kvm_emulate_wbinvd_noskip(emul_to_vcpu(ctxt));
 }

@init_budget@
expression kvm;
@@
 	kvm_noncoherent_dma_init_vm(kvm);
+	kvm_wbinvd_init_budget(kvm);
