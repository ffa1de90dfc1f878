// SPDX-License-Identifier: GPL-2.0-only
/* The model of mixed_test, its steps, and the comparison with what is */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mixed.h"

bool old_vfio, readable;
int walked = NONE;

struct mixed_vm vms[VMS];
struct device devices[DEVICES];
int next_id;
struct leaving leaving;
int group_number[GROUPS];
int groups;
struct container containers[CONTAINERS];
struct file files[FILES];

/* ---- steps, and what is expected of them --------------------------------- */

void begin(const char *format, ...)
{
	va_list args;
	int used = 0;

	if (walked >= 0)
		used = snprintf(about, sizeof(about), "step %d, ", walked);
	va_start(args, format);
	used += vsnprintf(about + used, sizeof(about) - used - 2, format, args);
	va_end(args);
	if (used > (int)sizeof(about) - 3)
		used = sizeof(about) - 3;
	strcpy(about + used, ": ");
}

static const char *name_of(int result)
{
	return result >= 0 ? "success" : strerrorname_np(-result);
}

void expect_result(int result, int expected)
{
	if ((result < 0 ? result : 0) != expected)
		fail("%s instead of %s", name_of(result), name_of(expected));
}

/* ---- VMs ----------------------------------------------------------------- */

int create_device(int v)
{
	return call(kvm_vfio_create(vms[v].vm.fd));
}

long long debugfs_flag(int v)
{
	return vm_number(vms[v].vm.creator, vms[v].vm.fd, "noncoherent_dma");
}

/* ---- the model ----------------------------------------------------------- */

bool is_leaving(int id)
{
	return leaving.started && leaving.id == id;
}

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

int live_file(int group)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (is_group(&files[i]) && files[i].group == group && !files[i].dead)
			return i;
	return NONE;
}

static bool is_alive(int group)
{
	int id;

	for (id = 0; id < next_id; id++)
		if (devices[id].exists && devices[id].bound && devices[id].group == group)
			return true;
	return false;
}

int open_files_of(int id)
{
	int i, count = 0;

	for (i = 0; i < FILES; i++)
		count += files[i].used && files[i].device == id;
	return count;
}

static bool has_children(int parent)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (files[i].used && files[i].device != NONE && files[i].parent == parent)
			return true;
	return false;
}

/* All of a group's devices are coherent, or all that are bound. */
static bool all_coherent(int group)
{
	int id;

	for (id = 0; id < next_id; id++)
		if (devices[id].exists && devices[id].group == group &&
		    !devices[id].coherent)
			return false;
	return true;
}

/* As VFIO_DMA_CC_IOMMU says. */
static bool container_enforces(int container)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (is_group(&files[i]) && files[i].container == container && !files[i].enforced)
			return false;
	return true;
}

int coherency_of(const struct file *file)
{
	if (file->device == NONE && !is_attached(file))
		return KVM_VFIO_FILE_NOT_ATTACHED;
	return file->enforced ? KVM_VFIO_FILE_ENFORCED : KVM_VFIO_FILE_NOT_ENFORCED;
}

static void model_attach(struct file *file)
{
	file->enforced = all_coherent(file->group);
}

void model_set_iommu(int container)
{
	int i;

	containers[container].iommu = true;
	for (i = 0; i < FILES; i++)
		if (is_group(&files[i]) && files[i].container == container)
			model_attach(&files[i]);
}

static int groups_in(int container)
{
	int i, count = 0;

	for (i = 0; i < FILES; i++)
		count += is_group(&files[i]) && files[i].container == container;
	return count;
}

/* The last group takes the IOMMU with it. */
static void model_detach(struct file *file)
{
	int container = file->container;

	file->container = NONE;
	if (container != NONE && !groups_in(container))
		containers[container].iommu = false;
}

/* Files that nobody has any more are closed: those of devices first. */
static void model_close_unused(void)
{
	int round, i;

	for (round = 0; round < 2; round++) {
		for (i = 0; i < FILES; i++) {
			struct file *file = &files[i];

			if (!file->used || file->fd != NONE || file->owners ||
			    has_children(i))
				continue;
			model_detach(file);
			file->used = false;
		}
	}
}

static void model_unbound(int id)
{
	int file = live_file(devices[id].group);

	devices[id].bound = false;
	if (is_alive(devices[id].group) || file == NONE)
		return;
	files[file].dead = true;
	model_detach(&files[file]);
}

static int new_file(int fd)
{
	int i;

	for (i = 0; i < FILES; i++) {
		if (files[i].used)
			continue;
		files[i] = (struct file){
			.used = true, .fd = fd, .device = NONE, .parent = NONE,
			.container = NONE,
		};
		return i;
	}
	fail("more files than the test expects");
}

/* ---- does it agree? ------------------------------------------------------ */

