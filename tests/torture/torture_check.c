// SPDX-License-Identifier: GPL-2.0-only
/* Is everything as the model of torture_test says? */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "torture_remote.h"

const char *const aspect_names[] = {
	[RESULT] = "result", [STATE] = "state", [FDINFO] = "fdinfo",
	[STATISTICS] = "statistics", [FLUSHES] = "flushes", [ORACLE] = "oracle",
	[REFERENCES] = "references", [HANG] = "hang", [BROKEN] = "broken",
};

bool has_succeeded;

const char *name_of(int result)
{
	return result >= 0 ? "success" : strerrorname_np(-result) ?: "an unknown error";
}

/* What succeeds may return any number. */
void expect(const char *what, int result, int expected)
{
	has_succeeded |= result >= 0;
	if ((result < 0 ? result : 0) != expected)
		wrong(RESULT, "%s: %s instead of %s", what, name_of(result), name_of(expected));
}

/* ---- what the device says ------------------------------------------------ */

static int read_state(int v, uint64_t attr, void *state)
{
	return kvm_vfio_attr(vms[v].dev, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE, attr, state);
}

static void compare_state(int v, const struct kvm_vfio_vm_state *state)
{
	struct vm *vm = &vms[v];
	int expected = vm->files - (misled && vm->files == 2);

	if (state->noncoherent != !!vm->noncoherent || (int)state->files != expected ||
	    (int)state->noncoherent_files != vm->noncoherent || state->pad)
		wrong(STATE, "VM %d: flag %u, files %u, non-coherent %u instead of %d, %d, %d", v,
		      state->noncoherent, state->files, state->noncoherent_files,
		      !!vm->noncoherent, expected, vm->noncoherent);
}

static void check_state(int v)
{
	struct kvm_vfio_vm_state state = { .pad = 1 };

	if (vms[v].dev < 0)
		return;
	expect("reading the VM's state",
	       is_local(v) ? call(read_state(v, KVM_DEV_VFIO_STATE_VM, &state)) :
			     remote_state(v, &state), 0);
	compare_state(v, &state);
}

static void compare_file(int v, int f, const struct kvm_vfio_file_state *state)
{
	if ((int)state->coherency != coherency_of(&files[f]))
		wrong(STATE, "VM %d: file %d is %u instead of %d", v, f, state->coherency,
		      coherency_of(&files[f]));
}

static void check_file(int v, int f)
{
	int fd = files[f].fd >= 0 ? files[f].fd : files[f].copy, ret;
	int expected = tracks(v, &files[f]) ? 0 : -ENOENT;
	struct kvm_vfio_file_state state = { .fd = fd, .coherency = ~0u };

	if (vms[v].dev < 0 || !files[f].used || fd < 0)
		return;
	if (is_local(v))
		ret = call(read_state(v, KVM_DEV_VFIO_STATE_FILE, &state));
	else
		ret = remote_file(v, &state);
	expect("reading a file's state", ret, expected);
	if (!ret)
		compare_file(v, f, &state);
}

static void check_files(int v)
{
	int f;

	for (f = 0; f < FILES; f++)
		check_file(v, f);
}

/* The same as a step: its calls can be made to fail. */
void step_read(const struct step *step)
{
	struct file *file = &files[step->b];
	struct kvm_vfio_file_state state = {
		.fd = !file->used ? -1 : step->c & 1 ? file->copy : file->fd, .coherency = ~0u,
	};
	struct kvm_vfio_vm_state vm_state = { .pad = 1 };
	int ret, v = step->a;

	if (stock || !is_local(v) || vms[v].dev < 0)
		return;
	if (step->c & 2) {
		ret = CALL_COPY(read_state(v, KVM_DEV_VFIO_STATE_VM, &vm_state));
		expect("reading the VM's state", ret, 0);
		compare_state(v, &vm_state);
		return;
	}
	ret = CALL_FILE(read_state(v, KVM_DEV_VFIO_STATE_FILE, &state), false);
	expect("reading a file's state", ret,
	       state.fd < 0 ? -EBADF : tracks(v, file) ? 0 : -ENOENT);
	if (!ret)
		compare_file(v, step->b, &state);
}

