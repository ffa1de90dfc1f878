# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034
#
# What the tests with a QEMU share, in the emulated host: starting it, talking to it by QMP,
# asking what KVM-VFIO says of its VM. Prints KTAP.

out=/tmp/out
tracing=/sys/kernel/tracing
wbinvds=$tracing/events/kvm_vfio/kvm_wbinvd
number=0
failed=0

# shellcheck source=../kit/wait.sh
. ./wait.sh

# result STATUS NAME FILE...: with what there was to see
result() {
	local word=ok

	number=$((number + 1))
	[ "$1" = 0 ] || {
		word="not ok"
		failed=1
		tail -n 20 "${@:3}" 2>&1 | sed 's/^/# /'
	}
	echo "$word $number $2"
}

# --- a QEMU has a name: what it says is in $out/NAME.*

declare -A qemu=()

# start NAME ARGUMENTS...: of run-guest; the guest's serial port is $out/NAME.serial
start() {
	local name=$1

	shift
	mkfifo "/tmp/$name.in" "/tmp/$name.out"
	run-guest "$@" -qmp "pipe:/tmp/$name" \
		>"$out/$name.serial" 2>"$out/$name.err" </dev/null &
	qemu[$name]=$!
	cat "/tmp/$name.out" >"$out/$name.qmp" &
}

# tell NAME COMMAND [ARGUMENTS]: by QMP
tell() {
	echo "{\"execute\":\"$2\"${3:+,\"arguments\":$3}}" >"/tmp/$1.in"
}

# shellcheck disable=SC2317 # by wait_for
is_in_state() {
	tell "$1" query-status
	sleep 1
	tail -n 1 "$out/$1.qmp" | grep -q "\"status\": \"$2\""
}

# stop NAME: its guest stands still
stop() {
	tell "$1" stop
	wait_for 30 "$1 QEMU does not stop" is_in_state "$1" paused
}

end() {
	tell "$1" quit
	wait "${qemu[$1]}"
	result $? "$1_qemu_ends" "$out/$1.err" "$out/$1.qmp"
}

# --- what KVM-VFIO says, of which the stock modules say nothing

# state_of NAME: of its KVM-VFIO device, or nothing if it has none
state_of() {
	cat /proc/"${qemu[$1]}"/fdinfo/* 2>/dev/null |
		sed -nE 's/^(noncoherent|file):[[:space:]]*//p' | tr '\n' ' '
}

# is NAME STATE CASE
is() {
	[ "$LAB_MODULES" = ours ] || return 0
	state_of "$1" >$out/state
	[ "$(<$out/state)" = "$2" ]
	result $? "$3" $out/state $out/*.err
}

# --- WBINVD, as the kernel executes it for a guest

# Linux 7.3's own KVM has no function for it.
watch_wbinvds() {
	echo 'p:clients/wbinvd kvm:wbinvd_ipi' >$tracing/kprobe_events 2>/dev/null ||
		echo 'p:clients/wbinvd __wbinvd' >$tracing/kprobe_events
	echo 1 >$tracing/events/clients/enable
}

hits() {
	awk '$1 == "wbinvd" { print $2 }' $tracing/kprobe_profile
}

