// SPDX-License-Identifier: GPL-2.0-only
/* Has a change of coherency had its whole effect, and only that, when it returns? */
#define _GNU_SOURCE
#include <stdio.h>

#include "ept.h"

/*
 * The pages that a test watches: the first BUSY ones are read all the time by
 * a spinning vCPU, the others lie idle. Types and levels are those in a coherent
 * VM and in one that is not.
 */
enum { BUSY = 2 };

static struct page pages[12];
static int page_count;

void watch_nothing(void)
{
	page_count = 0;
}

void watch(struct page page)
{
	if (page_count == ARRAY_SIZE(pages))
		fail("more pages than the test expects");
	pages[page_count++] = page;
}

/* RAM for which no MTRR has a word of its own. */
void watch_ram(int coherent, int noncoherent)
{
	static const uint32_t ram[][2] = {
		{ SMALL, 1 }, { HUGE, 2 }, { SMALL + 4096, 1 }, { HUGE + 2 * MIB, 2 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ram); i++)
		watch((struct page){ ram[i][0], { coherent, noncoherent },
				     { ram[i][1], ram[i][1] } });
}

static void touch(const struct page *page)
{
	if (page->gpa == HOST_MMIO)
		guest_reads(page->gpa);
	else
		guest_touches(page->gpa);
}

static void expect_page(const struct page *page, bool noncoherent)
{
	expect(page->gpa, page->type[noncoherent]);
	expect_level(page->gpa, page->level[noncoherent]);
}

/* None of the entries that a page had is left when the call returns. */
static void expect_removed(const struct page *page, bool noncoherent, int begin, int end)
{
	struct entries left = entries_at(page->gpa, end);
	int old = page->type[!noncoherent], i;

	if (page < &pages[BUSY] && old != page->type[noncoherent]) {
		if (left.count[old] > 0)
			fail("the busy page %#x is still %s when the call returns",
			     page->gpa, type_name(old));
	} else if (page < &pages[BUSY]) {
		if (!removed_between(page->gpa, begin, end))
			fail("the busy page %#x is not unmapped", page->gpa);
	} else {
		for (i = 0; i < 16; i++)
			if (left.count[i] > 0)
				fail("the idle page %#x is still %s when the call returns",
				     page->gpa, type_name(i));
	}
}

/* Whether the vCPU is in the guest when event END happens. */
static bool in_guest_at(int end)
{
	while (end--) {
		if (events[end].kind == ENTRY)
			return true;
		if (events[end].kind == EXIT || events[end].kind == WBINVD_EXIT)
			return false;
	}
	return false;
}

static int first_between(int kind, int begin, int end)
{
	while (begin < end && events[begin].kind != (typeof(events->kind))kind)
		begin++;
	return begin;
}

/*
 * A vCPU that is in the guest when its old root is put out of use has left it before
 * anybody's caches are written back, and before the call returns. An exit of before
 * does not count: the vCPU may have come back with the old root.
 */
static void expect_left(int begin, int end)
{
	int leave = first_between(LEAVE, begin, end);
	int flush = first_between(FLUSH, begin, end);
	int i;

	if (leave == end)
		fail("the call returns without putting the old entries out of use");
	if (flush < leave)
		fail("CPU %d is flushed before the old entries are put out of use",
		     events[flush].cpu);
	if (legacy || !in_guest_at(leave))
		return;
	for (i = leave; i < flush; i++)
		if (events[i].kind == EXIT || events[i].kind == WBINVD_EXIT)
			return;
	if (flush < end)
		fail("CPU %d is flushed while the vCPU has not left the old root",
		     events[flush].cpu);
	fail("the vCPU has not left the old root when the call returns");
}

/*
 * CPUs write their caches back when nobody can dirty them through an old entry
 * any more. And not on the way back.
 */