static void check_files(int v)
{
	int i, ret;

	for (i = 0; i < FILES; i++) {
		struct kvm_vfio_file_state state = { .fd = files[i].fd, .coherency = ~0u };
		int expected = tracks(v, &files[i]) ? 0 : -ENOENT;

		if (!files[i].used || files[i].fd == NONE)
			continue;
		ret = call(kvm_vfio_attr(vms[v].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
					 KVM_DEV_VFIO_STATE_FILE, &state));
		if (ret != expected)
			fail("VM %d's device says %s of file %d instead of %s", v, name_of(ret),
			     i, name_of(expected));
		if (!ret && (int)state.coherency != coherency_of(&files[i]))
			fail("VM %d's device says %u of file %d instead of %d", v,
			     state.coherency, i, coherency_of(&files[i]));
	}
}

static void check_vm(int v)
{
	struct kvm_vfio_vm_state state;
	unsigned int tracked = 0, noncoherent = 0;
	long flag;
	int i, ret;

	for (i = 0; i < FILES; i++) {
		if (!files[i].used || !tracks(v, &files[i]))
			continue;
		tracked++;
		noncoherent += coherency_of(&files[i]) == KVM_VFIO_FILE_NOT_ENFORCED;
	}
	if (wbinvd_is_executed(&vms[v].vm) != !!noncoherent)
		fail("VM %d is %scoherent", v, noncoherent ? "" : "non-");
	if (!readable)
		return;
	ret = call(kvm_vfio_attr(vms[v].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				 KVM_DEV_VFIO_STATE_VM, &state));
	if (ret)
		fail("reading from VM %d's device: %s", v, name_of(ret));
	if (state.noncoherent != !!noncoherent || state.files != tracked ||
	    state.noncoherent_files != noncoherent || state.pad)
		fail("VM %d's device says flag %u, files %u, non-coherent %u instead of %u, %u, %u",
		     v, state.noncoherent, state.files, state.noncoherent_files, !!noncoherent,
		     tracked, noncoherent);
	flag = debugfs_flag(v);
	if (flag != !!noncoherent)
		fail("debugfs says %ld of VM %d instead of %d", flag, v, !!noncoherent);
	check_files(v);
}

void check(void)
{
	int i, v, enforces;

	for (i = 0; i < CONTAINERS; i++) {
		if (!containers[i].iommu)
			continue;
		enforces = must(ioctl(containers[i].fd, VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU));
		if (enforces != container_enforces(i))
			fail("VFIO_DMA_CC_IOMMU of container %d is %d instead of %d", i, enforces,
			     container_enforces(i));
	}
	for (v = 0; v < VMS; v++)
		check_vm(v);
}

void expect_noncoherent(int v, bool expected)
{
	check();
	if (wbinvd_is_executed(&vms[v].vm) != expected)
		fail("VM %d should be %scoherent here", v, expected ? "non-" : "");
}

/* ---- steps: for real and in the model ------------------------------------ */

int plug(bool coherent, int group)
{
	const char *kind = coherent ? "coherent" : "noncoherent";
	int file = group == NONE ? NONE : live_file(group);
	int expected = 0, sibling, ret;

	begin("create %s, group %d", kind, group);
	/* The device has to fit into the domain of the group. */
	if (file != NONE && is_attached(&files[file]) && files[file].enforced && !coherent)
		expected = -EINVAL;
	for (sibling = 0; sibling < next_id; sibling++)
		if (devices[sibling].exists && devices[sibling].group == group)
			break;
	if (group == NONE)
		ret = put(TESTDEV "create", "1 %s", kind);
	else
		ret = put(TESTDEV "create", "1 %s %d", kind, sibling);
	expect_result(ret, expected);
	if (ret)
		return NONE;
	if (group == NONE) {
		group = groups++;
		group_number[group] = testdev_group_number(next_id);
	}
	devices[next_id] = (struct device){
		.exists = true, .coherent = coherent, .bound = true, .group = group,
	};
	return next_id++;
}

void unplug(int id)
{
	begin("destroy %d", id);
	expect_result(put(TESTDEV "destroy", "%d", id), 0);
	if (devices[id].bound)
		model_unbound(id);
	devices[id].exists = false;
}

void bind_device(int id)
{
	int expected = devices[id].bound ? -EBUSY : 0;

	begin("bind %d", id);
	expect_result(bind_testdev(id), expected);
	devices[id].bound = true;
}

void unbind_device(int id)
{
	int expected = devices[id].bound ? 0 : -ENODEV;

	begin("unbind %d", id);
	expect_result(unbind_testdev(id), expected);
	if (devices[id].bound)
		model_unbound(id);
}

void set_coherent(int id, bool coherent)
{
	char path[100];

	begin("device %d becomes %scoherent", id, coherent ? "" : "non-");
	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/coherent", id);
	expect_result(put(path, coherent ? "1" : "0"), 0);
	devices[id].coherent = coherent;
}

