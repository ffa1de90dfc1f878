// SPDX-License-Identifier: GPL-2.0-only
/* Is everything as the model of torture_test says? */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "torture_remote.h"

const char *const aspect_names[] = {
	[RESULT] = "result", [STATE] = "state", [FDINFO] = "fdinfo",
	[STATISTICS] = "statistics", [FLUSHES] = "flushes", [ORACLE] = "oracle",
	[REFERENCES] = "references", [HANG] = "hang", [BROKEN] = "broken",
};

const char *name_of(int result)
{
	return result >= 0 ? "success" : strerrorname_np(-result) ?: "an unknown error";
}

/* What succeeds may return any number. */
void expect(const char *what, int result, int expected)
{
	if ((result < 0 ? result : 0) != expected)
		wrong(RESULT, "%s: %s instead of %s", what, name_of(result), name_of(expected));
}

/* ---- what the device says ------------------------------------------------ */

static void check_state(int v)
{
	struct kvm_vfio_vm_state state = { .pad = 1 };
	struct vm *vm = &vms[v];
	int ret;

	if (vm->dev < 0)
		return;
	if (is_local(v))
		ret = call(kvm_vfio_attr(vm->dev, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
					 KVM_DEV_VFIO_STATE_VM, &state));
	else
		ret = remote_state(v, &state);
	expect("reading the VM's state", ret, 0);
	if (state.noncoherent != !!vm->noncoherent || (int)state.files != vm->files ||
	    (int)state.noncoherent_files != vm->noncoherent || state.pad)
		wrong(STATE, "VM %d: flag %u, files %u, non-coherent %u instead of %d, %d, %d", v,
		      state.noncoherent, state.files, state.noncoherent_files, !!vm->noncoherent,
		      vm->files, vm->noncoherent);
}

static void check_file(int v, int f)
{
	int fd = files[f].fd >= 0 ? files[f].fd : files[f].copy, ret;
	int expected = tracks(v, &files[f]) ? 0 : -ENOENT;
	struct kvm_vfio_file_state state = { .fd = fd, .coherency = ~0u };

	if (!files[f].used || fd < 0)
		return;
	if (is_local(v))
		ret = call(kvm_vfio_attr(vms[v].dev, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
					 KVM_DEV_VFIO_STATE_FILE, &state));
	else
		ret = remote_file(v, &state);
	expect("reading a file's state", ret, expected);
	if (!ret && (int)state.coherency != coherency_of(&files[f]))
		wrong(STATE, "VM %d: file %d is %u instead of %d", v, f, state.coherency,
		      coherency_of(&files[f]));
}

static void check_files(int v)
{
	int f;

	for (f = 0; f < FILES && vms[v].dev >= 0; f++)
		check_file(v, f);
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

static void check_statistic(int v, unsigned int which)
{
	const struct vm *vm = &vms[v];
	const struct {
		const char *name;
		long expected;
	} statistics[] = {
		{ "noncoherent_dma", !!vm->noncoherent },
		{ "noncoherent_dma_changes", vm->changes },
		{ "noncoherent_dma_flushes", vm->flushes },
		{ "wbinvd_exits", vm->exits },
		{ "wbinvd_flushes", vm->exit_flushes },
		{ "wbinvd_ipis", vm->ipis },
		{ "noncoherent_dma_zaps", vm->zaps },
	};
	long is;

	if (!vm->exists)
		return;
	which %= ARRAY_SIZE(statistics);
	is = vm_number(vm->creator, vm->number, statistics[which].name);
	if (is != statistics[which].expected)
		wrong(STATISTICS, "VM %d: %s is %ld instead of %ld", v, statistics[which].name, is,
		      statistics[which].expected);
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
	uint64_t is = flushes_counted();

	if (is != flushes_here)
		wrong(ORACLE, "CPU 0 has written its caches back %lu times instead of %lu",
		      (unsigned long)is, (unsigned long)flushes_here);
}

/* Of stock modules only that: whether the WBINVD of a guest on this CPU reached it */
static void check_run(const struct step *step)
{
	static uint64_t known, expected;
	uint64_t is = flushes_counted();

	if (step->kind == STEP_RUN && !(step->c % CPUS) &&
	    (is > known) != (flushes_here > expected))
		wrong(ORACLE, "a guest's WBINVD has %sreached the CPU", is > known ? "" : "not ");
	known = is;
	expected = flushes_here;
}

/* ---- all of it ----------------------------------------------------------- */

/* After every step the state of each VM; and the rest in turn. */
void check_some(const struct step *step, unsigned int turn)
{
	unsigned int v, about = turn % VMS;

	if (stock) {
		check_run(step);
		return;
	}
	for (v = 0; v < LOCAL_VMS; v++)
		check_state(v);
	check_flushes();
	switch (turn / VMS % 4) {
	case 0:
		check_files(about);
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

void check_all(void)
{
	int v, i;

	if (stock)
		return;
	for (v = 0; v < VMS; v++) {
		check_state(v);
		check_files(v);
		check_fdinfo(v);
		for (i = 0; i < 7; i++)
			check_statistic(v, i);
	}
	check_sum();
	check_containers();
	check_flushes();
}
