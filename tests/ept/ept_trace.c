// SPDX-License-Identifier: GPL-2.0-only
/* What the tracepoints tell ept_test, and probes where WBINVD is executed */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "ept.h"

#define TRACING		"/sys/kernel/tracing/"

/* ---- what the tracepoints tell ------------------------------------------- */

struct event events[100000];
int event_count;
static int trace_pipe = -1, trace_marker = -1;

bool is_leaf(uint64_t spte, int level)
{
	return spte & (1 << 11) && (level == 1 || spte & (1 << 7));
}

int type_of(uint64_t spte)
{
	return (spte >> 3 & 7) | (spte & (1 << 6) ? IPAT : 0);
}

const char *type_name(int type)
{
	static const char *const names[] = {
		[UC] = "UC", [WC] = "WC", [WT] = "WT", [WP] = "WP", [WB] = "WB",
		[UC | IPAT] = "UC+IPAT", [WC | IPAT] = "WC+IPAT",
		[WT | IPAT] = "WT+IPAT", [WP | IPAT] = "WP+IPAT",
		[WB | IPAT] = "WB+IPAT", [15] = NULL,
	};

	return names[type] ? names[type] : "a reserved type";
}

static void record(const char *line)
{
	struct event event = { 0 };
	unsigned long long gfn, old, new;
	const char *change = strstr(line, "kvm_tdp_mmu_spte_changed: ");
	const char *set = strstr(line, "kvm_mmu_set_spte: ");
	const char *cpu;
	int level;

	if (change &&
	    sscanf(change, "%*s as id %*d gfn %llx level %d old_spte %llx new_spte %llx",
		   &gfn, &level, &old, &new) == 4)
		event = (struct event){ CHANGED, gfn, old, new, level, 0 };
	else if (set &&
		 sscanf(set, "%*s gfn %llx spte %llx %*s level %d",
			&gfn, &new, &level) == 3)
		event = (struct event){ SET, gfn, 0, new, level, 0 };
	else if (strstr(line, "wbinvd: (") && (cpu = strchr(line, '[')))
		event = (struct event){ .kind = FLUSH, .cpu = atoi(cpu + 1) };
	else if (strstr(line, "leave: ("))
		event.kind = LEAVE;
	else if (strstr(line, "kvm_exit: "))
		event.kind = strstr(line, "reason WBINVD") ? WBINVD_EXIT : EXIT;
	else if (strstr(line, "kvm_entry: "))
		event.kind = ENTRY;
	else if (strstr(line, "tracing_mark_write: "))
		event.kind = MARK;
	else if (strstr(line, "LOST"))
		fail("the trace lost events: %s", line);
	else
		return;
	if (event_count == ARRAY_SIZE(events))
		fail("more events than the test expects");
	events[event_count++] = event;
}

/* Take in what has been traced since. */
static void read_trace(void)
{
	static char buffer[65536 + 1];
	static size_t kept;
	char *line, *end;
	ssize_t got;

	while ((got = read(trace_pipe, buffer + kept, sizeof(buffer) - 1 - kept)) > 0) {
		buffer[kept + got] = '\0';
		for (line = buffer; (end = strchr(line, '\n')); line = end + 1) {
			*end = '\0';
			record(line);
		}
		kept = strlen(line);
		memmove(buffer, line, kept);
	}
}

int mark(void)
{
	int i = event_count;

	must(write(trace_marker, "mark", 4));
	for (;;) {
		read_trace();
		/* A vCPU that runs meanwhile may have added events after it. */
		for (; i < event_count; i++)
			if (events[i].kind == MARK)
				return i + 1;
		usleep(1000);
	}
}

static bool maps(const struct event *event, uint64_t gpa)
{
	uint64_t pages = event->level == 1 ? 1 : 512;

	return event->level <= 2 &&
	       gpa >> 12 >= event->gfn && gpa >> 12 < event->gfn + pages;
}

