// SPDX-License-Identifier: GPL-2.0-only
/* What budget_test reads of kvm_vfio:kvm_wbinvd_delayed: see the header. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>

#include "budget.h"
#include "files.h"

#define TRACING	"/sys/kernel/tracing/"
#define DELAYED	TRACING "events/kvm_vfio/kvm_wbinvd_delayed/enable"

static int trace_pipe = -1;
static long long traced_ns;

/* What there is by now: whole lines, which are gone then */
static void read_lines(char *text, size_t size)
{
	size_t length = 0;
	ssize_t n;

	while ((n = read(trace_pipe, text + length, size - 1 - length)) > 0)
		length += n;
	if (n == 0 || errno != EAGAIN)
		fail("trace_pipe: %s", n ? strerror(errno) : "more than fits");
	text[length] = '\0';
}

void trace_delays(void)
{
	char text[8192];

	trace_pipe = must(open(TRACING "trace_pipe", O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	read_lines(text, sizeof(text));
	traced_ns = 0;
	must_put(DELAYED, "1");
}

void stop_tracing_delays(void)
{
	put(DELAYED, "0");
	close_fd(&trace_pipe);
}

/* One line: which vCPU of the VM, how long, and how it ended */
static struct delay parse(const char *line)
{
	struct delay delay;
	int vm;

	if (sscanf(line, "kvm_wbinvd_delayed: vm %d vcpu %d %lld ns, then %15s", &vm,
		   &delay.vcpu, &delay.ns, delay.end) != 4)
		fail("traced: %s", line);
	if (vm != getpid())
		fail("process %d is traced, this is %d", vm, getpid());
	return delay;
}

void read_delays(struct vm *vm, struct delay *delays, int n)
{
	char text[8192], *line = text;
	int found = 0;

	read_lines(text, sizeof(text));
	while ((line = strstr(line, "kvm_wbinvd_delayed:"))) {
		if (found == n)
			fail("more than %d waits are traced", n);
		delays[found] = parse(line);
		traced_ns += delays[found].ns;
		found++;
		line++;
	}
	if (found != n)
		fail("%d waits are traced, not %d", found, n);
	if (count(vm, "wbinvd_delay_ns") != traced_ns)
		fail("wbinvd_delay_ns is %lld, traced are %lld", count(vm, "wbinvd_delay_ns"),
		     traced_ns);
}