static void expect_flushes_last(int old, int new, bool noncoherent, int begin, int end)
{
	bool flushed = false;
	int i;

	for (i = begin; i < end; i++) {
		const struct event *event = &events[i];
		bool removes = legacy && event->kind == CHANGED &&
			       is_leaf(event->old, event->level) &&
			       !is_leaf(event->new, event->level) &&
			       type_of(event->old) == old;
		bool installs = event->kind == SET && old != new &&
				type_of(event->new) == old;

		flushed |= event->kind == FLUSH;
		if (flushed && !noncoherent)
			fail("CPU %d is flushed although the VM becomes coherent", event->cpu);
		if (flushed && (removes || installs))
			fail("an old entry of frame %#llx is %s after a flush",
			     (unsigned long long)event->gfn, removes ? "removed" : "made");
	}
}

/* What the change that is being judged makes of the VM */
static bool now_noncoherent;

static bool old_entries_are_removed(void)
{
	int i, type, end = mark();

	for (i = 0; i < page_count; i++) {
		struct entries left = entries_at(pages[i].gpa, end);

		for (type = 0; type < 16; type++)
			if (left.count[type] > 0 &&
			    (i >= BUSY || type == pages[i].type[!now_noncoherent]))
				return false;
	}
	return true;
}

/*
 * CHANGE makes the VM (non-)coherent, and so turns all pages watched from one type
 * into another. Even an entry that is to have the same type again is removed: when
 * the call returns or, BY_WORKER, some time after the vCPU has left it.
 */
static void judge_change(void (*change)(void), bool noncoherent, bool by_worker)
{
	int i, begin, end, removed;

	if (!page_count)
		watch_ram(WB | IPAT, WB);
	for (i = BUSY; i < page_count; i++)
		touch(&pages[i]);
	start_spinning();
	for (i = 0; i < page_count; i++)
		expect_page(&pages[i], !noncoherent);
	begin = mark();
	change();
	removed = end = mark();
	if (by_worker) {
		now_noncoherent = noncoherent;
		wait_until(old_entries_are_removed, "a worker removes the old entries");
		removed = mark();
	}
	for (i = 0; i < page_count && !legacy; i++)
		expect_removed(&pages[i], noncoherent, begin, removed);
	expect_left(begin, end);
	expect_flushes_last(pages[0].type[!noncoherent], pages[0].type[noncoherent],
			    noncoherent, begin, end);
	let_it_spin();
	for (i = 0; i < BUSY; i++)
		expect_page(&pages[i], noncoherent);
	stop_spinning();
	for (i = BUSY; i < page_count; i++) {
		touch(&pages[i]);
		expect_page(&pages[i], noncoherent);
	}
	for (i = 0; i < page_count; i++)
		if (!faulted_between(pages[i].gpa, begin, event_count,
				     pages[i].type[noncoherent]))
			fail("no fault mapped %#x anew", pages[i].gpa);
}

void changes(void (*change)(void), bool noncoherent)
{
	judge_change(change, noncoherent, false);
}

void changes_by_worker(void (*change)(void), bool noncoherent)
{
	judge_change(change, noncoherent, true);
}

void expect_flushes(int begin, int cpu0, int cpu1, const char *when)
{
	int end = mark();
	int found0 = count_between(FLUSH, 0, begin, end);
	int found1 = count_between(FLUSH, 1, begin, end);

	if (found0 != cpu0 || found1 != cpu1)
		fail("%d flushes of CPU 0 and %d of CPU 1 instead of %d and %d %s",
		     found0, found1, cpu0, cpu1, when);
}

/* CHANGE leaves the mappings alone: no entry vanishes, and no access faults. */
void keeps_mappings(void (*change)(void), int type)
{
	int i, begin, end;

	start_spinning();
	expect(SMALL, type);
	begin = mark();
	change();
	let_it_spin();
	end = mark();
	for (i = begin; i < end; i++)
		if (events[i].kind == CHANGED || events[i].kind == SET)
			fail("the entry of frame %#llx is %s although nothing has changed",
			     (unsigned long long)events[i].gfn,
			     events[i].kind == SET ? "made anew" : "changed");
	expect(SMALL, type);
	expect(HUGE, type);
	stop_spinning();
}

/* CHANGE has nothing to change. */
void stays(void (*change)(void), int type)
{
	int begin = mark();

	keeps_mappings(change, type);
	expect_flushes(begin, 0, 0, "although nothing has changed");
}
