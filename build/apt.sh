# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034
#
# apt by itself: another suite of Debian, without a word of it to this machine's own apt.
# Source it after kit/lib.sh.

KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

# archive LABEL: the archive of Debian proper, or that of security
archive()
{
	# shellcheck disable=SC2016 # apt's own variables
	env -u APT_CONFIG apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' \
		'Created-By: Packages' | sed -n "s/^Debian $1 //p" | sort -u | head -n 1
}

# sources SUITE: a line for apt for each suite that is needed: that of its security, and for
# a suite of backports the one it is for.
sources()
{
	local uri security s

	uri=$(archive Debian)
	security=$(archive Debian-Security)
	[[ -n $uri ]] || die "apt knows no archive of Debian on this machine; add one to apt's sources and run apt-get update."
	[[ -r $KEYS ]] || die "needs $KEYS; install debian-archive-keyring."
	for s in "${1%-backports}" "$1"; do
		printf 'deb [arch=amd64 signed-by=%s] %s %s main\n' "$KEYS" "$uri" "$s"
	done | uniq
	[[ -z $security ]] || printf 'deb [arch=amd64 signed-by=%s] %s %s-security main\n' \
		"$KEYS" "$security" "${1%-backports}"
}

# configure_apt SUITE FOLDER [deb-src]: its own sources, its own lists, and a machine that
# has nothing; all in FOLDER, for the commands that follow. Those of source packages if so
# asked.
configure_apt()
{
	local lines

	lines=$(sources "$1") || return
	mkdir -p "$2"/{lists/partial,archives/partial}
	: >"$2/status"
	printf '%s\n' "$lines" | sed "s/^deb/${3:-deb}/" | put_file "$2/sources.list"
	put_file "$2/apt.conf" <<-END
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; };
		APT::Default-Release "/^$1(|-security)$/";
		APT::Install-Recommends "false";
		APT::Sandbox::User "root";
		Dir::Etc::sourcelist "$2/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferences "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
		Dir::State::lists "$2/lists";
		Dir::State::status "$2/status";
		Dir::Cache "$2";
	END
	export APT_CONFIG=$2/apt.conf
}

# why LOG: why apt did not do it, in a sentence
why()
{
	if grep -qi 'no space left\|not enough free space' "$1"; then
		echo "the disk is full"
	elif grep -q '404\|does not have a Release file' "$1"; then
		echo "the archive does not have it"
	elif grep -qi 'NO_PUBKEY\|not signed' "$1"; then
		echo "its signature is by no key of $KEYS"
	else
		echo "check the network"
	fi
}

# ask_archive SUITE LOG
ask_archive()
{
	step "asking the archive for the packages of $1"
	# apt takes what it cannot get for a warning.
	logged "$2" apt-get -q -o APT::Update::Error-Mode=any update ||
		die "apt cannot get the lists of $1: $(why "$2"); see $(rel "$2")."
}
