# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034
#
# The KVM selftest library of a base, for programs that are built with it. Source it after use_base.
#
# The library's objects and the kernel's headers for user space go to out/BASE/libkvm; the tree
# stays pure source.

SELFTESTS=$TREE/tools/testing/selftests
LIB=$B/libkvm

# Debian dates the files of a new source package years back: make would not notice.
libkvm_fingerprint()
{
	find "$SELFTESTS"/kvm/{lib,include} "$TREE"/{,arch/x86/}include/uapi -type f -print0 |
		sort -z | xargs -0 sha256sum
	sha256sum "$SELFTESTS"/{lib.mk,kvm/Makefile*} "$TOP/tests/nested/libkvm.sh"
	"${IN_ROOT[@]}" "$COMPILER" --version
}

# ready_libkvm LOG: the headers, and a folder for objects with none that is out of date. Nobody else
# builds there until this program ends.
ready_libkvm()
{
	local want

	lock_base libkvm
	want=$(libkvm_fingerprint | sha256sum)
	if [[ ! -f $LIB/.source || $(<"$LIB/.source") != "$want" ]]; then
		rm -rf "$LIB" && mkdir -p "$LIB"
		printf '%s\n' "$want" >"$LIB/.source"
	fi
	user_headers "$LIB/headers" "$1"
	mkdir -p "$LIB/objects"
}

# libkvm_make MAKEFILE ARGUMENTS...: make in the selftests' folder, with a makefile that includes theirs
libkvm_make()
{
	local makefile=$1
	shift
	"${IN_ROOT[@]}" make -C "$SELFTESTS/kvm" -f "$makefile" --no-print-directory \
		ARCH=x86_64 CC="$COMPILER" OUTPUT="$LIB/objects" \
		KHDR_INCLUDES="-isystem $LIB/headers/usr/include" "$@"
}
