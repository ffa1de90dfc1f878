// SPDX-License-Identifier: GPL-2.0-only
/*
 * The model of torture_test: which files there are, who has them, what they are attached
 * to, and what follows for each VM. It knows nothing but the steps and these rules:
 *
 *  - An open file is there while anybody has it: a descriptor, the socket that one is on
 *    its way through, a forked process, a VM that tracks it, or the file of a device that
 *    came from it. A KVM-VFIO device is there while anybody has a descriptor of it.
 *  - A group's file is attached while its group is in a container with an IOMMU; a device's
 *    file while it is open.
 *  - A device's own file is attached while it is bound to an iommufd that has attached its
 *    group, be it by another device. All devices of a group have one page table: who is
 *    attached gets the first one of the IOAS that its group fits, or a new one that enforces
 *    coherency if the device can; a group of which a device cannot does not fit that one.
 *    A page table is there while a group is attached to it.
 *  - By PASIDs a group is attached to page tables as well that were made for them, each
 *    PASID to one for all devices of the group; then it does without a PASID what it does
 *    by such a page table, or not at all. A group's DMA is coherent if all of its page
 *    tables enforce that.
 *  - A group's domain enforces coherency if all of its devices were coherent when it was
 *    attached.
 *  - A VM is non-coherent while it tracks a file that is attached to a domain that does not
 *    enforce coherency.
 *  - What a vCPU has dirtied is in the caches of the CPUs that it was loaded on since it
 *    last had them written back. A VM that becomes non-coherent has all of them written
 *    back, a WBINVD in a non-coherent VM those of its vCPU, and any other nothing. CPUs
 *    that are offline have written theirs back.
 *  - A VM that tracks a file which another one tracks may go on with its guest: all CPUs
 *    may be dirty, of each vCPU that it has or gets.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "torture.h"

struct vm vms[VMS];
struct file files[FILES];
struct container containers[CONTAINERS];
struct holder holders[HOLDERS];
struct table tables[TABLES];
int nr_tables;
int flight[FLIGHT], nr_flight, flight_socket[2];
bool cpu1_online;
uint64_t flushes_on[CPUS];

bool is_local(int v)
{
	return v < LOCAL_VMS;
}

static struct vm no_vm(void)
{
	return (struct vm){
		.fd = -1, .dev = -1, .vcpu = { -1, -1 }, .uffd = -1, .blocked = NONE,
		.socket = -1,
	};
}

void model_begin(void)
{
	int i, j;

	for (i = 0; i < VMS; i++)
		vms[i] = no_vm();
	memset(files, 0, sizeof(files));
	for (i = 0; i < FILES; i++)
		files[i].fd = files[i].copy = -1;
	for (i = 0; i < CONTAINERS; i++)
		containers[i] = (struct container){ .fd = -1 };
	memset(holders, 0, sizeof(holders));
	for (i = 0; i < nr_devices; i++) {
		devices[i].coherent = devices[i].coherent_at_first;
		devices[i].bound = true;
	}
	for (i = 0; i < nr_groups; i++) {
		groups[i].table = NONE;
		for (j = 0; j < PASIDS; j++)
			groups[i].pasid[j] = NONE;
	}
	nr_tables = 0;
	nr_flight = 0;
	memset(flushes_on, 0, sizeof(flushes_on));
	cpu1_online = sysconf(_SC_NPROCESSORS_ONLN) > 1;
}

/* ---- files --------------------------------------------------------------- */

bool tracks(int v, const struct file *file)
{
	return file->owners & (1u << v);
}

static bool is_group(const struct file *file)
{
	return file->used && file->device == NONE;
}

bool is_attached(const struct file *file)
{
	return file->container != NONE && containers[file->container].iommu;
}

static bool has_pasid_attached(const struct group *group)
{
	int i;

	for (i = 0; i < PASIDS; i++)
		if (group->pasid[i] != NONE)
			return true;
	return false;
}

static bool all_enforce(const struct group *group)
{
	bool enforced = group->table == NONE || tables[group->table].enforced;
	int i;

	for (i = 0; i < PASIDS; i++)
		if (group->pasid[i] != NONE)
			enforced &= tables[group->pasid[i]].enforced;
	return enforced;
}

/* Emulated devices have no page table: what they access is the CPU's own memory. */
static int coherency_of_cdev(const struct file *file)
{
	const struct group *group = &groups[file->group];
	bool attached = group->table != NONE || has_pasid_attached(group);

	if (group->emulated ? !file->attached : !file->bound || !attached)
		return KVM_VFIO_FILE_NOT_ATTACHED;
	return !group->emulated && all_enforce(group) ? KVM_VFIO_FILE_ENFORCED :
							KVM_VFIO_FILE_NOT_ENFORCED;
}

