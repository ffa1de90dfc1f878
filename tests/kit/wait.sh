# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# For the shell programs of the lab.

# wait_for SECONDS SENTENCE COMMAND...: until COMMAND succeeds; if it does not, say SENTENCE
wait_for() {
	local left=$1 what=$2

	shift 2
	until "$@"; do
		left=$((left - 1))
		[ $left -gt 0 ] || {
			echo "# $what"
			return 1
		}
		sleep 1
	done
}