int open_group(int group)
{
	int expected = 0, file, fd;

	begin("open group %d", group);
	if (!is_alive(group))
		expected = -ENOENT;
	else if (live_file(group) != NONE)
		expected = -EBUSY;
	fd = open_group_number(group_number[group]);
	expect_result(fd, expected);
	if (fd < 0)
		return NONE;
	file = new_file(fd);
	files[file].group = group;
	return file;
}

void close_file(int f)
{
	begin("close file %d", f);
	close_fd(&files[f].fd);
	model_close_unused();
}

void join(int f, int container)
{
	struct file *file = &files[f];
	int expected = 0, ret;

	begin("SET_CONTAINER %d of file %d", container, f);
	if (file->container != NONE)
		expected = -EINVAL;
	else if (file->dead)
		expected = -ENODEV;
	ret = call(group_join(file->fd, containers[container].fd));
	expect_result(ret, expected);
	if (ret)
		return;
	file->container = container;
	if (containers[container].iommu)
		model_attach(file);
}

void leave(int f)
{
	struct file *file = &files[f];
	int expected = 0, ret;

	begin("UNSET_CONTAINER of file %d", f);
	if (file->container == NONE)
		expected = -EINVAL;
	else if (has_children(f))
		expected = -EBUSY;
	ret = call(group_leave(file->fd));
	expect_result(ret, expected);
	if (!ret)
		model_detach(file);
}

void set_iommu(int container)
{
	int expected = 0, ret;

	begin("SET_IOMMU of container %d", container);
	if (containers[container].iommu || !groups_in(container))
		expected = -EINVAL;
	ret = call(container_set_iommu(containers[container].fd));
	expect_result(ret, expected);
	if (!ret)
		model_set_iommu(container);
}

int open_device(int f, int id)
{
	struct file *group = &files[f];
	int expected = 0, file, fd;
	char name[40];

	begin("GET_DEVICE_FD of device %d from file %d", id, f);
	if (group->dead || !devices[id].bound || devices[id].group != group->group)
		expected = -ENODEV;
	else if (is_leaving(id) && !old_vfio)
		expected = -ENODEV;	/* 6.1 still lists it */
	else if (!is_attached(group))
		expected = -EINVAL;
	snprintf(name, sizeof(name), "vfio_testdev.%d", id);
	fd = call(ioctl(group->fd, VFIO_GROUP_GET_DEVICE_FD, name));
	expect_result(fd, expected);
	if (fd < 0)
		return NONE;
	file = new_file(fd);
	files[file].group = group->group;
	files[file].device = id;
	files[file].parent = f;
	/* The domain stays for as long as the device is open. */
	files[file].enforced = group->enforced;
	return file;
}

void add(int v, int f)
{
	struct file *file = &files[f];
	int expected = 0, ret;

	begin("ADD of file %d to VM %d", f, v);
	/* Before Linux 6.6 a device's file is no VFIO file. */
	if (old_vfio && file->device != NONE)
		expected = -EINVAL;
	else if (tracks(v, file))
		expected = -EEXIST;
	ret = call(kvm_vfio_add(vms[v].device, file->fd));
	expect_result(ret, expected);
	if (!ret)
		file->owners |= 1u << v;
}

void del(int v, int f)
{
	struct file *file = &files[f];
	int ret;

	begin("DEL of file %d from VM %d", f, v);
	ret = call(kvm_vfio_del(vms[v].device, file->fd));
	expect_result(ret, tracks(v, file) ? 0 : -ENOENT);
	if (!ret)
		file->owners &= ~(1u << v);
}

static void model_device_closed(int v)
{
	int i;

	for (i = 0; i < FILES; i++)
		files[i].owners &= ~(1u << v);
	model_close_unused();
}

void reset(int v)
{
	begin("close and make anew the device of VM %d", v);
	close_fd(&vms[v].device);
	model_device_closed(v);
	vms[v].device = create_device(v);
	expect_result(vms[v].device, 0);
}

static void *leave_slowly(void *unused)
{
	leaving.tid = syscall(SYS_gettid);
	leaving.result = unbind_testdev(leaving.id);
	return NULL;
}

void begin_to_unbind(int id)
{
	char where[100];
	int tries;

	begin("begin to unbind %d", id);
	leaving.id = id;
	leaving.tid = 0;
	if (pthread_create(&leaving.thread, NULL, leave_slowly, NULL))
		fail("no thread");
	leaving.started = true;
	for (tries = 0; tries < 10000; tries++) {
		usleep(1000);
		if (!get_wchan(leaving.tid, where, sizeof(where)) &&
		    strstr(where, "vfio_unregister"))
			return;
	}
	fail("it does not wait in VFIO, but in '%s'", where);
}

void end_to_unbind(void)
{
	begin("end to unbind %d", leaving.id);
	must_join(leaving.thread, "unbinding a device that is closed");
	leaving.started = false;
	expect_result(leaving.result, 0);
	model_unbound(leaving.id);
}

int track(int group, int container)
{
	int file = open_group(group);

	join(file, container);
	if (!containers[container].iommu)
		set_iommu(container);
	add(0, file);
	return file;
}