int coherency_of(const struct file *file)
{
	if (file->cdev)
		return coherency_of_cdev(file);
	if (file->device == NONE && !is_attached(file))
		return KVM_VFIO_FILE_NOT_ATTACHED;
	return file->enforced ? KVM_VFIO_FILE_ENFORCED : KVM_VFIO_FILE_NOT_ENFORCED;
}

int live_file(int group)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (is_group(&files[i]) && files[i].group == group && !files[i].dead)
			return i;
	return NONE;
}

bool group_is_alive(int group)
{
	int i;

	for (i = 0; i < nr_devices; i++)
		if (devices[i].group == group && devices[i].bound)
			return true;
	return false;
}

bool device_is_open(int device)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (files[i].used && files[i].device == device)
			return true;
	return false;
}

bool has_children(int parent)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (files[i].used && files[i].device != NONE && files[i].parent == parent)
			return true;
	return false;
}

/* ---- devices' own files -------------------------------------------------- */

bool device_is_bound(int device)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (files[i].used && files[i].bound && files[i].device == device)
			return true;
	return false;
}

bool group_is_bound(int group)
{
	int i;

	for (i = 0; i < nr_devices; i++)
		if (devices[i].group == group && device_is_bound(i))
			return true;
	return false;
}

static bool all_coherent(int group)
{
	int i;

	for (i = 0; i < nr_devices; i++)
		if (devices[i].group == group && !devices[i].coherent)
			return false;
	return true;
}

bool told_in_vain(const struct file *file)
{
	int i;

	if (!devices[file->device].coherent || all_coherent(file->group))
		return false;
	for (i = 0; i < FILES; i++)
		if (files[i].used && files[i].cdev && files[i].bound && files[i].group == file->group &&
		    !devices[files[i].device].coherent)
			return true;
	return false;
}

static bool table_fits(int table, const struct file *file)
{
	const struct group *group = &groups[file->group];

	if (table == group->table)
		return true;
	/* Who is attached can be given another one, and takes its group with it. */
	if (group->table != NONE && !file->attached)
		return false;
	if (!tables[table].for_pasids && has_pasid_attached(group))
		return false;
	return !tables[table].enforced || all_coherent(file->group);
}

int table_for(const struct file *file, int ioas, int table)
{
	const struct group *group = &groups[file->group];
	int i;

	if (table != NONE)
		return table_fits(table, file) ? table : -EINVAL;
	for (i = 0; i < nr_tables; i++)
		if (tables[i].ioas == ioas && table_fits(i, file))
			return i;
	if ((group->table != NONE && !file->attached) || has_pasid_attached(group))
		return -EINVAL;
	return devices[file->device].coherent && !all_coherent(file->group) ? -EINVAL : NONE;
}

static void forget_unused_tables(void)
{
	int i, j;

	for (i = nr_tables - 1; i >= 0; i--) {
		if (tables[i].for_pasids)
			break;
		for (j = 0; j < nr_groups && groups[j].table != i; j++)
			;
		if (j < nr_groups)
			continue;
		memmove(&tables[i], &tables[i + 1], (--nr_tables - i) * sizeof(*tables));
		for (j = 0; j < nr_groups; j++)
			groups[j].table -= groups[j].table > i;
	}
}

void model_attach_cdev(struct file *file, int ioas, int table, uint32_t id)
{
	file->attached = true;
	if (groups[file->group].emulated)
		return;
	if (table == NONE) {
		table = nr_tables++;
		tables[table] = (struct table){ ioas, id, devices[file->device].coherent, false };
	}
	groups[file->group].table = table;
	forget_unused_tables();
}

void model_detach_cdev(struct file *file)
{
	int i;

	file->attached = false;
	for (i = 0; i < FILES; i++)
		if (files[i].used && files[i].attached && files[i].group == file->group)
			return;
	groups[file->group].table = NONE;
	forget_unused_tables();
}

/* ---- PASIDs -------------------------------------------------------------- */

void model_pasid_tables(uint32_t good, uint32_t bad)
{
	tables[0] = (struct table){ NONE, good, true, true };
	tables[1] = (struct table){ NONE, bad, false, true };
	nr_tables = PASID_TABLES;
}

