# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# For observe: the questions, and what the documentation's commands have to answer.
# shellcheck disable=SC2034,SC2154 # what the other files of observe have, and need

ask_host() {
	run host
	shows host "is_my_host_coherent" only "^dmar0 $snoop\$"
	run host-devices
	shows host-devices "is_my_device_coherent" "^$bdf $snoop\$"
}

ask_which_vm() {
	run which-vm
	shows which-vm "which_vm_is_not_coherent" only \
		"^/sys/kernel/debug/kvm/noncoherent_dma:$noncoherent\$" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/noncoherent_dma:$noncoherent\$" \
		"^/sys/kernel/debug/kvm/$other_vm-$other_fd/noncoherent_dma:0\$"
	run vm-command
	shows_noncoherent vm-command "what_is_that_vm" \
		"^vm $pid process $pid: qemu-system-x86_64 .*-name guest=observed"
	run_with vm-process "vm=$pid"
	shows vm-process "which_process_is_that" only "^Tgid:[[:space:]]$pid\$"
	run_with vm-process "vm=$other_vm"
	shows vm-process "the_thread_has_ended" only
}

# shows_noncoherent LABEL NAME PATTERN...: those lines if there is a non-coherent VM, else none
shows_noncoherent() {
	if [ "$noncoherent" = 1 ]; then
		shows "$1" "$2" only "${@:3}"
	else
		shows "$1" "$2" only
	fi
}

ask_which_file() {
	run which-file
	shows which-file "which_file_and_why" only \
		"^/proc/$pid/fdinfo/[0-9]+:vm:[[:space:]]$pid\$" \
		"^/proc/$pid/fdinfo/[0-9]+:file:.*/dev/vfio/$group $state\$" \
		"^/proc/$other/fdinfo/[0-9]+:vm:[[:space:]]$other_vm\$" \
		"^/proc/$other/fdinfo/[0-9]+:file:.*/dev/vfio/$group2 not-attached\$"
	run groups
	shows groups "which_device_is_that" "^/sys/kernel/iommu_groups/$group/devices/$bdf\$" \
		"^/sys/kernel/iommu_groups/$group2/devices/$bdf2\$"
	run devices
	shows devices "which_device_has_which_file" only "^vfio[0-9]+ $bdf\$" "^vfio[0-9]+ $bdf2\$"
}

# ask_neighbour PROCESS NAME: both VMs are non-coherent now, if VMs can be, and the second one's
# device is of that PROCESS, and perhaps of others.
ask_neighbour() {
	local device=()

	run which-vm
	shows which-vm "$2" only \
		"^/sys/kernel/debug/kvm/noncoherent_dma:$((2 * noncoherent))\$" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/noncoherent_dma:$noncoherent\$" \
		"^/sys/kernel/debug/kvm/$other_vm-$other_fd/noncoherent_dma:$noncoherent\$"
	run vm-command
	shows_noncoherent vm-command "${2}_by_its_command" \
		"^vm $pid process $pid: qemu-system-x86_64 .*-name guest=observed" \
		"^vm $other_vm process $1: python3 observe_vm.py \$"
	! fact iommufd ||
		device=("^/proc/$1/fdinfo/[0-9]+:file:.*anon_inode:\[vfio-device\] $state\$")
	run which-file
	shows which-file "${2}_by_its_file" \
		"^/proc/$1/fdinfo/[0-9]+:vm:[[:space:]]$other_vm\$" \
		"^/proc/$1/fdinfo/[0-9]+:file:.*/dev/vfio/$group2 $state\$" "${device[@]}"
}

ask_who() {
	local who="^ *qemu-system-x86-$pid +\[000\]"
	local changed="vm $pid file vfio/$group $state, vm $vm \($noncoherent non-coherent files\)"
	local added="vm $pid add fd [0-9]+ file vfio/$group ret 0, vm $vm"

	run recorder-show
	shows recorder-show "who_and_when" "$who.* kvm_vfio_coherency: $changed\$" \
		"$who.* kvm_vfio_file: $added\$"
	run trace-cmd-show
	shows trace-cmd-show "who_and_when_trace_cmd" "$who.* kvm_vfio_coherency: +$changed\$" \
		"$who.* kvm_vfio_file: +$added\$"
	run perf-show
	shows perf-show "who_and_when_perf" \
		"^ *qemu-system-x86 +$pid \[000\] .* kvm_vfio:kvm_vfio_coherency: $changed\$" \
		"^ *qemu-system-x86 +$pid \[000\] .* kvm_vfio:kvm_vfio_file: $added\$"
	shows bpftrace "who_and_when_bpftrace" \
		"^[0-9:]{8} qemu-system-x86 \($pid\): vm $pid, file vfio/$group, state $code, $noncoherent non-coherent files\$"
}

