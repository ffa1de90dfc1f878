# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# For observe: reports, runs the documentation's commands, and knows what is so.
# shellcheck disable=SC2034,SC2154 # what the other files of observe have, and need

# --- reporting

ok() {
	number=$((number + 1))
	echo "ok $number $1"
}

# not_ok NAME FILE: with what there was to see
not_ok() {
	number=$((number + 1))
	failed=1
	sed 's/^/# /' "$2" | head -n 30
	echo "not ok $number $1"
}

result() {
	if [ "$1" = 0 ]; then
		ok "$2"
	else
		not_ok "$2" "$3"
	fi
}

# --- commands of the documentation

# command_of LABEL: as the page has it; all are to be run, see every_command_was_run()
command_of() {
	ran="$ran $1 "
	doc-command "$1" "$admin" ||
		echo "echo 'there is no command $1 in the documentation'; exit 9"
}

# run LABEL: its output is in "$out/LABEL"
run() {
	command_of "$1" >"$out/$1.sh"
	"$shell" "$out/$1.sh" >"$out/$1" 2>&1 </dev/null
}

# run_with LABEL NAME=VALUE: the same, with another VALUE than the page has
run_with() {
	command_of "$1" >"$out/$1.sh"
	sed -i "s/^${2%%=*}=.*/$2/" "$out/$1.sh"
	TZ=UTC "$shell" "$out/$1.sh" >"$out/$1" 2>&1 </dev/null
}

# watch LABEL COMMAND...: start what watches until Ctrl-C; once COMMAND succeeds, it does
declare -A watcher=()
watch() {
	local label=$1

	shift
	command_of "$label" >"$out/$label.sh"
	"$shell" "$out/$label.sh" >"$out/$label" 2>&1 </dev/null &
	watcher[$label]=$!
	wait_for 90 "$label does not begin" ready_or_ended "$label" "$@"
}

# shellcheck disable=SC2317 # by wait_for
ready_or_ended() {
	local label=$1

	shift
	"$@" || ended "${watcher[$label]}"
}

# Of a job, with all that it started
# shellcheck disable=SC2317 # by wait_for
ended() {
	! kill -0 -- "-$1" 2>/dev/null
}

# polls NAME: a program of that name waits for events. perf writes the head of its file and reads
# all of /proc before it records anything, and polls only after that.
# shellcheck disable=SC2317 # by watch
polls() {
	local process

	for process in /proc/[0-9]*; do
		[ "$(cat "$process/comm" 2>/dev/null)" = "$1" ] &&
			grep -q poll "$process/wchan" 2>/dev/null && return
	done
	return 1
}

# kvm_stat_lines N: kvm_stat has written that many samples
# shellcheck disable=SC2317 # by wait_for
kvm_stat_lines() {
	[ "$(grep -c '^20' "$out/kvm-stat")" -ge "$1" ]
}

# stop SIGNAL LABEL...
stop() {
	local signal=$1 label

	shift
	for label; do
		kill "-$signal" -- "-${watcher[$label]}" 2>/dev/null
		wait_for 30 "$label does not end" ended "${watcher[$label]}"
	done
}

# shows LABEL NAME PATTERN...: NAME is that the output has a line for each PATTERN, and no more
# lines than that if PATTERN is preceded by "only"
shows() {
	local label=$1 name=$2 only='' pattern missing=0
	shift 2

	[ "$1" = only ] && {
		only=yes
		shift
	}
	for pattern; do
		grep -qE -- "$pattern" "$out/$label" || {
			echo "# $label shows no line with: $pattern"
			missing=1
		}
	done
	[ -z "$only" ] || [ "$(wc -l <"$out/$label")" = $# ] || missing=1
	result $missing "$name" "$out/$label"
}

# --- what is so, by other means than the documentation's

group_of() {
	basename "$(readlink "/sys/bus/pci/devices/$1/iommu_group")"
}

# Is this so of the base?
fact() {
	case " $LAB_FACTS " in
	*" $1 "*) return 0 ;;
	esac
	return 1
}

case $LAB_SNOOP in
on)  snoop=1 noncoherent=0 state=enforced code=1 vm=coherent ;;
*)   snoop=0 noncoherent=1 state=not-enforced code=2 vm=non-coherent ;;
esac