int pasid_fits(const struct file *file, int pasid, int table)
{
	const struct group *group = &groups[file->group];
	int old = group->pasid[pasid];

	if (table == old)
		return 0;
	/* Who is attached moves its group. */
	if (old != NONE && !(file->pasids & 1u << pasid))
		return -EINVAL;
	if (group->table != NONE && !tables[group->table].for_pasids)
		return -EINVAL;
	return tables[table].enforced && !all_coherent(file->group) ? -EINVAL : 0;
}

void model_attach_pasid(struct file *file, int pasid, int table)
{
	file->pasids |= 1u << pasid;
	groups[file->group].pasid[pasid] = table;
}

void model_detach_pasid(struct file *file, int pasid)
{
	int i;

	file->pasids &= ~(1u << pasid);
	for (i = 0; i < FILES; i++)
		if (files[i].used && files[i].group == file->group &&
		    files[i].pasids & 1u << pasid)
			return;
	groups[file->group].pasid[pasid] = NONE;
}

/* ---- containers ---------------------------------------------------------- */

static int groups_in(int container)
{
	int i, count = 0;

	for (i = 0; i < FILES; i++)
		count += is_group(&files[i]) && files[i].container == container;
	return count;
}

/* As VFIO_DMA_CC_IOMMU says: of domains, and emulated devices have none. */
bool container_enforces(int container)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (is_group(&files[i]) && files[i].container == container &&
		    !groups[files[i].group].emulated && !files[i].enforced)
			return false;
	return true;
}

void model_open(int f, int group, int device, int parent, int fd)
{
	files[f] = (struct file){
		.used = true, .fd = fd, .copy = -1, .group = group, .device = device,
		.parent = parent, .container = NONE,
	};
	/* The domain stays for as long as the device is open. */
	if (parent != NONE)
		files[f].enforced = files[parent].enforced;
}

void model_cdev(int f, int device, int fd, int number)
{
	model_open(f, devices[device].group, device, NONE, fd);
	files[f].cdev = true;
	files[f].cdev_number = number;
}

static void model_attach(struct file *file)
{
	if (groups[file->group].emulated) {
		file->enforced = old_vfio;
		return;
	}
	file->enforced = all_coherent(file->group);
}

void model_join(int f, int container)
{
	files[f].container = container;
	if (containers[container].iommu)
		model_attach(&files[f]);
}

/* The last group takes the IOMMU with it. */
void model_detach(struct file *file)
{
	int container = file->container;

	file->container = NONE;
	if (container != NONE && !groups_in(container))
		containers[container].iommu = false;
}

void model_iommu(int container)
{
	int i;

	containers[container].iommu = true;
	for (i = 0; i < FILES; i++)
		if (is_group(&files[i]) && files[i].container == container)
			model_attach(&files[i]);
}

void model_unbound(int device)
{
	int file = live_file(devices[device].group);

	devices[device].bound = false;
	if (group_is_alive(devices[device].group) || file == NONE)
		return;
	files[file].dead = true;
	model_detach(&files[file]);
}

/* ---- who has what -------------------------------------------------------- */

static void forget_order(struct vm *vm, int f)
{
	int i, kept = 0;

	for (i = 0; i < vm->files; i++)
		if (vm->order[i] != f)
			vm->order[kept++] = vm->order[i];
	vm->files = kept;
}

static void let_go(int v, int f)
{
	files[f].owners &= ~(1u << v);
	if (coherency_of(&files[f]) != KVM_VFIO_FILE_NOT_ATTACHED)
		files[f].left_by = vms[v].device_id;
}

void model_track(int v, int f, bool track)
{
	if (track) {
		if (files[f].owners ||
		    (files[f].left_by && files[f].left_by != vms[v].device_id))
			vms[v].inherits = vms[v].inherits_now = true;
		files[f].owners |= 1u << v;
		vms[v].order[vms[v].files++] = f;
	} else {
		let_go(v, f);
		forget_order(&vms[v], f);
	}
}

void model_device_gone(int v)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (tracks(v, &files[i]))
			let_go(v, i);
	vms[v].files = 0;
	vms[v].has_device = false;
}

static void settle_vm(int v)
{
	struct vm *vm = &vms[v];

	if (vm->has_device && vm->dev < 0 && !vm->device_held)
		model_device_gone(v);
	if (!vm->exists || vm->fd >= 0 || vm->dev >= 0 || vm->held || vm->device_held)
		return;
	*vm = no_vm();
}

