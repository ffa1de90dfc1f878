// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tell the WBINVD-counting plugin (lab/machines/plugin/wbinvd.c) where a phase begins:
 * `wbinvd_mark begin` starts phase 10, `wbinvd_mark end` starts phase 2.
 */
#include <err.h>
#include <string.h>

int main(int argc, char **argv)
{
	if (argc != 2)
		errx(1, "usage: wbinvd_mark begin|end");
	if (!strcmp(argv[1], "begin"))
		asm volatile("nopl 0x4b56000a(%rax)");
	else
		asm volatile("nopl 0x4b560002(%rax)");
	return 0;
}
