// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which step comes next in a walk of torture_test: most are ones that the model says will
 * do something, some are any.
 */
#include "torture.h"

static uint64_t random_state;

uint64_t splitmix64(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

/* Mixed, or a seed could be so many steps of another one, and its numbers the same from there on. */
void seed_random(uint32_t seed, uint32_t stream)
{
	uint64_t state = (uint64_t)stream << 32 | seed;

	random_state = splitmix64(&state);
}

uint32_t next_random(void)
{
	return splitmix64(&random_state) >> 32;
}

unsigned int chance(unsigned int n)
{
	return next_random() % n;
}

/* One of COUNT things for which IT_IS is true, or any of them */
static int some(int count, bool (*it_is)(int i))
{
	int i, found = 0, start = chance(count);

	for (i = 0; i < count; i++) {
		found = (start + i) % count;
		if (it_is(found))
			return found;
	}
	return start;
}

static bool is_open_group(int f)
{
	return files[f].used && files[f].device == NONE && files[f].fd >= 0;
}

static bool is_out(int f)
{
	return is_open_group(f) && files[f].container == NONE;
}

static bool is_in(int f)
{
	return is_open_group(f) && files[f].container != NONE;
}

static bool is_attached_group(int f)
{
	return is_open_group(f) && is_attached(&files[f]);
}

static bool is_open_file(int f)
{
	return files[f].used && files[f].fd >= 0;
}

static bool is_cdev(int f, bool bound, bool attached)
{
	return is_open_file(f) && files[f].cdev && files[f].bound == bound &&
	       files[f].attached == attached;
}

static bool is_unbound_cdev(int f)
{
	return is_cdev(f, false, false) && !device_is_bound(files[f].device) &&
	       live_file(files[f].group) == NONE;
}

static bool is_bound_cdev(int f)
{
	return is_cdev(f, true, false);
}

static bool is_attached_cdev(int f)
{
	return is_cdev(f, true, true);
}

static bool is_any_bound_cdev(int f)
{
	return is_open_file(f) && files[f].cdev && files[f].bound;
}

static bool has_pasid(int f)
{
	return is_open_file(f) && files[f].pasids;
}

static bool is_free(int f)
{
	return !files[f].used;
}

/* Hardly any is left: no file is opened, and nothing changes any more. */
static bool few_are_free(void)
{
	int f, free = 0;

	for (f = 0; f < FILES; f++)
		free += is_free(f);
	return free < FILES / 4;
}

static bool is_closed_container(int container)
{
	return containers[container].fd < 0;
}

static bool waits_for_iommu(int container)
{
	int f;

	for (f = 0; f < FILES; f++)
		if (is_in(f) && files[f].container == container)
			return !containers[container].iommu;
	return false;
}

static bool is_not_open(int group)
{
	return live_file(group) == NONE && group_is_alive(group);
}

static bool has_device(int v)
{
	return vms[v].dev >= 0;
}

static bool has_no_device(int v)
{
	return vms[v].exists && !vms[v].has_device;
}

static bool is_no_vm(int v)
{
	return !vms[v].exists;
}

static bool is_vm(int v)
{
	return vms[v].exists;
}

static bool is_blocked(int v)
{
	return vms[v].blocked != NONE;
}

static bool has_vcpu(int v)
{
	return vms[v].vcpu[0] >= 0 || vms[v].vcpu[1] >= 0;
}

static bool lacks_vcpu(int v)
{
	return vms[v].exists && (!vms[v].made[0] || !vms[v].made[1]);
}

static bool is_closed_device(int device)
{
	return devices[device].bound && !device_is_open(device);
}

static bool is_unbound(int device)
{
	return !devices[device].bound;
}

static int device_in(int group)
{
	int i, start = chance(nr_devices);

	for (i = 0; i < nr_devices; i++)
		if (devices[(start + i) % nr_devices].group == group)
			return (start + i) % nr_devices;
	return start;
}

static int tracked_file(int v)
{
	return vms[v].files ? vms[v].order[chance(vms[v].files)] : (int)chance(FILES);
}

/*
 * Often one that the VM has let go of, as it is still attached: only for it alone that is as if
 * nothing had happened.
 */
static int file_to_add(int v)
{
	int i, f = chance(FILES);

	for (i = 0; i < FILES; i++, f = (f + 1) % FILES)
		if (files[f].used && files[f].left_by && !files[f].owners &&
		    files[f].left_by == vms[v].device_id && chance(2))
			return f;
	return some(FILES, chance(2) ? is_open_file : is_open_group);
}

static void fit(struct step *step)
{
	switch (step->kind) {
	case STEP_VM:
		step->a = some(VMS, is_no_vm);
		break;
	case STEP_VM_CLOSE:
		step->a = some(VMS, is_vm);
		break;
	case STEP_DEVICE:
		step->a = some(VMS, has_no_device);
		step->b = 0;
		break;
	case STEP_DEVICE_CLOSE:
		step->a = some(VMS, has_device);
		break;
	case STEP_VCPU:
		step->a = some(VMS, lacks_vcpu);
		step->b = vms[step->a].made[0];
		break;
	case STEP_RUN:
	case STEP_BLOCK:
		step->a = some(VMS, has_vcpu);
		step->b = vms[step->a].vcpu[1] >= 0 && chance(2);
		step->c = !chance(4);
		break;
	case STEP_UNBLOCK:
		step->a = some(VMS, is_blocked);
		break;
	case STEP_MEMSLOT:
		step->a = some(LOCAL_VMS, is_vm);
		step->c = !vms[step->a].memslot[step->b % MEMSLOTS];
		break;
	case STEP_ADD:
		step->a = some(VMS, has_device);
		step->b = file_to_add(step->a);
		step->c = !chance(8) && files[step->b].copy >= 0;
		break;
	case STEP_DEL:
		step->a = some(VMS, has_device);
		step->b = tracked_file(step->a);
		step->c = files[step->b].fd < 0 || (files[step->b].copy >= 0 && chance(2));
		break;
	case STEP_READ:
		step->a = some(VMS, has_device);
		if (chance(2))
			step->b = tracked_file(step->a);
		break;
	case STEP_OPEN:
		step->a = some(nr_groups, is_not_open);
		step->b = some(FILES, is_free);
		break;
	case STEP_OPEN_DEVICE:
		step->a = some(FILES, is_attached_group);
		step->b = some(FILES, is_free);
		step->c = device_in(files[step->a].group);
		break;
	case STEP_CDEV:
		step->a = some(nr_devices, is_closed_device);
		step->b = some(FILES, is_free);
		break;
	case STEP_CDEV_BIND:
		step->a = some(FILES, is_unbound_cdev);
		break;
	case STEP_CDEV_ATTACH:
		step->a = some(FILES, chance(3) ? is_bound_cdev : is_attached_cdev);
		break;
	case STEP_CDEV_DETACH:
		step->a = some(FILES, is_attached_cdev);
		break;
	case STEP_PASID_ATTACH:
		step->a = some(FILES, is_any_bound_cdev);
		break;
	case STEP_PASID_DETACH:
		step->a = some(FILES, has_pasid);
		break;
	case STEP_CLOSE:
	case STEP_DUP:
	case STEP_SEND:
		step->a = some(FILES, is_open_file);
		step->c = step->kind == STEP_CLOSE && files[step->a].copy >= 0 && chance(2);
		break;
	case STEP_JOIN:
		step->a = some(FILES, is_out);
		break;
	case STEP_LEAVE:
		step->a = some(FILES, is_in);
		break;
	case STEP_IOMMU:
		step->b = some(CONTAINERS, waits_for_iommu);
		break;
	case STEP_CONTAINER:
		step->b = some(CONTAINERS, is_closed_container);
		step->c = containers[step->b].fd < 0;
		break;
	case STEP_BIND:
		step->a = some(nr_devices, is_unbound);
		break;
	case STEP_UNBIND:
		step->a = some(nr_devices, is_closed_device);
	}
}

static int weight_of(int kind)
{
	return without_step[kind] ? 0 : step_weights[kind];
}

static int pick_kind(void)
{
	int i, total = 0, pick;

	for (i = 0; i < STEP_KINDS; i++)
		total += weight_of(i);
	pick = chance(total);
	for (i = 0; pick >= weight_of(i); i++)
		pick -= weight_of(i);
	return i;
}

static void step_of(struct step *step, int kind)
{
	*step = (struct step){ kind, chance(FILES), chance(FILES), chance(FILES) };
	if (step->kind <= STEP_BAD)
		step->a %= VMS;
	if (step->kind == STEP_BAD)
		step->b = chance(256);
	if (step->kind >= STEP_CONTAINER)
		step->c = chance(3) > 0;	/* what is closed or offline is opened soon */
	if (step->kind == STEP_FOREIGN)
		step->c = chance(FILES);
}

void any_step(struct step *step)
{
	step_of(step, pick_kind());
}

/* A file that a VM tracks, and nobody has any more, goes with the VM's device. */
static int pick_kind_that_frees(void)
{
	int kind = chance(4) ? STEP_CLOSE : STEP_DEVICE_CLOSE;

	return without_step[kind] ? pick_kind() : kind;
}

void pick_step(struct step *step)
{
	step_of(step, few_are_free() && chance(3) ? pick_kind_that_frees() : pick_kind());
	if (chance(8))
		fit(step);
}