/* Without the TDP MMU: what a fault has installed last, be it still there or not. */
static struct entries entry_set_last(uint64_t gpa, int end)
{
	struct entries found = { 0 };

	while (end--) {
		const struct event *event = &events[end];

		if (event->kind != SET || !maps(event, gpa) ||
		    !is_leaf(event->new, event->level))
			continue;
		found.count[type_of(event->new)] = 1;
		found.level = event->level;
		break;
	}
	return found;
}

struct entries entries_at(uint64_t gpa, int end)
{
	struct entries found = { 0 };
	int i;

	if (legacy)
		return entry_set_last(gpa, end);
	for (i = 0; i < end; i++) {
		const struct event *event = &events[i];

		if (event->kind != CHANGED || !maps(event, gpa))
			continue;
		if (is_leaf(event->old, event->level))
			found.count[type_of(event->old)]--;
		if (is_leaf(event->new, event->level)) {
			found.count[type_of(event->new)]++;
			found.level = event->level;
		}
	}
	return found;
}

bool faulted_between(uint64_t gpa, int begin, int end, int type)
{
	for (; begin < end; begin++)
		if (events[begin].kind == SET && maps(&events[begin], gpa) &&
		    type_of(events[begin].new) == type)
			return true;
	return false;
}

bool removed_between(uint64_t gpa, int begin, int end)
{
	for (; begin < end; begin++)
		if (events[begin].kind == CHANGED && maps(&events[begin], gpa) &&
		    is_leaf(events[begin].old, events[begin].level) &&
		    !is_leaf(events[begin].new, events[begin].level))
			return true;
	return false;
}

int count_between(int kind, int cpu, int begin, int end)
{
	int count = 0;

	for (; begin < end; begin++)
		count += events[begin].kind == (typeof(events->kind))kind &&
			 events[begin].cpu == cpu;
	return count;
}

void expect(uint64_t gpa, int type)
{
	struct entries found = entries_at(gpa, mark());
	int i;

	for (i = 0; i < 16; i++)
		if (i != type && found.count[i] > 0)
			fail("%#llx is %s instead of %s", (unsigned long long)gpa,
			     type_name(i), type_name(type));
	if (found.count[type] <= 0)
		fail("%#llx is not mapped", (unsigned long long)gpa);
}

void expect_level(uint64_t gpa, int level)
{
	int found = entries_at(gpa, mark()).level;

	if (found != level)
		fail("%#llx is mapped at level %d instead of %d",
		     (unsigned long long)gpa, found, level);
}

/*
 * Each time that an event is enabled or disabled the kernel patches its code, for which an
 * emulator needs half a second. So events stay enabled, and only what they tell is not recorded.
 */