# ask_when EARLY LATE: the first change must have been at a time of day between these, give or
# take the second that is lost in rounding.
ask_when() {
	local shown

	shown=$(sed -n "s/.* \([0-9]*\.[0-9]*\): kvm_vfio_coherency: vm $pid .*/\1/p" \
		"$out/recorder-show" | head -n 1)
	run_with recorder-when "when=$shown"
	shown=$(awk '{ print $4 }' "$out/recorder-when")
	echo "between $(time_of_day $(($1 - 1))) and $(time_of_day $(($2 + 1)))" >>"$out/recorder-when"
	seq $(($1 - 1)) $(($2 + 1)) | while read -r second; do
		time_of_day "$second"
	done | grep -qxF "$shown"
	result $? "at_what_time_of_day" "$out/recorder-when"
}

time_of_day() {
	TZ=UTC date -d "@$1" +%T
}

# The second VM has executed three WBINVDs, the first before it was attached. It has become
# non-coherent three times, and coherent as often.
ask_counters() {
	local exits flushes ipis all_exits all_flushes

	exits=$(figure wbinvd_exits)
	flushes=$(figure wbinvd_flushes)
	ipis=$(figure wbinvd_ipis)
	all_exits=$((exits + 3))
	all_flushes=$((flushes + 2 * noncoherent))
	run counters
	shows counters "how_many_wbinvds" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/wbinvd_exits:[1-9][0-9]*\$" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/wbinvd_flushes:$((noncoherent * exits))\$" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/wbinvd_ipis:0\$" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/noncoherent_dma_changes:$noncoherent\$" \
		"^/sys/kernel/debug/kvm/$other_vm-$other_fd/wbinvd_exits:3\$" \
		"^/sys/kernel/debug/kvm/$other_vm-$other_fd/wbinvd_flushes:$((2 * noncoherent))\$" \
		"^/sys/kernel/debug/kvm/$other_vm-$other_fd/noncoherent_dma_changes:$((6 * noncoherent))\$" \
		"^/sys/kernel/debug/kvm/wbinvd_exits:$all_exits\$" \
		"^/sys/kernel/debug/kvm/noncoherent_dma_changes:$((7 * noncoherent))\$"
	run wbinvd-hist-show
	shows wbinvd-hist-show "on_how_many_cpus" \
		"^\{ vm: +$pid, cpus: +$noncoherent \} hitcount: +$exits\$" \
		"^\{ vm: +$other_vm, cpus: +$noncoherent \} hitcount: +$((3 - noncoherent))\$"
	sum_columns "$out/kvm-stat" >"$out/kvm-stat-sum"
	shows kvm-stat-sum "kvm_stat" "^wbinvd_exits $all_exits\$" "^wbinvd_flushes $all_flushes\$" \
		"^wbinvd_ipis $ipis\$" "^noncoherent_dma_changes $((5 * noncoherent))\$"
	ask_qemu "$exits" "$flushes" "$ipis"
	ask_budget "$flushes"
}

# Nothing executes WBINVD meanwhile.
ask_budget() {
	local parameter=/sys/module/kvm/parameters/wbinvd_budget

	run who-flushes
	shows who-flushes "who_flushes" "^/sys/kernel/debug/kvm/$pid-[0-9]+/wbinvd_flushes:$1\$" \
		"^/sys/kernel/debug/kvm/$other_vm-$other_fd/wbinvd_flushes:$((2 * noncoherent))\$"
	run budget
	cat "$parameter" >>"$out/budget"
	shows budget "a_budget" only "^10\$"
	run delays
	shows delays "what_was_delayed" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/wbinvd_delays:0\$" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/wbinvd_delay_ns:0\$" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/wbinvd_flush_ns:0\$" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/wbinvd_shared:0\$"
	run budget-undo
	cat "$parameter" >>"$out/budget-undo"
	shows budget-undo "no_budget" only "^0\$"
	parameter=/sys/module/vfio/parameters/noncoherent
	run refuse
	cat "$parameter" >>"$out/refuse"
	shows refuse "refused" only "^refuse\$"
	run refuse-undo
	cat "$parameter" >>"$out/refuse-undo"
	shows refuse-undo "allowed" only "^allow\$"
}

# Of kvm_stat's log: names, then every second a date, a time and the growth of each
sum_columns() {
	awk '!/^20/ { split($0, name) }
	     /^20/ { for (i = 3; i <= NF; i++) sum[name[i - 2]] += $i }
	     END { for (n in sum) print n, sum[n] }' "$1"
}

ask_qemu() {
	command_of monitor >/tmp/monitor.in
	wait_for 20 "the monitor is silent" grep -q 'wbinvd_exits (' "$out/monitor"
	tr -d '\r' <"$out/monitor" | grep cumulative >"$out/monitor-says"
	shows monitor-says "qemu_monitor" only "wbinvd_exits \(cumulative\): $1\$" \
		"wbinvd_flushes \(cumulative\): $2\$" "wbinvd_ipis \(cumulative\): $3\$"

	echo '{ "execute": "qmp_capabilities" }' >/tmp/qmp.in
	command_of qmp >/tmp/qmp.in
	wait_for 20 "QMP is silent" grep -q wbinvd_exits "$out/qmp"
	shows qmp "qemu_qmp" "\"name\": \"wbinvd_exits\", \"value\": $1\}" \
		"\"name\": \"wbinvd_flushes\", \"value\": $2\}" \
		"\"name\": \"wbinvd_ipis\", \"value\": $3\}"
}

