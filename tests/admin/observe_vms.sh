# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# For observe: the VMs that are observed. QEMU's guest, the second one of observe_vm.py, and one that
# a device is plugged into.
# shellcheck disable=SC2034,SC2154 # what the other files of observe have, and need

# --- QEMU's guest

# Stopped, until all are watching; but its device is in its place.
start_guest() {
	mkfifo /tmp/monitor.in /tmp/monitor.out /tmp/qmp.in /tmp/qmp.out
	wbinvd_mark begin
	run-guest stay -S -chardev pipe,id=monitor,path=/tmp/monitor -mon chardev=monitor \
		-qmp pipe:/tmp/qmp -name guest=observed >"$out/guest" 2>&1 </dev/null &
	pid=$!
	cat /tmp/monitor.out >"$out/monitor" &
	cat /tmp/qmp.out >"$out/qmp" &
	wait_for 60 "QEMU does not get ready" grep -q '(qemu)' "$out/monitor"
	wait_for 60 "QEMU does not hand over its device" qemu_did "$pid" add
}

continue_guest() {
	echo cont >/tmp/monitor.in
	wait_for 240 "the guest is not ready" grep -q '^guest: PASSED' "$out/guest"
}

end_guest() {
	echo quit >/tmp/monitor.in
	wait "$pid"
	wbinvd_mark end
}

# A figure of the guest's VM, from the file itself
figure() {
	cat /sys/kernel/debug/kvm/"$pid"-*/"$1"
}

# --- the second VM

# Of observe_vm.py's making: the thread that created it, which names it, has ended.
start_neighbour() {
	coproc taskset 1 python3 observe_vm.py 2>"$out/neighbour"
	# The coprocess's own descriptors are not there in subshells.
	exec 8<&"${COPROC[0]}" 9>&"${COPROC[1]}"
	read -r other other_vm other_fd <<<"$(neighbour create)"
	wait_for 30 "the second VM's thread does not end" thread_has_ended &&
		[ -d "/sys/kernel/debug/kvm/$other_vm-$other_fd" ] &&
		neighbour_does 0 open "$group2" && neighbour_does 0 add
	result $? "there_is_a_second_vm" "$out/neighbour"
}

# shellcheck disable=SC2317 # by wait_for
thread_has_ended() {
	[ -d "/proc/$other/task" ] && ! [ -d "/proc/$other/task/$other_vm" ]
}

# neighbour WORDS...: what it answers
neighbour() {
	local answer=

	echo "$*" >&9
	read -r -t 60 answer <&8
	echo "$*: $answer" >>"$out/neighbour"
	echo "$answer"
}

neighbour_does() {
	local wanted=$1

	shift
	[ "$(neighbour "$@")" = "$wanted" ]
}

# Its device is attached, taken away and given back, and all its descriptors are closed. What it was
# asked to do in vain is part of it: it has the group; it has it no more; a device, where there are no files of devices.
change_neighbour() {
	local device=-22

	! fact iommufd || device=0
	neighbour_does 0 wbinvd 0 &&
		neighbour_does 0 attach &&
		neighbour_does 0 wbinvd 0 &&
		neighbour_does 0 wbinvd 0 &&
		neighbour_does -17 add &&
		neighbour_does 0 del &&
		neighbour_does -2 del &&
		neighbour_does 0 add &&
		neighbour_does 0 detach &&
		neighbour_does 0 attach &&
		neighbour_does 0 device "$bdf2" &&
		neighbour_does $device add-device
	result $? "the_second_vm_changes" "$out/neighbour"
}

# A child's copy of the descriptor keeps all as it is.
close_neighbour() {
	child=$(neighbour copy)
	neighbour_does 0 close
	result $? "the_second_vm_closes_its_device" "$out/neighbour"
	ask_neighbour "$child" "which_process_has_a_copy"
	neighbour_does 0 uncopy
	run which-vm
	shows which-vm "the_last_copy_is_closed" only \
		"^/sys/kernel/debug/kvm/noncoherent_dma:$noncoherent\$" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/noncoherent_dma:$noncoherent\$" \
		"^/sys/kernel/debug/kvm/$other_vm-$other_fd/noncoherent_dma:0\$"
}