void start_trace(void)
{
	static const char *const on[] = {
		TRACING "events/kvmmmu/kvm_mmu_set_spte/enable",
		TRACING "events/kvmmmu/kvm_tdp_mmu_spte_changed/enable",
		TRACING "events/kvm/kvm_exit/enable",
		TRACING "events/kvm/kvm_entry/enable",
		TRACING "events/lab/wbinvd/enable",
		TRACING "events/lab/leave/enable",
	};
	char scrap[4096];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(on); i++)
		if (get_number(on[i]) != 1)
			must_put(on[i], "1");
	trace_marker = must(open(TRACING "trace_marker", O_WRONLY | O_CLOEXEC));
	trace_pipe = must(open(TRACING "trace_pipe",
			       O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	while (read(trace_pipe, scrap, sizeof(scrap)) > 0)
		;
	event_count = 0;
	must_put(TRACING "tracing_on", "1");
}

void stop_trace(void)
{
	put(TRACING "tracing_on", "0");
	if (trace_pipe >= 0)
		close(trace_pipe);
	if (trace_marker >= 0)
		close(trace_marker);
	trace_pipe = trace_marker = -1;
}

void disable_events(void)
{
	must_put(TRACING "events/enable", "0");
}

/* ---- where WBINVD is executed, and old entries put out of use ------------- */

const char *leave_function(void)
{
	return kernel_has("kvm_mmu_leave_sptes") ? "kvm_mmu_leave_sptes" : "kvm_zap_gfn_range";
}

/* Whether the kernel's memory could be read there. */
static bool read_kernel(uint64_t address, void *to, size_t size)
{
	int kcore = must(open("/proc/kcore", O_RDONLY | O_CLOEXEC)), i;
	Elf64_Ehdr head;
	Elf64_Phdr part;
	bool done = false;

	if (pread(kcore, &head, sizeof(head), 0) != sizeof(head))
		head.e_phnum = 0;
	for (i = 0; i < head.e_phnum && !done; i++) {
		if (pread(kcore, &part, sizeof(part), head.e_phoff + i * sizeof(part)) !=
		    sizeof(part))
			break;
		if (part.p_type == PT_LOAD && address >= part.p_vaddr &&
		    address - part.p_vaddr + size <= part.p_memsz)
			done = pread(kcore, to, size, part.p_offset + address - part.p_vaddr) ==
			       (ssize_t)size;
	}
	close(kcore);
	return done;
}

static bool is_wbinvd(const uint8_t *code)
{
	return code[0] == 0x0f && code[1] == 0x09;
}

/* Whether a function begins with WBINVD, perhaps after ENDBR64. */
static bool begins_with_wbinvd(uint64_t function)
{
	static const uint8_t endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
	uint8_t code[6];

	if (!read_kernel(function, code, sizeof(code)))
		return false;
	return is_wbinvd(memcmp(code, endbr64, 4) ? code : code + 4);
}

/*
 * The offset of WBINVD in the function, or, where the kernel has not patched it in,
 * of the call of a function that begins with it and may itself not be probed.
 */
static int wbinvd_in(uint64_t function)
{
	uint8_t code[32];
	int32_t distance;
	unsigned int i;

	if (!read_kernel(function, code, sizeof(code)))
		fail("/proc/kcore does not have %s()", wbinvd_function());
	for (i = 0; i + 5 <= sizeof(code); i++) {
		memcpy(&distance, code + i + 1, sizeof(distance));
		if (is_wbinvd(code + i) ||
		    (code[i] == 0xe8 && begins_with_wbinvd(function + i + 5 + distance)))
			return i;
	}
	fail("%s() does not execute WBINVD", wbinvd_function());
}

/* Where the function is that has a probe, which may stand behind an ENDBR64. */
static uint64_t address_of_probed(const char *function)
{
	FILE *list = fopen(DEBUGFS "kprobes/list", "re");
	unsigned long long address;
	unsigned int offset;
	char line[200], *at;
	uint64_t found = 0;

	while (list && fgets(line, sizeof(line), list)) {
		at = strstr(line, function);
		if (at && sscanf(at + strlen(function), "+%x", &offset) == 1 &&
		    sscanf(line, "%llx", &address) == 1)
			found = address - offset;
	}
	if (list)
		fclose(list);
	if (!found)
		fail(DEBUGFS "kprobes/list does not have %s()", function);
	return found;
}

void place_probes(void)
{
	const char *function = wbinvd_function(), *bare = strchr(function, ':');
	char offset[16];

	must_put(TRACING "tracing_on", "0");
	must_put(TRACING "current_tracer", "nop");
	disable_events();
	/* Of events on different CPUs, too, it tells which came first. */
	must_put(TRACING "trace_clock", "counter");
	must_put(TRACING "kprobe_events", "p:lab/wbinvd %s", function);
	snprintf(offset, sizeof(offset), "%d",
		 wbinvd_in(address_of_probed(bare ? bare + 1 : function)));
	/* In place of the first one: opening the file to write empties it. */
	must_put(TRACING "kprobe_events", "p:lab/wbinvd %s+%s\np:lab/leave kvm:%s%s",
		 function, offset, leave_function(),
		 kernel_has("wbnoinvd_ipi") ? "\np:lab/wbinvd kvm:wbnoinvd_ipi" : "");
}
