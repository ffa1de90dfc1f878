# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034
#
# What every shell script here shares: where things are, and how to talk.
# Source it after `set -euo pipefail`.

# The bases, and the Debian package that always names each one's newest kernel.
declare -A IMAGE_META=([6.1]=linux-image-amd64 [6.12]=linux-image-6.12-amd64)

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=$TOP/out
JOBS=${JOBS:-$(nproc)}

# The modules that replace Debian's, by their place in the kernel.
mapfile -t OUR_MODULES < <(grep -v -e '^#' -e '^$' "$TOP/series/our-modules")

# die SENTENCE: what failed, where its log is, what to do
die()
{
	printf '%s: %s\n' "${0#"$TOP"/}" "$*" >&2
	exit 1
}

# step WHAT: the line that says what is being done now
step()
{
	printf '==> %s\n' "$*" >&2
}

# rel PATH: the path as the reader knows it
rel()
{
	printf '%s' "${1#"$TOP"/}"
}

# use_base BASE: check it and set the paths that belong to it
use_base()
{
	[[ $# -eq 1 && -n ${IMAGE_META[${1:-none}]:-} ]] ||
		die "needs a base, one of: ${!IMAGE_META[*]}."
	BASE=$1
	B=$OUT/$BASE
	TREE=$B/tree
	DEBIAN=$B/debian
	mkdir -p "$B"
}

# One builder at a time in one base: a second `make` waits, it does not collide.
lock_base()
{
	exec 9>"$B/.$1.lock"
	flock -n 9 || { step "waiting for another $1 of $BASE"; flock 9; }
}

# logged LOG COMMAND...: run quietly, dots while it runs, its end on failure
logged()
{
	local log=$1 pid start=$SECONDS rc=0
	shift
	mkdir -p "$(dirname "$log")"
	# A process group of its own, to end all of it: Ctrl-C must not leave
	# a compiler running behind the user's back.
	set -m
	"$@" >"$log" 2>&1 9>&- </dev/null &
	pid=$!
	set +m
	trap 'kill -- "-$pid" 2>/dev/null; wait "$pid" || true; die "interrupted; the next run goes on from here."' INT TERM HUP
	progress "$pid" "$log" "$start" 9>&- &
	local ticker=$!
	wait "$pid" || rc=$?
	kill "$ticker" 2>/dev/null || true
	wait "$ticker" 2>/dev/null || true
	trap - INT TERM HUP
	[[ $rc -eq 0 ]] || { grep -nE 'error|Error|ERROR' "$log" | head -n 15 >&2 || true; }
	return "$rc"
}

# Every 20 seconds one line: how long, and the last thing done.
progress()
{
	local pid=$1 log=$2 start=$3

	# The sleep outlives us when we are killed; it must hold nothing open.
	while sleep 20 >/dev/null 2>&1 9>&- && kill -0 "$pid" 2>/dev/null; do
		printf '    %ds  %s\n' $((SECONDS - start)) \
			"$(tail -n 1 "$log" | cut -c1-70)" >&2
	done
}

# put_file FILE: standard input to FILE, whole or not at all; untouched if equal
put_file()
{
	local tmp="$1.tmp.$$"

	cat >"$tmp"
	if cmp -s "$tmp" "$1"; then
		rm -f "$tmp"
	else
		mv -f "$tmp" "$1"
	fi
}