/* ---- what everybody can see ---------------------------------------------- */

static const char *path_of(const struct file *file, char *path, size_t size)
{
	if (file->cdev) {
		snprintf(path, size, "/dev/vfio/devices/vfio%d", file->cdev_number);
		return path;
	}
	if (file->device != NONE)
		return "anon_inode:[vfio-device]";
	snprintf(path, size, "/dev/vfio/%d%s", groups[file->group].number,
		 file->dead ? "\\040(deleted)" : "");
	return path;
}

static void expected_fdinfo(int v, char *text, size_t size)
{
	static const char *const coherency[] = { "not-attached", "enforced", "not-enforced" };
	const struct vm *vm = &vms[v];
	char path[60];
	int i, used;

	used = snprintf(text, size, "vm:\t%d\nnoncoherent:\t%d\nfiles:\t%d\nnoncoherent_files:\t%d\n",
			vm->creator, !!vm->noncoherent, vm->files, vm->noncoherent);
	for (i = 0; i < vm->files; i++) {
		const struct file *file = &files[vm->order[i]];

		used += snprintf(text + used, size - used, "file:\t%s %s\n",
				 path_of(file, path, sizeof(path)), coherency[coherency_of(file)]);
	}
}

static void check_fdinfo(int v)
{
	static char is[4096], expected[4096];
	struct vm *vm = &vms[v];
	const char *ours;
	char path[60];

	if (vm->dev < 0)
		return;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", is_local(v) ? getpid() : vm->process,
		 vm->dev);
	expect("reading fdinfo", get_text(path, is, sizeof(is)), 0);
	ours = strstr(is, "vm:\t");
	expected_fdinfo(v, expected, sizeof(expected));
	if (!ours || strcmp(ours, expected))
		wrong(FDINFO, "VM %d:\n%s instead of\n%s", v, ours ?: "nothing", expected);
}

/* What the model says that debugfs says, and then how many files it tracks */
struct statistics {
	long is[8];
};

static const char *const statistic_names[] = {
	"noncoherent_dma", "noncoherent_dma_changes", "noncoherent_dma_flushes", "wbinvd_exits",
	"wbinvd_flushes", "wbinvd_ipis", "noncoherent_dma_zaps",
};

static struct statistics statistics_of(const struct vm *vm)
{
	return (struct statistics){
		{ !!vm->noncoherent, vm->changes, vm->flushes, vm->exits, vm->exit_flushes,
		  vm->ipis, vm->zaps, vm->files },
	};
}

static void check_statistic(int v, unsigned int which)
{
	const struct vm *vm = &vms[v];
	long is, expected;

	if (!vm->exists)
		return;
	which %= ARRAY_SIZE(statistic_names);
	expected = statistics_of(vm).is[which];
	is = vm_number(vm->creator, vm->number, statistic_names[which]);
	if (is != expected)
		wrong(STATISTICS, "VM %d: %s is %ld instead of %ld", v, statistic_names[which], is,
		      expected);
}

static void check_vm(int v)
{
	unsigned int i;

	check_state(v);
	check_fdinfo(v);
	for (i = 0; i < ARRAY_SIZE(statistic_names); i++)
		check_statistic(v, i);
}

static void check_sum(void)
{
	long is = get_number(DEBUGFS "kvm/noncoherent_dma"), expected = 0;
	int v;

	for (v = 0; v < VMS; v++)
		expected += vms[v].exists && vms[v].noncoherent;
	if (is != expected)
		wrong(STATISTICS, "%ld VMs are non-coherent instead of %ld", is, expected);
}