# The same command in the other page must be the same.
pages_agree() {
	local label

	for label in $(doc-command "$page"); do
		doc-command "$label" "$page" >"$out/a"
		doc-command "$label" "$admin" | diff "$out/a" - >>"$out/differences" 2>&1 ||
			echo "$label" >>"$out/differences"
	done
	[ -n "$(doc-command "$page")" ] && ! [ -s "$out/differences" ]
	result $? "both_pages_say_the_same" "$out/differences"
}

every_command_was_run() {
	local label

	for label in $(doc-command "$admin"); do
		case $ran in
		*" $label "*) ;;
		*) echo "$label" >>"$out/left" ;;
		esac
	done
	! [ -s "$out/left" ]
	result $? "every_command_was_run" "$out/left"
}

# As with Secure Boot. It cannot be undone, so this comes last.
ask_locked_down() {
	mount -t securityfs securityfs /sys/kernel/security
	echo integrity >/sys/kernel/security/lockdown
	run recorder
	shows recorder "locked_down_recorder" only
	run which-file
	shows which-file "locked_down_which_file" \
		"^/proc/$pid/fdinfo/[0-9]+:file:.*/dev/vfio/$group $state\$"
	run counters
	grep wbinvd "$out/counters" >"$out/wbinvd"
	shows wbinvd "locked_down_without_wbinvd" only
	shows counters "locked_down_with_changes" \
		"^/sys/kernel/debug/kvm/$pid-[0-9]+/noncoherent_dma_changes:$noncoherent\$"
	: >"$out/monitor-says"
	command_of monitor >/tmp/monitor.in
	wait_for 20 "the monitor is silent" qemu_says_more
	shows monitor-says "locked_down_qemu_monitor" "wbinvd_exits \(cumulative\): $(exits_of_qemu)\$"
}

# shellcheck disable=SC2317 # by wait_for
qemu_says_more() {
	tr -d '\r' <"$out/monitor" | sed '1,/wbinvd_ipis (/d' | grep cumulative >"$out/monitor-says"
	grep -q ipis "$out/monitor-says"
}

exits_of_qemu() {
	sed -n 's/.*"wbinvd_exits", "value": \([0-9]*\).*/\1/p' "$out/qmp" | head -n 1
}

undo() {
	run recorder-stack-undo
	! grep -q '^stacktrace' \
		/sys/kernel/tracing/instances/kvm-vfio/events/kvm_vfio/kvm_vfio_coherency/trigger
	result $? "no_stack_any_more" "$out/recorder-stack-undo"
	run recorder-undo
	[ -d /sys/kernel/tracing/instances ] && ! [ -e /sys/kernel/tracing/instances/kvm-vfio ]
	result $? "no_recorder_any_more" "$out/recorder-undo"
	run wbinvd-hist-undo
	! grep -q '^hist' /sys/kernel/tracing/events/kvm_vfio/kvm_wbinvd/trigger
	result $? "no_histogram_any_more" "$out/wbinvd-hist-undo"
}

# What `make shell` says first has commands of the page, too.
welcome_shows_commands() {
	local label line

	sh /lab/.welcome >"$out/welcome" 2>&1
	for label in host recorder which-vm which-file recorder-show counters; do
		doc-command "$label" "$admin" | while IFS= read -r line; do
			grep -qxF "    $line" "$out/welcome" || echo "# not in the welcome: $line"
		done
	done >"$out/not-shown"
	! [ -s "$out/not-shown" ] && grep -q '^  Is my host coherent?$' "$out/welcome"
	result $? "the_shell_tells_them" "$out/not-shown"
}

# Its way to end the guest must be one that ends it whatever else runs in the background.
welcome_ends_the_guest() {
	mkdir /tmp/bin
	printf '#!/bin/sh\nexec sleep 5\n' >/tmp/bin/run-guest
	chmod +x /tmp/bin/run-guest
	{
		echo 'sleep 5 &'
		grep -o 'run-guest stay .*' "$out/welcome"
		sed -n 's/.*(end it with: \(.*\)).*/\1/p' "$out/welcome"
		# shellcheck disable=SC2016
		echo 'wait $guest; [ $? = 143 ]'
	} >"$out/end.sh"
	PATH=/tmp/bin:$PATH sh -m "$out/end.sh" >"$out/end" 2>&1 </dev/null
	result $? "the_shell_ends_the_guest" "$out/end.sh"
}

# For tests/kit/wbinvd_compare. This host has one CPU, so each flush is one WBINVD: of the second VM, two that
# its guest asked for, and one each time that it became non-coherent.
expect_counts() {
	local flushes

	flushes=$(($(figure wbinvd_flushes) + $(figure noncoherent_dma_flushes) + plug_flushes))
	echo "# expect 10 by 0 host 0:$((flushes + 5 * noncoherent))" \
		"guest 0:$(($(figure wbinvd_exits) + 3))" \
		"-- the emulator counted the same WBINVDs"
	echo "# expected 1 phases"
}