static void settle_file(int f)
{
	struct file *file = &files[f];
	int i;

	if (!file->used || file->fd >= 0 || file->copy >= 0 || file->flights || file->held ||
	    file->owners || has_children(f))
		return;
	model_detach(file);
	if (file->attached)
		model_detach_cdev(file);
	for (i = 0; i < PASIDS; i++)
		if (file->pasids & 1u << i)
			model_detach_pasid(file, i);
	file->used = false;
}

void model_settle(void)
{
	int i, round;

	for (i = 0; i < VMS; i++)
		settle_vm(i);
	/* The files of devices first: they have those of groups. */
	for (round = 0; round < 2; round++)
		for (i = 0; i < FILES; i++)
			settle_file(i);
	for (i = 0; i < CONTAINERS; i++)
		containers[i].alive = containers[i].fd >= 0 || containers[i].held || groups_in(i);
}

/* ---- what follows for the VMs -------------------------------------------- */

static unsigned int online(void)
{
	return cpu1_online ? 3 : 1;
}

static unsigned int flush(unsigned int cpus)
{
	int cpu;

	cpus &= online();
	for (cpu = 0; cpu < CPUS; cpu++)
		flushes_on[cpu] += cpus >> cpu & 1;
	return __builtin_popcount(cpus);
}

/*
 * Without memory for the mask of the dirty CPUs all CPUs write their caches back. Who that
 * was in a call that has succeeded only the kernel knows.
 */
static unsigned int dirty_or_all(int v, unsigned int dirty)
{
	const struct vm *vm = &vms[v];
	long flushes;

	if (!fault_survived)
		return dirty;
	flushes = vm_number(vm->creator, vm->number, "noncoherent_dma_flushes") - vm->flushes;
	return flushes == __builtin_popcount(online()) ? online() : dirty;
}

static unsigned int dirty_of(const struct vm *vm)
{
	unsigned int dirty = 0;
	int i;

	for (i = 0; i < VCPUS; i++)
		dirty |= vm->dirty[i];
	return dirty;
}

/* A VM without vCPUs has nothing mapped. */
static int zaps_of_change(const struct vm *vm)
{
	return options.memtypes && (vm->made[0] || vm->made[1]);
}

/* It has failed before that, or after. */
void model_took_back(void)
{
	struct vm *vm;

	for (vm = vms; vm < vms + VMS; vm++) {
		if (!vm->exists || vm->noncoherent ||
		    vm_number(vm->creator, vm->number, "noncoherent_dma_changes") != vm->changes + 2)
			continue;
		vm->changes += 2;
		vm->zaps += 2 * zaps_of_change(vm);
		vm->flushes += flush(dirty_of(vm));
	}
}

static void follow_vm(int v)
{
	int i, noncoherent = 0, before = vms[v].noncoherent;
	struct vm *vm = &vms[v];

	for (i = 0; i < FILES; i++)
		noncoherent += files[i].used && tracks(v, &files[i]) &&
			       coherency_of(&files[i]) == KVM_VFIO_FILE_NOT_ENFORCED;
	vm->noncoherent = noncoherent;
	if (!before == !noncoherent)
		return;
	vm->changes++;
	vm->zaps += zaps_of_change(vm);
	if (noncoherent)
		vm->flushes += flush(dirty_or_all(v, dirty_of(vm)));
}

/* After what follows from the file's coherency */
static void inherit(struct vm *vm)
{
	int i;

	for (i = 0; i < VCPUS && vm->inherits_now; i++)
		if (vm->made[i])
			vm->dirty[i] = ALL_CPUS;
	vm->inherits_now = false;
}

void model_follow(void)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (coherency_of(&files[i]) == KVM_VFIO_FILE_NOT_ATTACHED)
			files[i].left_by = 0;
	for (i = 0; i < VMS; i++)
		if (vms[i].exists) {
			follow_vm(i);
			inherit(&vms[i]);
		}
}

/* A vCPU has been made, on CPU 0. */
void model_vcpu(int v, int vcpu)
{
	vms[v].dirty[vcpu] = vms[v].inherits ? ALL_CPUS : 1;
}

void model_load(int v, int vcpu, int cpu)
{
	vms[v].dirty[vcpu] |= 1u << cpu;
}

void model_wbinvd(int v, int vcpu, int cpu)
{
	struct vm *vm = &vms[v];

	vm->exits++;
	if (!vm->noncoherent)
		return;
	vm->exit_flushes++;
	vm->ipis += flush(vm->dirty[vcpu] | 1u << cpu) - 1;
	vm->dirty[vcpu] = 1u << cpu;
}
