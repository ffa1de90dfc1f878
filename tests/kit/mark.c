// SPDX-License-Identifier: GPL-2.0-only
/* Marks for the TCG plugin: see the header. */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/mman.h>

#include "lab.h"
#include "mark.h"

/* Each mark's code, eight bytes: nopl 0x4b56NNNN(%rax); ret. */
#define MARK_CODE(number)	(0xc34b560000801f0fULL | (uint64_t)(number) << 24)

static uint64_t *marks;

void make_marks(int count)
{
	size_t size = count * sizeof(*marks);
	int i;

	marks = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (marks == MAP_FAILED)
		fail("no memory for the marks");
	for (i = 0; i < count; i++)
		marks[i] = MARK_CODE(i);
	must(mprotect(marks, size, PROT_READ | PROT_EXEC));
}

void mark(int number)
{
	void (*code)(void) = (void (*)(void))&marks[number];

	code();
}