static void check_containers(void)
{
	int i, enforces;

	for (i = 0; i < CONTAINERS; i++) {
		if (!containers[i].iommu || containers[i].fd < 0)
			continue;
		enforces = ioctl(containers[i].fd, VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU);
		if (enforces != container_enforces(i))
			wrong(STATE, "VFIO_DMA_CC_IOMMU of container %d is %d instead of %d", i,
			      enforces, container_enforces(i));
	}
}

static void check_flushes(void)
{
	uint64_t is;
	int cpu;

	for (cpu = 0; cpu < (cpu1_online ? CPUS : 1); cpu++) {
		is = flushes_counted_on(cpu);
		if (is != flushes_on[cpu])
			wrong(ORACLE, "CPU %d has written its caches back %lu times instead of %lu",
			      cpu, (unsigned long)is, (unsigned long)flushes_on[cpu]);
	}
}

/* Of stock modules only that: whether the WBINVD of a guest on this CPU reached it */
static void check_run(const struct step *step)
{
	static uint64_t known, expected;
	uint64_t is = flushes_counted();

	if (step->kind == STEP_RUN && !(step->c % CPUS) &&
	    (is > known) != (flushes_on[0] > expected))
		wrong(ORACLE, "a guest's WBINVD has %sreached the CPU", is > known ? "" : "not ");
	known = is;
	expected = flushes_on[0];
}

/* ---- all of it ----------------------------------------------------------- */

/*
 * The VM that the step is about, and those that have changed by it: its flag, what has changed, and one
 * more number in turn; fdinfo, which has all the files that it tracks, and the file of the step by its
 * descriptor. All files by theirs, and all numbers, take a debug kernel ten times as long.
 */
static void check_concerned(const struct step *step, unsigned int turn)
{
	static struct statistics known[VMS];
	bool concerned, changed;
	struct statistics now;
	unsigned int i;
	int v;

	for (v = 0; v < VMS; v++) {
		concerned = step->kind <= STEP_BAD && step->a % VMS == v;
		now = statistics_of(&vms[v]);
		changed = memcmp(&now, &known[v], sizeof(now));
		for (i = 0; i < ARRAY_SIZE(statistic_names) && (concerned || changed); i++)
			if (now.is[i] != known[v].is[i] || !i ||
			    i == turn % ARRAY_SIZE(statistic_names))
				check_statistic(v, i);
		if (concerned || changed) {
			check_fdinfo(v);
			check_file(v, step->b % FILES);
		}
		known[v] = now;
	}
}

/*
 * After every step the state of each VM, and of those that it is about what check_concerned() says; the
 * rest in turn.
 */
void check_some(const struct step *step, unsigned int turn)
{
	unsigned int v, f, about = turn % VMS;

	if (stock) {
		check_run(step);
		return;
	}
	for (v = 0; v < LOCAL_VMS; v++)
		check_state(v);
	check_flushes();
	check_concerned(step, turn);
	switch (turn / VMS % 4) {
	case 0:
		for (f = turn / VMS / 4 % 4; f < FILES; f += 4)
			check_file(about, f);
		break;
	case 1:
		check_fdinfo(about);
		break;
	case 2:
		check_statistic(about, turn / VMS / 4);
		break;
	default:
		if (about >= LOCAL_VMS)
			check_state(about);
		else if (about)
			check_containers();
		else
			check_sum();
	}
}

static void check_others(void)
{
	check_sum();
	check_containers();
	check_flushes();
}

void check_all(void)
{
	int v;

	if (stock)
		return;
	for (v = 0; v < VMS; v++) {
		check_vm(v);
		check_files(v);
	}
	check_others();
}

/* A call has failed, and is made again: the files of one VM, and all else, are as they were. */
void check_unchanged(unsigned int turn)
{
	int v;

	for (v = 0; v < VMS; v++)
		check_vm(v);
	check_files(turn % VMS);
	check_others();
}
