# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034
#
# What every shell script here shares: where things are, and how to talk.
# Source it after `set -euo pipefail`.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=$TOP/out
JOBS=${JOBS:-$(nproc)}

# The modules that replace Debian's, by their place in the kernel
mapfile -t OUR_MODULES < <("$TOP/kit/get" bases/project modules)

# The same options to make and to the compiler
iommufd_options()
{
	local option flags=

	IOMMUFD_OPTIONS=()
	for option in $("$TOP/kit/get" bases/project iommufd); do
		IOMMUFD_OPTIONS+=("CONFIG_$option")
		option=${option/=m/_MODULE=1}
		flags+=" -DCONFIG_${option/=y/=1}"
	done
	IOMMUFD_OPTIONS+=("KCFLAGS=${flags# }")
}

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

# use_base BASE: check it, read its file and set the paths that belong to it
use_base()
{
	[[ $# -eq 1 && -n ${1:-} && -f $TOP/bases/$1.toml ]] ||
		die "needs a base, one of: $("$TOP/kit/get" --bases | xargs)."
	BASE=$1
	SOURCE_PACKAGE=$("$TOP/kit/get" "bases/$BASE" source)
	IMAGE_META=$("$TOP/kit/get" "bases/$BASE" image)
	COMPILER=$("$TOP/kit/get" "bases/$BASE" compiler)
	# Empty if this machine can build it
	ROOT_SUITE=$(foreign_suite)
	IN_ROOT=()
	# A Rust compiler that happens to be here must not show in the configuration. In a
	# root it is Debian's, but nothing that is written in Rust is needed.
	RUST=(RUSTC=false)
	[[ -z $ROOT_SUITE ]] || IN_ROOT=("$TOP/kit/in-root" "$ROOT_SUITE") RUST=(CONFIG_RUST=)
	B=$OUT/$("$TOP/kit/get" "bases/$BASE" folder)
	TREE=$B/tree
	DEBIAN=$B/debian
	mkdir -p "$B"
	# Built whole to look for warnings
	mapfile -t OUR_FOLDERS < <("$TOP/kit/get" bases/project folders)
	HAS_IOMMUFD=
	[[ $("$TOP/kit/get" "bases/$BASE" facts.iommufd) != true ]] || HAS_IOMMUFD=y
	[[ -z $HAS_IOMMUFD ]] || OUR_FOLDERS+=("$("$TOP/kit/get" bases/project iommufd_folders)")
}

# The base's suite of Debian, if it is not one of this machine's
foreign_suite()
{
	local suite host

	suite=$("$TOP/kit/get" "bases/$BASE" suite)
	host=$("$TOP/kit/get" --host)
	"$TOP/kit/get" "$host" suites | grep -qx "$suite" || printf '%s\n' "$suite"
}

# What it takes to enter a build root, and to make one: a namespace of mounts, in one
# of users for whoever is not root
NAMESPACE=(--mount)
[[ $(id -u) -eq 0 ]] || NAMESPACE+=(--map-root-user --map-auto)

# One builder at a time in one base: a second `make` waits, it does not collide.
lock_base()
{
	exec 9>"$B/.$1.lock"
	flock -n 9 || { step "waiting for another $1 of $BASE"; flock 9; }
}

# in_force PREFIX SUFFIX: of PREFIX-X.Y.SUFFIX the newest that is not newer than the
# base, if there is one
in_force()
{
	local version last=

	while read -r version; do
		[[ ! -f $1-$version.$2 ]] || last=$1-$version.$2
		[[ $version != "$BASE" ]] || break
	done < <("$TOP/kit/get" --bases)
	[[ -z $last ]] || printf '%s\n' "$last"
}

# kbuild SOURCE OUTPUT ARGUMENTS...: make in a kernel tree, with the base's compiler
kbuild()
{
	local source=$1 output=$2
	shift 2
	"${IN_ROOT[@]}" make -C "$source" O="$output" -j"$JOBS" --no-print-directory \
		CC="$COMPILER" HOSTCC="$COMPILER" "${RUST[@]}" \
		KBUILD_BUILD_USER=kvm-vfio KBUILD_BUILD_HOST=localhost "$@"
}

# user_headers FOLDER LOG: the tree's headers for user space, unless they are there, in
# FOLDER/usr/include
user_headers()
{
	[[ -f $1/.done ]] && return
	step "making the headers of Linux $BASE for user space"
	logged "$2" "${IN_ROOT[@]}" make -C "$TREE" O="$1" ARCH=x86 CC="$COMPILER" HOSTCC="$COMPILER" \
		--no-print-directory headers ||
		die "the kernel's headers cannot be made: see $(rel "$2")."
	touch "$1/.done"
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
