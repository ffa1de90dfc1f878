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
 *  - A group's domain enforces coherency if all of its devices were coherent when it was
 *    attached.
 *  - A VM is non-coherent while it tracks a file that is attached to a domain that does not
 *    enforce coherency.
 *  - What a vCPU has dirtied is in the caches of the CPUs that it was loaded on since it
 *    last had them written back. A VM that becomes non-coherent has all of them written
 *    back, a WBINVD in a non-coherent VM those of its vCPU, and any other nothing. CPUs
 *    that are offline have written theirs back.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "torture.h"

struct vm vms[VMS];
struct file files[FILES];
struct container containers[CONTAINERS];
struct holder holders[HOLDERS];
int flight[FLIGHT], nr_flight, flight_socket[2];
bool cpu1_online;
uint64_t flushes_here;

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
	int i;

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
	nr_flight = 0;
	flushes_here = 0;
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

int coherency_of(const struct file *file)
{
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

static void model_attach(struct file *file)
{
	int i;

	if (groups[file->group].emulated) {
		file->enforced = old_vfio;
		return;
	}
	file->enforced = true;
	for (i = 0; i < nr_devices; i++)
		if (devices[i].group == file->group && !devices[i].coherent)
			file->enforced = false;
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

void model_track(int v, int f, bool track)
{
	if (track) {
		files[f].owners |= 1u << v;
		vms[v].order[vms[v].files++] = f;
	} else {
		files[f].owners &= ~(1u << v);
		forget_order(&vms[v], f);
	}
}

void model_device_gone(int v)
{
	int i;

	for (i = 0; i < FILES; i++)
		files[i].owners &= ~(1u << v);
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

	if (!file->used || file->fd >= 0 || file->copy >= 0 || file->flights || file->held ||
	    file->owners || has_children(f))
		return;
	model_detach(file);
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
	cpus &= online();
	flushes_here += cpus & 1;
	return __builtin_popcount(cpus);
}

static void follow_vm(int v)
{
	int i, noncoherent = 0, before = vms[v].noncoherent;
	struct vm *vm = &vms[v];
	unsigned int dirty = 0;

	for (i = 0; i < FILES; i++)
		noncoherent += files[i].used && tracks(v, &files[i]) &&
			       coherency_of(&files[i]) == KVM_VFIO_FILE_NOT_ENFORCED;
	vm->noncoherent = noncoherent;
	if (!before == !noncoherent)
		return;
	vm->changes++;
	if (!noncoherent)
		return;
	for (i = 0; i < VCPUS; i++)
		dirty |= vm->dirty[i];
	vm->flushes += flush(dirty);
}

void model_follow(void)
{
	int i;

	for (i = 0; i < VMS; i++)
		if (vms[i].exists)
			follow_vm(i);
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
