// SPDX-License-Identifier: GPL-2.0-only
/* The random walk of mixed_test */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "mixed.h"

static uint32_t seed = 1;
static int steps = 4000;
static uint32_t random_state;

static unsigned int chance(unsigned int n)
{
	random_state = random_state * 1664525 + 1013904223;
	return (random_state >> 12) % n;
}

enum kind { ANY, GROUP, DEVICE };

static bool is_open(const struct file *file, enum kind kind)
{
	return file->used && file->fd != NONE &&
	       (kind == ANY || (kind == GROUP) == (file->device == NONE));
}

/* Any open file of KIND, or NONE. */
static int some_file(enum kind kind)
{
	int i, found[FILES], count = 0;

	for (i = 0; i < FILES; i++)
		if (is_open(&files[i], kind))
			found[count++] = i;
	return count ? found[chance(count)] : NONE;
}

static bool room_for_files(void)
{
	int i, count = 0;

	for (i = 0; i < FILES; i++)
		count += files[i].used;
	return count < FILES;
}

/* Of GROUP or, for NONE, of any. There always is one. */
static int some_device_of(int group)
{
	int id, found[DEVICES], count = 0;

	for (id = 0; id < next_id; id++)
		if (devices[id].exists && (group == NONE || devices[id].group == group))
			found[count++] = id;
	return found[chance(count)];
}

static int some_device(void)
{
	return some_device_of(NONE);
}

static int devices_in(int group)
{
	int id, count = 0;

	for (id = 0; id < next_id; id++)
		count += devices[id].exists && devices[id].group == group;
	return count;
}

static void walk_add(void)
{
	int file = some_file(ANY);

	if (file != NONE)
		add(chance(VMS), file);
}

static void walk_del(void)
{
	int file = some_file(ANY);

	if (file != NONE)
		del(chance(VMS), file);
}

static void walk_open(void)
{
	if (room_for_files())
		open_group(chance(groups));
}

static void walk_close(void)
{
	int file = some_file(ANY);

	if (file != NONE)
		close_file(file);
}

static void walk_join(void)
{
	int file = some_file(GROUP);

	if (file != NONE)
		join(file, chance(CONTAINERS));
}

static void walk_leave(void)
{
	int file = some_file(GROUP);

	if (file != NONE)
		leave(file);
}

static void walk_set_iommu(void)
{
	set_iommu(chance(CONTAINERS));
}

static void walk_open_device(void)
{
	int file = some_file(GROUP), id;

	if (file == NONE || !room_for_files())
		return;
	/* Now and then one that is not in the group. */
	id = some_device_of(chance(8) ? files[file].group : NONE);
	if (open_files_of(id) < 3)
		open_device(file, id);
}

static void walk_close_device(void)
{
	int file = some_file(DEVICE);

	if (file != NONE)
		close_file(file);
}

/* Who unbinds a device keeps it locked. */
static void walk_bind(void)
{
	int id = some_device();

	if (!is_leaving(id))
		bind_device(id);
}

static void walk_unbind(void)
{
	int id = some_device();

	if (!open_files_of(id))
		unbind_device(id);
}

static void walk_begin_to_unbind(void)
{
	int file = some_file(DEVICE);

	if (file != NONE && !leaving.started)
		begin_to_unbind(files[file].device);
}

static void walk_change(void)
{
	int id = some_device(), file = live_file(devices[id].group);

	if (old_vfio || !devices[id].bound || file == NONE ||
	    !is_attached(&files[file]))
		set_coherent(id, !devices[id].coherent);
}

static void walk_plug(void)
{
	int group = chance(groups);

	if (devices_in(group) < 3 && next_id < DEVICES)
		plug(chance(2), group);
}

/* A group without any device would be no more. */
static void walk_unplug(void)
{
	int id = some_device();

	if (devices_in(devices[id].group) > 1 && !open_files_of(id))
		unplug(id);
}

static void walk_reset(void)
{
	reset(chance(VMS));
}

static const struct {
	void (*walk)(void);
	int weight;
} walks[] = {
	{ walk_add, 14 },	{ walk_del, 6 },
	{ walk_open, 10 },	{ walk_close, 3 },
	{ walk_join, 12 },	{ walk_leave, 5 },
	{ walk_set_iommu, 8 },
	{ walk_open_device, 14 },	{ walk_close_device, 4 },
	{ walk_bind, 8 },	{ walk_unbind, 4 },	{ walk_begin_to_unbind, 8 },
	{ walk_change, 6 },
	{ walk_plug, 2 },	{ walk_unplug, 2 },
	{ walk_reset, 1 },
};

static void one_step(void)
{
	unsigned int i, total = 0;
	int pick;

	for (i = 0; i < ARRAY_SIZE(walks); i++)
		total += walks[i].weight;
	pick = chance(total);
	for (i = 0; pick >= walks[i].weight; i++)
		pick -= walks[i].weight;
	walks[i].walk();
}

/* How often the model had a VM of each kind: a walk that sees one only proves little. */
static int seen[2];

static void count_seen(void)
{
	int v, i;

	for (v = 0; v < VMS; v++) {
		bool noncoherent = false;

		for (i = 0; i < FILES; i++)
			noncoherent |= files[i].used && tracks(v, &files[i]) &&
				       coherency_of(&files[i]) == KVM_VFIO_FILE_NOT_ENFORCED;
		seen[noncoherent]++;
	}
}

static void test_walk(void)
{
	int i, a, b, left = 0;

	random_state = seed;
	printf("# seed %u, %d steps\n", seed, steps);
	for (i = 0; i < 4; i++)
		plug(i % 2, NONE);
	a = plug(true, NONE);
	plug(false, devices[a].group);
	b = plug(true, NONE);
	plug(true, devices[b].group);
	for (walked = 0; walked < steps; walked++) {
		one_step();
		if (leaving.started && !open_files_of(leaving.id)) {
			end_to_unbind();
			left++;
		}
		check();
		count_seen();
	}
	walked = NONE;
	printf("# a VM was coherent %d times, non-coherent %d times\n", seen[0], seen[1]);
	printf("# %d devices left while they were open\n", left);
	if (seen[0] < steps / 4 || seen[1] < steps / 4 || left < steps / 1000)
		fail("too few of one kind");
}

/* Usage: see mixed_test.c */
void choose_walk(int argc, char **argv)
{
	if (argc > 1)
		seed = atoi(argv[1]);
	if (argc > 2)
		steps = atoi(argv[2]);
}

static const struct test tests[] = {
	{ "a random walk", test_walk },
};

const struct suite walk_suite = SUITE(tests);
