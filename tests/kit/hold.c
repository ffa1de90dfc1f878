// SPDX-License-Identifier: GPL-2.0-only
/* A thread held at a function of the kernel: see the header. */
#include <stdio.h>

#include "hold.h"

void hold_at(const char *function, const char *options)
{
	char text[160];

	snprintf(text, sizeof(text), "function=%s%s %s",
		 strncmp(function, "kvm_", 4) ? "" : "kvm:", function, options);
	load("hold.ko", text);
}

bool somebody_is_held(void)
{
	return get_number(HOLD "held") == 1;
}

void let_go(void)
{
	if (!somebody_is_held())
		fail("nobody is held until the test has done its part");
	must_put(HOLD "go", "1");
}

void release_held(void)
{
	put(HOLD "go", "1");
}

void forget_hold(void)
{
	try_unload("hold");
}