# All that it did is in the recorder, in its order: who, and what.
neighbour_events() {
	local change="$other kvm_vfio_coherency: vm $other_vm file vfio/$group2"
	local call="$other kvm_vfio_file: vm $other_vm"
	local on="$state, vm $vm ($noncoherent non-coherent files)"
	local off="not-attached, vm coherent (0 non-coherent files)"
	local of="file vfio/$group2 ret"
	local device="file [vfio-device]"

	echo "$call add fd N $of 0, vm coherent"
	echo "$change $on"
	echo "$call add fd N $of -17, vm $vm"
	echo "$change $off"
	echo "$call del fd N $of 0, vm coherent"
	echo "$call del fd N $of -2, vm coherent"
	echo "$change $on"
	echo "$call add fd N $of 0, vm $vm"
	echo "$change $off"
	echo "$change $on"
	if ! fact iommufd; then
		echo "$call add fd N $device ret -22, vm $vm"
	else
		echo "${change% file *} $device $state, vm $vm ($((2 * noncoherent)) non-coherent files)"
		echo "$call add fd N $device ret 0, vm $vm"
	fi
	change="$child${change#"$other"}"
	call="$child${call#"$other"}"
	if ! fact iommufd; then
		echo "$change $off"
		echo "$call del fd -1 $of 0, vm coherent"
	else
		echo "$change not-attached, vm $vm ($noncoherent non-coherent files)"
		echo "$call del fd -1 $of 0, vm $vm"
		echo "${change% file *} $device $off"
		echo "$call del fd -1 $device ret 0, vm coherent"
	fi
}

# events_of VM: in the recorder, without what differs from run to run
events_of() {
	sed -nE "s/^ *[^ ]+-([0-9]+) +\[.*(kvm_vfio_[a-z]+: vm $1 .*)/\1 \2/p" "$out/recorder-show" |
		sed 's/ fd [0-9][0-9]* / fd N /'
}

ask_neighbour_events() {
	run recorder-show
	neighbour_events >"$out/expected"
	events_of "$other_vm" | diff "$out/expected" - >"$out/differences" 2>&1
	result $? "what_the_second_vm_did" "$out/differences"
	shows recorder-show "by_which_call" "=> kvm_vfio_set_attr\$" "=> kvm_vfio_close\$" \
		"=> vfio_ioctl_set_iommu\$" "=> vfio_group_fops_unl_ioctl\$"
}

# --- hotplug, by Debian's QEMU: its VM does not run, so nobody has to be asked to let go

plug_flushes=0
plug_and_unplug() {
	local plug

	mkfifo /tmp/plug
	qemu-system-x86_64 -S -enable-kvm -cpu host -machine q35 -m 32 -nodefaults \
		-no-user-config -display none -device pcie-root-port,id=rp0 -qmp stdio \
		-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off </tmp/plug >"$out/plug" 2>&1 &
	plug=$!
	exec 7>/tmp/plug
	qmp_does qmp_capabilities
	qmp_does device_add "'driver': 'vfio-pci', 'host': '$bdf2', 'bus': 'rp0', 'id': 'edu'"
	wait_for 60 "QEMU does not plug the device in" qemu_did "$plug" add
	qmp_does device_del "'id': 'edu'"
	wait_for 60 "QEMU does not unplug the device" qemu_did "$plug" del
	plug_flushes=$(cat /sys/kernel/debug/kvm/"$plug"-*/noncoherent_dma_flushes)
	qmp_does quit
	exec 7>&-
	wait "$plug"
	{
		echo "kvm_vfio_coherency: vm $plug file vfio/$group2 $state, vm $vm" \
			"($noncoherent non-coherent files)"
		echo "kvm_vfio_file: vm $plug add fd N file vfio/$group2 ret 0, vm $vm"
		echo "kvm_vfio_coherency: vm $plug file vfio/$group2 not-attached, vm coherent" \
			"(0 non-coherent files)"
		echo "kvm_vfio_file: vm $plug del fd N file vfio/$group2 ret 0, vm coherent"
	} >"$out/expected"
	# QEMU does this in several threads.
	events_of "$plug" | cut -d' ' -f2- | diff "$out/expected" - >>"$out/plug" 2>&1
	result $? "hot_plug_and_unplug" "$out/plug"
}

# qmp_does COMMAND [ARGUMENTS]
qmp_does() {
	echo "{ 'execute': '$1', 'arguments': { ${2:-} } }" >&7
}

# shellcheck disable=SC2317 # by wait_for
qemu_did() {
	run recorder-show
	grep -q "kvm_vfio_file: vm $1 $2 fd .* ret 0" "$out/recorder-show"
}
