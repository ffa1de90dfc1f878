// SPDX-License-Identifier: GPL-2.0-only
/*
 * Walks that look for new places in the kernel: kcov says where each step's call came by in
 * the files that the project has or changes. A walk that came from one place to another for
 * the first time, or oftener in one step than any before it, is kept; others are made from
 * those that are kept, by changing, repeating and leaving out steps, and by putting one's
 * end after another's beginning.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kcov.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "torture.h"

/* Of one step; what does not fit is not looked at. */
#define PLACES		(1 << 16)
#define WAYS		(1 << 16)
#define KEPT		512
/* Of a walk that is kept, in steps */
#define LENGTH		250
/* So many are picked by the model alone, to begin with; and later one of so many. */
#define FIRST		4

bool fuzzing;

static struct kept {
	int count;
	struct step steps[LENGTH];
} *kept;
static int nr_kept, walks_kept, walks_begun, walks_made;

/* Shared with the processes of the walks */
static struct fuzz {
	unsigned int news;		/* of this walk */
	unsigned long ways, counts;
	uint8_t seen[WAYS];		/* a bit for each class of how often in one step */
} *fuzz;
static int control = -1;
static uint64_t *places;		/* their number, and their addresses */

const char *no_kcov(void)
{
	void *memory;

	if (control < 0)
		control = open(DEBUGFS "kcov", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return "this kernel has no kcov";
	if (places)
		return NULL;
	must(ioctl(control, KCOV_INIT_TRACE, PLACES));
	fuzz = shared_memory(sizeof(*fuzz));
	kept = calloc(KEPT, sizeof(*kept));
	memory = mmap(NULL, PLACES * sizeof(*places), PROT_READ | PROT_WRITE, MAP_SHARED,
		      control, 0);
	if (!kept || memory == MAP_FAILED)
		fail("no memory to follow a walk");
	places = memory;
	return NULL;
}

/* ---- where a step came by ------------------------------------------------ */

void fuzz_begin(void)
{
	if (!fuzzing)
		return;
	fuzz->news = 0;
	must(ioctl(control, KCOV_ENABLE, KCOV_TRACE_PC));
}

/* The comparison with the model makes calls as well, which are not followed. */
void fuzz_reset(void)
{
	if (fuzzing)
		__atomic_store_n(&places[0], 0, __ATOMIC_RELAXED);
}

/* 1, 2, 3, 4 to 7, up to 15, 31, 127, and more */
static uint8_t class_of(unsigned int times)
{
	static const uint8_t from[] = { 1, 2, 3, 4, 8, 16, 32, 128 };
	int i = ARRAY_SIZE(from) - 1;

	while (times < from[i])
		i--;
	return 1u << i;
}

static unsigned int way(uint64_t from, uint64_t to)
{
	return ((from >> 1 ^ to) * 0x9e3779b97f4a7c15ULL) >> 48;
}

void fuzz_follow(void)
{
	static uint8_t times[WAYS];
	static unsigned int taken[PLACES];
	uint64_t count, from = 0, i;
	unsigned int nr_taken = 0, w;

	if (!fuzzing)
		return;
	count = __atomic_load_n(&places[0], __ATOMIC_RELAXED);
	for (i = 1; i <= count && i < PLACES; i++) {
		w = way(from, places[i]);
		from = places[i];
		if (!times[w])
			taken[nr_taken++] = w;
		if (times[w] < 255)
			times[w]++;
	}
	while (nr_taken) {
		uint8_t class;

		w = taken[--nr_taken];
		class = class_of(times[w]);
		times[w] = 0;
		if (fuzz->seen[w] & class)
			continue;
		fuzz->ways += !fuzz->seen[w];
		fuzz->counts++;
		fuzz->news++;
		fuzz->seen[w] |= class;
	}
}

/* ---- walks from walks ---------------------------------------------------- */

void fuzz_keep(const struct step *steps, int count)
{
	struct kept *place;

	if (!fuzzing || !fuzz->news)
		return;
	place = &kept[nr_kept < KEPT ? nr_kept++ : (int)chance(KEPT)];
	place->count = count < LENGTH ? count : LENGTH;
	memcpy(place->steps, steps, place->count * sizeof(*steps));
	walks_kept++;
}

/* COUNT steps have LEAVE of them from AT on replaced with those of WITH. */
static int replace(struct step *steps, int count, int at, int leave, const struct step *with,
		   int nr_with)
{
	int rest = count - at - leave;

	if (at + nr_with > LENGTH)
		nr_with = LENGTH - at;
	if (rest > LENGTH - at - nr_with)
		rest = LENGTH - at - nr_with;
	memmove(steps + at + nr_with, steps + at + leave, rest * sizeof(*steps));
	memcpy(steps + at, with, nr_with * sizeof(*steps));
	return at + nr_with + rest;
}

/* One of its numbers is another one. */
static void change_number(struct step *step)
{
	struct step other;

	do {
		any_step(&other);
		/* None is picked of a kind that walks are without by now. */
		if (without_step[step->kind])
			*step = other;
	} while (other.kind != step->kind);
	switch (chance(3)) {
	case 0:
		step->a = other.a;
		break;
	case 1:
		step->b = other.b;
		break;
	default:
		step->c = other.c;
	}
}

static int change(struct step *steps, int count)
{
	const struct kept *other = &kept[chance(nr_kept)];
	int at = chance(count), some = 1 + chance(count - at < 16 ? count - at : 16), from;
	struct step part[LENGTH];

	switch (chance(6)) {
	case 0:
		change_number(&steps[at]);
		return count;
	case 1:
		any_step(part);
		return replace(steps, count, at, 1, part, 1);
	case 2:
		any_step(part);
		return replace(steps, count, at, 0, part, 1);
	case 3:
		return some == count ? count : replace(steps, count, at, some, part, 0);
	case 4:
		memcpy(part, steps + at, some * sizeof(*steps));
		return replace(steps, count, chance(count), 0, part, some);
	default:
		from = chance(other->count);
		memcpy(part, other->steps + from, (other->count - from) * sizeof(*steps));
		return replace(steps, count, at, count - at, part, other->count - from);
	}
}

int fuzz_walk(struct step *steps, int number, int *picked_from)
{
	const struct kept *base;
	int count, changes;

	walks_begun++;
	*picked_from = 0;
	if (number < FIRST || !nr_kept || !chance(FIRST))
		return LENGTH;
	walks_made++;
	base = &kept[chance(nr_kept)];
	count = base->count;
	memcpy(steps, base->steps, count * sizeof(*steps));
	for (changes = 1 + chance(4); changes; changes--)
		count = change(steps, count);
	*picked_from = count;
	/* It goes on with what the model thinks useful, or ends. */
	return chance(2) ? LENGTH : count;
}

void fuzz_print(void)
{
	printf("# %lu ways from place to place, in %lu classes of how often; %d of %d walks kept, %d made from others\n",
	       fuzz->ways, fuzz->counts, walks_kept, walks_begun, walks_made);
	if (!fuzz->ways)
		fail("no walk came by any place");
	if (!walks_kept || (walks_begun > 2 * FIRST && !walks_made))
		fail("what came to new places was not used to come to others");
}
