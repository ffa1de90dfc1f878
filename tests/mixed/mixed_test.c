// SPDX-License-Identifier: GPL-2.0-only
/*
 * Coherent and non-coherent devices in one VM, in one container, in one group.
 *
 * Runs in the svm lab without its IOMMU, with vfio_testdev.ko beside it, whose
 * devices are coherent or not as asked, join a group and leave it; and with hold.ko,
 * which holds a thread on the second CPU. Every step is done for real and in a model;
 * after each one, all of this has to agree:
 *
 *  - the result of the system call,
 *  - each VM's flag: whether a guest's WBINVD reaches the CPU, which a kprobe in
 *    KVM counts,
 *  - what can be read back from each VM's device, of the VM and of every file, and
 *    from debugfs,
 *  - each container's VFIO_DMA_CC_IOMMU: all its domains enforce coherency,
 *  - which VM the driver of a device is told of when it is opened.
 *
 * The model knows nothing but the devices, and these rules:
 *
 *  - A file is attached while its group is in a container that has its IOMMU, and
 *    the file of a device while it is open. No other file is non-coherent.
 *  - A group's domain enforces coherency if the group had only coherent devices when
 *    it was attached, bound to VFIO or not. What joins a group later must fit into
 *    its domain and changes nothing, and nor does what leaves it.
 *  - A file may be tracked for any number of VMs, once for each. A driver is told of
 *    the one whose ADD of the group's file was the last, of those that still track it.
 *
 * A device's coherency is changed at any time on 6.1, where it counts from the next
 * attachment on. On 6.12 VFIO relies on it not to change while it matters, so that
 * is done while the device is not bound, or its group not attached.
 *
 * Output: KTAP. Usage: mixed_test [SEED [STEPS]], of the random walk.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <linux/vfio.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KPROBE_TYPE	"/sys/bus/event_source/devices/kprobe/type"

/* An extension that no distribution's headers have. */
#ifndef KVM_DEV_VFIO_STATE
#define KVM_DEV_VFIO_STATE		0x1000
#define KVM_DEV_VFIO_STATE_VM		1
#define KVM_DEV_VFIO_STATE_FILE		2

struct kvm_vfio_vm_state {
	__u32 noncoherent;
	__u32 files;
	__u32 noncoherent_files;
	__u32 pad;
};

struct kvm_vfio_file_state {
	__s32 fd;
	__u32 coherency;
};

#define KVM_VFIO_FILE_NOT_ATTACHED	0
#define KVM_VFIO_FILE_ENFORCED		1
#define KVM_VFIO_FILE_NOT_ENFORCED	2
#endif

/* Linux 6.1: a device's file is no VFIO file, and a device that leaves is none of its group. */
static bool old_vfio;
/* Stock modules have nothing to read back: they are judged by WBINVD alone. */
static bool readable;

/* ---- failing ------------------------------------------------------------- */

static jmp_buf test_end;
static char reason[300];
static char step[100];		/* the last one, for the reason */
static int walked = -1;		/* and its number in a random walk */

/* End the test that is running. Only for the main thread. */
static void __attribute__((noreturn, format(printf, 1, 2)))
fail(const char *format, ...)
{
	va_list args;
	int used;

	if (walked < 0)
		used = snprintf(reason, sizeof(reason), "%s: ", step);
	else
		used = snprintf(reason, sizeof(reason), "step %d, %s: ", walked, step);
	va_start(args, format);
	vsnprintf(reason + used, sizeof(reason) - used, format, args);
	va_end(args);
	longjmp(test_end, 1);
}

static void __attribute__((format(printf, 1, 2)))
begin(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(step, sizeof(step), format, args);
	va_end(args);
}

#include "testdev.h"

/* A system call that returns 0 or more, or fails: the result as the kernel gave it. */
static int call(long ret)
{
	return ret < 0 ? -errno : ret;
}

static const char *name_of(int result)
{
	return result >= 0 ? "success" : strerrorname_np(-result);
}

/* RESULT is that of the step; what succeeds may return any number. */
static void expect_result(int result, int expected)
{
	if ((result < 0 ? result : 0) != expected)
		fail("%s instead of %s", name_of(result), name_of(expected));
}

/* ---- what has to end ----------------------------------------------------- */

/* Seconds for what takes milliseconds: the lab may be slow. */
#define PATIENCE	60

/*
 * What does not end would take the run with it. It may wait for a file that is open
 * here, and the process would not end before it: so close them all.
 */
static void __attribute__((noreturn)) never_ends(const char *what)
{
	printf("Bail out! %s: no end of %s after %d s\n", step, what, PATIENCE);
	syscall(SYS_close_range, 3, ~0u, 0);
	_exit(1);
}

static void must_join(pthread_t thread, const char *what)
{
	struct timespec limit;

	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += PATIENCE;
	if (pthread_timedjoin_np(thread, NULL, &limit))
		never_ends(what);
}

static void must_die(pid_t pid, const char *what)
{
	int tries;

	kill(pid, SIGKILL);
	for (tries = 0; waitpid(pid, NULL, WNOHANG) != pid; tries++) {
		if (tries == PATIENCE * 1000)
			never_ends(what);
		usleep(1000);
	}
}

/* ---- VMs ----------------------------------------------------------------- */

#define VMS		2
#define GUEST_ENTRY	0x1000

/* They live as long as the program, their devices from case to case. */
static struct vm {
	int fd, vcpu, device;
	pid_t creator;		/* what the kernel calls the VM by */
	struct kvm_run *run;
	char *mem;
} vms[VMS];

static int probe;	/* counts wbinvd_ipi() on the CPU that we run on */

/* wbinvd; hlt; jmp to the start */
static const uint8_t guest_code[] = { 0x0f, 0x09, 0xf4, 0xeb, 0xfb };

/* In a thread, so that each VM has a creator of its own. */
static void *create_vm(void *arg)
{
	struct vm *vm = arg;
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	vm->creator = gettid();
	vm->fd = call(ioctl(kvm, KVM_CREATE_VM, 0));
	close(kvm);
	return NULL;
}

static void make_vm(struct vm *vm)
{
	struct kvm_userspace_memory_region slot = {
		.guest_phys_addr = GUEST_ENTRY, .memory_size = 4096,
	};
	struct kvm_regs regs = { .rip = GUEST_ENTRY, .rflags = 2 };
	int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC));
	struct kvm_sregs sregs;
	pthread_t thread;
	size_t run_size;

	if (pthread_create(&thread, NULL, create_vm, vm) || pthread_join(thread, NULL))
		fail("no thread");
	expect_result(vm->fd, 0);
	vm->device = -1;
	vm->mem = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (vm->mem == MAP_FAILED)
		fail("no memory for a guest");
	memcpy(vm->mem, guest_code, sizeof(guest_code));
	slot.userspace_addr = (uintptr_t)vm->mem;
	must(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot));
	vm->vcpu = must(ioctl(vm->fd, KVM_CREATE_VCPU, 0));
	vm->run = map_vcpu(kvm, vm->vcpu, &run_size);
	close(kvm);
	must(ioctl(vm->vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.selector = 0;
	sregs.cs.base = 0;
	must(ioctl(vm->vcpu, KVM_SET_SREGS, &sregs));
	must(ioctl(vm->vcpu, KVM_SET_REGS, &regs));
}

static int create_device(const struct vm *vm)
{
	struct kvm_create_device request = { .type = KVM_DEV_TYPE_VFIO };
	int ret = call(ioctl(vm->fd, KVM_CREATE_DEVICE, &request));

	return ret ? ret : (int)request.fd;
}

static int device_attr(int device, unsigned long op, int group, int attr, void *addr)
{
	struct kvm_device_attr request = {
		.group = group, .attr = attr, .addr = (uintptr_t)addr,
	};

	return call(ioctl(device, op, &request));
}

static int add_fd(int device, int fd)
{
	return device_attr(device, KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP,
			   KVM_DEV_VFIO_GROUP_ADD, &fd);
}

static int del_fd(int device, int fd)
{
	return device_attr(device, KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP,
			   KVM_DEV_VFIO_GROUP_DEL, &fd);
}

static void count_flushes(void)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.kprobe_func = (uintptr_t)"kvm:wbinvd_ipi",
	};
	long type = get_number(KPROBE_TYPE);
	cpu_set_t set;

	if (type < 0)
		fail("%s: %s", KPROBE_TYPE, name_of(type));
	attr.type = type;
	CPU_ZERO(&set);
	CPU_SET(0, &set);
	must(sched_setaffinity(0, sizeof(set), &set));
	probe = must(syscall(SYS_perf_event_open, &attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC));
}

static uint64_t flushes(void)
{
	uint64_t count;

	if (read(probe, &count, sizeof(count)) != sizeof(count))
		fail("the kprobe does not count");
	return count;
}

/* Does a WBINVD of the guest reach the CPU? */
static bool is_noncoherent(struct vm *vm)
{
	uint64_t before = flushes();
	int ret;

	do {
		ret = call(ioctl(vm->vcpu, KVM_RUN, 0));
	} while (ret == -EINTR);
	if (ret || vm->run->exit_reason != KVM_EXIT_HLT)
		fail("the guest left with %s, exit %u", name_of(ret), vm->run->exit_reason);
	return flushes() > before;
}

static long debugfs_flag(const struct vm *vm)
{
	char path[100];

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/noncoherent_dma",
		 vm->creator, vm->fd);
	return get_number(path);
}

/* ---- the model ----------------------------------------------------------- */

#define DEVICES		400
#define GROUPS		16
#define FILES		100
#define CONTAINERS	3
#define NONE		(-1)

/* The fixture's devices, by their IDs. */
static struct device {
	bool exists, coherent;
	bool bound;		/* to VFIO, or on its way out but still open */
	int group;
} devices[DEVICES];
static int next_id;

/* A device that is open does not go before it is closed: a thread waits for that. */
static struct {
	pthread_t thread;
	pid_t tid;
	int id;
	bool started;
	int result;
} leaving;

static bool is_leaving(int id)
{
	return leaving.started && leaving.id == id;
}

/* IOMMU groups: the number is the name of the file, whichever device brings it back. */
static int group_number[GROUPS];
static int groups;

static struct container {
	int fd;
	bool iommu;
} containers[CONTAINERS];

/*
 * An open file of a group or of a device, as long as anybody has it: this process, a
 * VM, or, of a group, the file of its device.
 */
static struct file {
	bool used;
	int fd;			/* NONE: closed */
	unsigned int owners;	/* the VMs that track it, a bit each */
	int group;
	int device;		/* whose file it is; NONE: a group's */
	int parent;		/* of a device's file: the group's file it came from */
	/* Of a group's file: */
	bool dead;		/* the group's last device has left VFIO */
	int container;		/* or NONE */
	bool enforced;		/* by its domain, if the container has its IOMMU */
} files[FILES];

static bool tracks(int v, const struct file *file)
{
	return file->owners & (1u << v);
}

static bool is_group(const struct file *file)
{
	return file->used && file->device == NONE;
}

static bool is_attached(const struct file *file)
{
	return file->container != NONE && containers[file->container].iommu;
}

/* The file of a group as it is now, or NONE. */
static int live_file(int group)
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

static int open_files_of(int id)
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

static int coherency_of(const struct file *file)
{
	if (file->device == NONE && !is_attached(file))
		return KVM_VFIO_FILE_NOT_ATTACHED;
	return file->enforced ? KVM_VFIO_FILE_ENFORCED : KVM_VFIO_FILE_NOT_ENFORCED;
}

static void model_attach(struct file *file)
{
	file->enforced = all_coherent(file->group);
}

static void model_set_iommu(int container)
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
		ret = device_attr(vms[v].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_FILE, &state);
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
	if (is_noncoherent(&vms[v]) != !!noncoherent)
		fail("VM %d is %scoherent", v, noncoherent ? "" : "non-");
	if (!readable)
		return;
	ret = device_attr(vms[v].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
			  KVM_DEV_VFIO_STATE_VM, &state);
	if (ret)
		fail("reading from VM %d's device: %s", v, name_of(ret));
	if (state.noncoherent != !!noncoherent || state.files != tracked ||
	    state.noncoherent_files != noncoherent || state.pad)
		fail("VM %d's device says flag %u, files %u, non-coherent %u instead of %u, %u, %u",
		     v, state.noncoherent, state.files, state.noncoherent_files, !!noncoherent,
		     tracked, noncoherent);
	flag = debugfs_flag(&vms[v]);
	if (flag != !!noncoherent)
		fail("debugfs says %ld of VM %d instead of %d", flag, v, !!noncoherent);
	check_files(v);
}

static void check(void)
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

/* For the cases, which know what the model has to come to. */
static void expect_noncoherent(int v, bool expected)
{
	check();
	if (is_noncoherent(&vms[v]) != expected)
		fail("VM %d should be %scoherent here", v, expected ? "non-" : "");
}

/* ---- steps: for real and in the model ------------------------------------ */

/* A new device, bound at once, in GROUP or, for NONE, in a new one: returns its ID. */
static int plug(bool coherent, int group)
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

/* Only a device that is not open, or this would wait. */
static void unplug(int id)
{
	begin("destroy %d", id);
	expect_result(put(TESTDEV "destroy", "%d", id), 0);
	if (devices[id].bound)
		model_unbound(id);
	devices[id].exists = false;
}

static void bind_device(int id)
{
	int expected = devices[id].bound ? -EBUSY : 0;

	begin("bind %d", id);
	expect_result(put(DRIVER "bind", "vfio_testdev.%d", id), expected);
	devices[id].bound = true;
}

/* As with unplug() */
static void unbind_device(int id)
{
	int expected = devices[id].bound ? 0 : -ENODEV;

	begin("unbind %d", id);
	expect_result(put(DRIVER "unbind", "vfio_testdev.%d", id), expected);
	if (devices[id].bound)
		model_unbound(id);
}

static void set_coherent(int id, bool coherent)
{
	char path[100];

	begin("device %d becomes %scoherent", id, coherent ? "" : "non-");
	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/coherent", id);
	expect_result(put(path, coherent ? "1" : "0"), 0);
	devices[id].coherent = coherent;
}

/* Returns the number of the file, or NONE. */
static int open_group(int group)
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

static void close_file(int f)
{
	begin("close file %d", f);
	close_fd(&files[f].fd);
	model_close_unused();
}

static void join(int f, int container)
{
	struct file *file = &files[f];
	int expected = 0, ret;

	begin("SET_CONTAINER %d of file %d", container, f);
	if (file->container != NONE)
		expected = -EINVAL;
	else if (file->dead)
		expected = -ENODEV;
	ret = call(ioctl(file->fd, VFIO_GROUP_SET_CONTAINER, &containers[container].fd));
	expect_result(ret, expected);
	if (ret)
		return;
	file->container = container;
	if (containers[container].iommu)
		model_attach(file);
}

static void leave(int f)
{
	struct file *file = &files[f];
	int expected = 0, ret;

	begin("UNSET_CONTAINER of file %d", f);
	if (file->container == NONE)
		expected = -EINVAL;
	else if (has_children(f))
		expected = -EBUSY;
	ret = call(ioctl(file->fd, VFIO_GROUP_UNSET_CONTAINER));
	expect_result(ret, expected);
	if (!ret)
		model_detach(file);
}

static void set_iommu(int container)
{
	int expected = 0, ret;

	begin("SET_IOMMU of container %d", container);
	if (containers[container].iommu || !groups_in(container))
		expected = -EINVAL;
	ret = call(ioctl(containers[container].fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	expect_result(ret, expected);
	if (!ret)
		model_set_iommu(container);
}

/* Returns the number of the device's file, or NONE. */
static int open_device(int f, int id)
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

static void add(int v, int f)
{
	struct file *file = &files[f];
	int expected = 0, ret;

	begin("ADD of file %d to VM %d", f, v);
	/* Before Linux 6.6 a device's file is no VFIO file. */
	if (old_vfio && file->device != NONE)
		expected = -EINVAL;
	else if (tracks(v, file))
		expected = -EEXIST;
	ret = add_fd(vms[v].device, file->fd);
	expect_result(ret, expected);
	if (!ret)
		file->owners |= 1u << v;
}

static void del(int v, int f)
{
	struct file *file = &files[f];
	int ret;

	begin("DEL of file %d from VM %d", f, v);
	ret = del_fd(vms[v].device, file->fd);
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

static void reset(int v)
{
	begin("close and make anew the device of VM %d", v);
	close_fd(&vms[v].device);
	model_device_closed(v);
	vms[v].device = create_device(&vms[v]);
	expect_result(vms[v].device, 0);
}

static void *leave_slowly(void *unused)
{
	leaving.tid = syscall(SYS_gettid);
	leaving.result = put(DRIVER "unbind", "vfio_testdev.%d", leaving.id);
	return NULL;
}

/* Returns when VFIO waits for the device to be closed. */
static void begin_to_unbind(int id)
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

static void end_to_unbind(void)
{
	begin("end to unbind %d", leaving.id);
	must_join(leaving.thread, "unbinding a device that is closed");
	leaving.started = false;
	expect_result(leaving.result, 0);
	model_unbound(leaving.id);
}

/* ---- a thread that is held, and who comes meanwhile ---------------------- */

#define HOLD	"/sys/module/hold/parameters/"

/* A system call of another thread */
struct caller {
	pthread_t thread;
	pid_t tid;
	int cpu;
	int (*call)(void);
	int result;
	bool started;
	atomic_bool ended;
};

/* Who is held by hold.ko keeps its CPU, so that is not ours. */
static struct caller held = { .cpu = 1 }, follower = { .cpu = 0 };
/* What their calls are about, and the file of a device that one of them opens */
static int their_device, their_file, their_fd = NONE;

/* Processes that can be killed one by one; they share our memory, so they may use the VM. */
static struct reader {
	pid_t pid;
	int (*read)(void);
	char stack[16384] __attribute__((aligned(16)));
} readers[2];

static int run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return call(sched_setaffinity(0, sizeof(set), &set));
}

static void *caller_main(void *arg)
{
	struct caller *caller = arg;

	caller->tid = gettid();
	caller->result = run_on(caller->cpu);
	if (!caller->result)
		caller->result = caller->call();
	caller->ended = true;
	return NULL;
}

static void start(struct caller *caller, int (*their_call)(void))
{
	caller->tid = 0;
	caller->call = their_call;
	caller->ended = false;
	if (pthread_create(&caller->thread, NULL, caller_main, caller))
		fail("no thread");
	caller->started = true;
}

static void join_caller(struct caller *caller)
{
	if (caller->started)
		must_join(caller->thread, "the call of another thread");
	caller->started = false;
}

static bool is_held(void)
{
	return get_number(HOLD "held") == 1;
}

static bool follower_drains(void)
{
	char where[100];

	return follower.tid && !get_wchan(follower.tid, where, sizeof(where)) &&
	       strstr(where, "drain");
}

static bool follower_has_ended(void)
{
	return follower.ended;
}

/* For less time than somebody is held at most */
static void wait_until(bool (*condition)(void), const char *what)
{
	int tries;

	for (tries = 0; tries < 5000; tries++) {
		if (condition())
			return;
		usleep(1000);
	}
	fail("never: %s", what);
}

/* Hold the thread that makes THEIR_CALL when it comes to FUNCTION. */
static void hold(int (*their_call)(void), const char *function)
{
	char options[100];

	snprintf(options, sizeof(options), "function=%s", function);
	load("hold.ko", options);
	start(&held, their_call);
	wait_until(is_held, "somebody is held");
}

static void let_go(void)
{
	if (!is_held())
		fail("the hold has come to its own end");
	must_put(HOLD "go", "1");
	join_caller(&held);
	must(syscall(SYS_delete_module, "hold", O_NONBLOCK));
}

static int be_reader(void *arg)
{
	struct reader *reader = arg;

	return reader->read();
}

/* Returns when it waits in a function named like WHERE. */
static void start_reader(struct reader *reader, int (*read)(void), const char *where)
{
	char path[60], is[100];
	int tries;

	reader->read = read;
	reader->pid = must(clone(be_reader, reader->stack + sizeof(reader->stack),
				 CLONE_VM | SIGCHLD, reader));
	snprintf(path, sizeof(path), "/proc/%d/wchan", reader->pid);
	for (tries = 0; tries < 5000; tries++) {
		if (!get_text(path, is, sizeof(is)) && strstr(is, where))
			return;
		usleep(1000);
	}
	fail("a reader does not wait in %s, but in '%s'%s", where, is,
	     is_held() ? "" : ", and nobody is held any more");
}

static void kill_reader(struct reader *reader)
{
	int tries;

	kill(reader->pid, SIGKILL);
	for (tries = 0; tries < 2000; tries++) {
		if (waitpid(reader->pid, NULL, WNOHANG) == reader->pid) {
			reader->pid = 0;
			return;
		}
		usleep(1000);
	}
	fail("who waits cannot be killed");
}

static void tear_down_held(void)
{
	size_t i;

	put(HOLD "go", "1");
	join_caller(&held);
	join_caller(&follower);
	for (i = 0; i < ARRAY_SIZE(readers); i++) {
		if (readers[i].pid > 0)
			must_die(readers[i].pid, "a reader that is killed");
		readers[i].pid = 0;
	}
	syscall(SYS_delete_module, "hold", O_NONBLOCK);
	close_fd(&their_fd);
}

/* ---- from case to case --------------------------------------------------- */

static void set_up(void)
{
	int i;

	memset(files, 0, sizeof(files));
	next_id = 0;
	groups = 0;
	begin("set-up");
	for (i = 0; i < CONTAINERS; i++) {
		containers[i].fd = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
		containers[i].iommu = false;
	}
	for (i = 0; i < VMS; i++)
		vms[i].device = must(create_device(&vms[i]));
	readable = !device_attr(vms[0].device, KVM_HAS_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				KVM_DEV_VFIO_STATE_VM, NULL);
}

static void *destroy_all(void *unused)
{
	put(TESTDEV "destroy", "all");
	return NULL;
}

/* Whatever the case has left. */
static void tear_down(void)
{
	pthread_t destroyer;
	int i;

	tear_down_held();
	for (i = 0; i < VMS; i++)
		close_fd(&vms[i].device);
	for (i = 0; i < FILES; i++)
		if (files[i].used)
			close_fd(&files[i].fd);
	for (i = 0; i < CONTAINERS; i++)
		close_fd(&containers[i].fd);
	if (leaving.started)
		must_join(leaving.thread, "unbinding a device that is closed");
	leaving.started = false;
	if (pthread_create(&destroyer, NULL, destroy_all, NULL))
		never_ends("destroying all devices, which has no thread");
	must_join(destroyer, "destroying all devices, which are closed");
}

/* A file that is attached to CONTAINER, and tracked by VM 0. */
static int track(int group, int container)
{
	int file = open_group(group);

	join(file, container);
	if (!containers[container].iommu)
		set_iommu(container);
	add(0, file);
	return file;
}

/* ---- cases --------------------------------------------------------------- */

static void test_readable(void)
{
	long flag = debugfs_flag(&vms[0]);

	if (!readable)
		fail("the KVM device does not have KVM_DEV_VFIO_STATE");
	if (flag)
		fail("debugfs says %ld of a VM without devices", flag);
}

/* A device that is in the group all the time is given to VFIO, and taken away. */
static void test_bind_into_coherent(void)
{
	int a = plug(true, NONE), b = plug(false, devices[a].group);

	unbind_device(b);
	track(devices[a].group, 0);
	expect_noncoherent(0, true);
	bind_device(b);
	expect_noncoherent(0, true);
	unbind_device(b);
	expect_noncoherent(0, true);
	unplug(b);
	expect_noncoherent(0, true);
}

/* When the domain was chosen, all devices of the group were coherent. */
static void test_changed_then_bound(void)
{
	int a = plug(true, NONE), b = plug(true, devices[a].group), file;

	unbind_device(b);
	file = track(devices[a].group, 0);
	expect_noncoherent(0, false);
	set_coherent(b, false);
	expect_noncoherent(0, false);
	bind_device(b);
	expect_noncoherent(0, false);
	leave(file);
	expect_noncoherent(0, false);
	join(file, 0);
	set_iommu(0);
	expect_noncoherent(0, true);
	unbind_device(b);
	expect_noncoherent(0, true);
}

static void test_plug(void)
{
	int a = plug(true, NONE), group = devices[a].group, b, c, file;

	file = track(group, 0);
	expect_noncoherent(0, false);
	/* Its domain enforces coherency: no non-coherent device can come in. */
	if (plug(false, group) != NONE)
		fail("the IOMMU took it");
	expect_noncoherent(0, false);
	b = plug(true, group);
	expect_noncoherent(0, false);
	leave(file);
	c = plug(false, group);
	expect_noncoherent(0, false);
	join(file, 0);
	set_iommu(0);
	expect_noncoherent(0, true);
	if (plug(false, group) == NONE)
		fail("the IOMMU did not take it");
	expect_noncoherent(0, true);
	unplug(next_id - 1);
	expect_noncoherent(0, true);
	unplug(c);
	expect_noncoherent(0, true);
	unplug(b);
	unplug(a);
	expect_noncoherent(0, false);
}

/* All devices go: the group goes with them, its file stays. */
static void test_no_device_left(void)
{
	int a = plug(false, NONE), b = plug(true, devices[a].group);
	int file = track(devices[a].group, 0), i;

	expect_noncoherent(0, true);
	unbind_device(b);
	expect_noncoherent(0, true);
	unbind_device(a);
	expect_noncoherent(0, false);
	/* Twice: tracked from before, and tracked as a dead one. */
	for (i = 0; i < 2; i++) {
		add(0, file);
		add(1, file);
		join(file, 0);
		leave(file);
		set_iommu(0);
		open_group(devices[a].group);
		open_device(file, a);
		del(1, file);
		expect_noncoherent(0, false);
		del(0, file);
		expect_noncoherent(0, false);
		add(0, file);
		expect_noncoherent(0, false);
	}
	close_file(file);
	expect_noncoherent(0, false);
	reset(0);
	expect_noncoherent(0, false);
}

/* The group comes back, with a file of its own; the old one is tracked all the time. */
static void test_dead_and_new(void)
{
	int a = plug(false, NONE), old = track(devices[a].group, 0), new;

	unbind_device(a);
	expect_noncoherent(0, false);
	bind_device(a);
	expect_noncoherent(0, false);
	join(old, 0);
	new = open_group(devices[a].group);
	add(0, new);
	add(1, new);
	expect_noncoherent(0, false);
	join(new, 0);
	set_iommu(0);
	expect_noncoherent(0, true);
	del(0, old);
	expect_noncoherent(0, true);
	add(1, old);
	expect_noncoherent(1, true);
	del(0, new);
	expect_noncoherent(0, false);
	expect_noncoherent(1, true);
	close_file(old);
	expect_noncoherent(1, true);
	unbind_device(a);
	expect_noncoherent(1, false);
	bind_device(a);
	expect_noncoherent(0, track(devices[a].group, 1) != NONE);
}

/* A device is told to leave, and another one comes, while the first is still open. */
static void test_joins_while_one_leaves(void)
{
	int a = plug(false, NONE), b = plug(true, devices[a].group);
	int file, device, second;

	unbind_device(b);
	file = track(devices[a].group, 0);
	device = open_device(file, a);
	second = open_device(file, a);
	expect_noncoherent(0, true);
	begin_to_unbind(a);
	expect_noncoherent(0, true);
	close_file(device);
	expect_noncoherent(0, true);
	bind_device(b);
	expect_noncoherent(0, true);
	close_file(second);
	end_to_unbind();
	expect_noncoherent(0, true);
}

/* The group's only device has left its list, and is still open, when another one comes. */
static void test_joins_emptied_group(void)
{
	int a = plug(true, NONE), b = plug(true, devices[a].group), file, device;

	unbind_device(b);
	file = track(devices[a].group, 0);
	set_coherent(b, false);
	device = open_device(file, a);
	expect_noncoherent(0, false);
	begin_to_unbind(a);
	expect_noncoherent(0, false);
	bind_device(b);
	expect_noncoherent(0, false);
	close_file(device);
	end_to_unbind();
	expect_noncoherent(0, false);
	unbind_device(b);
	expect_noncoherent(0, false);
}

/* Device files of one group: all pass the group's domain, whose verdict counts. */
static void test_device_files(void)
{
	int a = plug(true, NONE), b = plug(false, devices[a].group);
	int file = track(devices[a].group, 0), coherent, noncoherent;

	coherent = open_device(file, a);
	noncoherent = open_device(file, b);
	expect_noncoherent(0, true);
	del(0, file);
	add(0, coherent);
	expect_noncoherent(0, !old_vfio);
	add(1, noncoherent);
	expect_noncoherent(1, !old_vfio);
	close_file(noncoherent);
	expect_noncoherent(1, !old_vfio);
	leave(file);
	reset(1);
	expect_noncoherent(1, false);
	leave(file);
	close_file(coherent);
	expect_noncoherent(0, !old_vfio);
	reset(0);
	leave(file);
	expect_noncoherent(0, false);
}

/* Each group is what its own domain is, whatever else is in the container. */
static void test_container_mixed(void)
{
	int a = plug(true, NONE), b = plug(false, NONE), file;

	track(devices[a].group, 0);
	file = open_group(devices[b].group);
	expect_noncoherent(0, false);
	join(file, 0);
	expect_noncoherent(0, false);
	add(1, file);
	expect_noncoherent(1, true);
	unbind_device(b);
	expect_noncoherent(0, false);
	expect_noncoherent(1, false);
}

/* The driver of device ID, opened from file F, is told of VM V or, for NONE, of none. */
static void expect_told(int f, int id, int v)
{
	int file = open_device(f, id), i;
	char path[100];
	long creator;

	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/kvm", id);
	creator = get_number(path);
	close_file(file);
	for (i = 0; i < VMS && vms[i].creator != creator; i++)
		;
	if (i < VMS ? i != v : v != NONE || creator)
		fail("the driver is told of VM %d (%ld) instead of %d", i < VMS ? i : NONE,
		     creator, v);
}

/* Both orders of ADD, of letting go, and both ways to do that. */
static void test_told(void)
{
	int id = plug(true, NONE), file = open_group(devices[id].group), way;

	join(file, 0);
	set_iommu(0);
	expect_told(file, id, NONE);
	for (way = 0; way < 16; way++) {
		int one = way & 1, other = !one, first = way >> 1 & 1;

		add(one, file);
		expect_told(file, id, one);
		add(other, file);
		expect_told(file, id, other);
		/* One that fails does not make it the last. */
		add(one, file);
		expect_told(file, id, other);
		if (way & 4)
			del(first, file);
		else
			reset(first);
		expect_told(file, id, !first);
		if (way & 8)
			del(!first, file);
		else
			reset(!first);
		expect_told(file, id, NONE);
	}
	check();
}

/* A VM that tracks the file alone, and lets it go while the device is open. */
static void test_told_when_opened(void)
{
	int id = plug(false, NONE), file = open_group(devices[id].group), device;

	join(file, 0);
	set_iommu(0);
	device = open_device(file, id);
	add(0, file);
	close_file(device);
	expect_told(file, id, 0);
	device = open_device(file, id);
	add(1, file);
	del(0, file);
	close_file(device);
	expect_told(file, id, 1);
	device = open_device(file, id);
	del(1, file);
	close_file(device);
	expect_told(file, id, NONE);
	check();
}

/* ---- the last non-coherent one leaves ------------------------------------ */

#define EACH	5

/* As many coherent groups as non-coherent ones, in a container for each kind. */
static int coherent_file[EACH], noncoherent_file[EACH], noncoherent_device[EACH];

static void track_mixed(void)
{
	int i, id;

	for (i = 0; i < EACH; i++) {
		id = plug(true, NONE);
		coherent_file[i] = track(devices[id].group, 0);
		noncoherent_device[i] = plug(false, NONE);
		noncoherent_file[i] = track(devices[noncoherent_device[i]].group, 1);
		expect_noncoherent(0, true);
	}
}

/* Neither the order of ADD nor its reverse */
static void leave_one_by_one(void (*one_leaves)(int i))
{
	static const int order[EACH] = { 2, 0, 4, 1, 3 };
	int i;

	track_mixed();
	for (i = 0; i < EACH; i++) {
		one_leaves(order[i]);
		expect_noncoherent(0, i + 1 < EACH);
		/* That a coherent one leaves is no reason for anything. */
		del(0, coherent_file[i]);
		expect_noncoherent(0, i + 1 < EACH);
	}
}

static void leave_by_del(int i)
{
	del(0, noncoherent_file[i]);
}

static void leave_by_unset(int i)
{
	leave(noncoherent_file[i]);
}

static void leave_by_unbind(int i)
{
	unbind_device(noncoherent_device[i]);
}

static void leave_by_unplug(int i)
{
	unplug(noncoherent_device[i]);
}

static void test_last_by_del(void)
{
	leave_one_by_one(leave_by_del);
}

static void test_last_by_unset(void)
{
	leave_one_by_one(leave_by_unset);
}

static void test_last_by_unbind(void)
{
	leave_one_by_one(leave_by_unbind);
}

static void test_last_by_unplug(void)
{
	leave_one_by_one(leave_by_unplug);
}

static void test_last_by_closing(void)
{
	track_mixed();
	reset(0);
	expect_noncoherent(0, false);
}

/* Closed files that only the VM has left. */
static void test_last_by_closing_all(void)
{
	int i;

	track_mixed();
	for (i = 0; i < EACH; i++) {
		close_file(coherent_file[i]);
		close_file(noncoherent_file[i]);
		expect_noncoherent(0, true);
	}
	reset(0);
	expect_noncoherent(0, false);
}

/*
 * A process that shares our memory, so that it may use the VM, but not our files. It
 * may not fail(): that would go on with our stack.
 */
static struct {
	int ready[2];
	int result;
	char stack[65536] __attribute__((aligned(16)));
} doomed;

static int be_doomed(void *unused)
{
	int device = create_device(&vms[0]), i, fd, ret = device < 0 ? device : 0;
	char path[100];

	for (i = 0; i < groups && !ret; i++) {
		snprintf(path, sizeof(path), "/dev/vfio/%d", group_number[i]);
		fd = open(path, O_RDWR | O_CLOEXEC);
		ret = call(ioctl(fd, VFIO_GROUP_SET_CONTAINER, &containers[i % 2].fd));
		if (!ret && i < 2)
			ret = call(ioctl(containers[i % 2].fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
		if (!ret)
			ret = add_fd(device, fd);
	}
	doomed.result = ret;
	for (i = write(doomed.ready[1], "x", 1);; pause())
		;
	return i;
}

static void test_last_by_death(void)
{
	struct pollfd ready;
	int i, pid;
	char byte;

	close_fd(&vms[0].device);
	for (i = 0; i < 2 * EACH; i++)
		plug(i % 2, NONE);
	begin("another process tracks all groups");
	must(pipe2(doomed.ready, O_CLOEXEC));
	pid = must(clone(be_doomed, doomed.stack + sizeof(doomed.stack), CLONE_VM | SIGCHLD, NULL));
	ready = (struct pollfd){ .fd = doomed.ready[0], .events = POLLIN };
	if (must(poll(&ready, 1, PATIENCE * 1000)) != 1)
		never_ends("the other process's calls");
	must(read(doomed.ready[0], &byte, 1));
	begin("another process has tracked all groups");
	if (!doomed.result && !is_noncoherent(&vms[0]))
		doomed.result = -EPROTO;
	must_die(pid, "a process that is killed");
	close_fd(&doomed.ready[0]);
	close_fd(&doomed.ready[1]);
	expect_result(doomed.result, 0);
	begin("the process that tracked all groups has died");
	if (is_noncoherent(&vms[0]))
		fail("the VM is non-coherent");
	vms[0].device = must(create_device(&vms[0]));
	expect_noncoherent(0, false);
	for (i = 0; i < groups; i++)
		track(i, i % 2);
	expect_noncoherent(0, true);
}

/* ---- while somebody is held ---------------------------------------------- */

static int call_set_iommu(void)
{
	return call(ioctl(containers[0].fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
}

static int call_open_device(void)
{
	char name[40];

	snprintf(name, sizeof(name), "vfio_testdev.%d", their_device);
	their_fd = call(ioctl(files[their_file].fd, VFIO_GROUP_GET_DEVICE_FD, name));
	return their_fd < 0 ? their_fd : 0;
}

static int call_del(void)
{
	return del_fd(vms[0].device, files[their_file].fd);
}

static int read_vm_state(void)
{
	struct kvm_vfio_vm_state state;

	return device_attr(vms[0].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
			   KVM_DEV_VFIO_STATE_VM, &state);
}

static int read_file_state(void)
{
	struct kvm_vfio_file_state state = { .fd = files[their_file].fd };

	return device_attr(vms[0].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
			   KVM_DEV_VFIO_STATE_FILE, &state);
}

static int read_fdinfo(void)
{
	char path[60], text[200];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", vms[0].device);
	return get_text(path, text, sizeof(text));
}

/*
 * A change takes long. Whoever wants to know the state waits for it, or for somebody
 * who does, and can be killed.
 */
static void test_readers_are_killed(void)
{
	static const struct {
		int (*first)(void), (*second)(void);
		const char *waits_in;		/* the first one */
	} pairs[] = {
		{ read_file_state, read_vm_state, "vfio_external" },
		{ read_vm_state, read_file_state, "kvm_vfio" },
		{ read_fdinfo, read_fdinfo, "kvm_vfio" },
	};
	int id = plug(false, NONE);
	size_t i;

	test_readable();
	their_file = open_group(devices[id].group);
	add(0, their_file);
	for (i = 0; i < ARRAY_SIZE(pairs); i++) {
		join(their_file, 0);
		begin("SET_IOMMU is held while the VM becomes non-coherent");
		hold(call_set_iommu, "kvm:kvm_arch_register_noncoherent_dma");
		begin("pair %zu reads meanwhile", i);
		start_reader(&readers[0], pairs[i].first, pairs[i].waits_in);
		start_reader(&readers[1], pairs[i].second, "kvm_vfio");
		begin("the second of pair %zu", i);
		kill_reader(&readers[1]);
		begin("the first of pair %zu", i);
		kill_reader(&readers[0]);
		let_go();
		begin("SET_IOMMU goes on");
		expect_result(held.result, 0);
		model_set_iommu(0);
		expect_noncoherent(0, true);
		leave(their_file);
	}
}

/* No memory can be mapped for DMA before the VM is non-coherent. */
static void test_no_dma_before(void)
{
	int id = plug(false, NONE), file = open_group(devices[id].group);
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ,
		.vaddr = (uintptr_t)vms[0].mem, .size = 4096,
	};

	test_readable();
	join(file, 0);
	add(0, file);
	begin("VFIO_IOMMU_MAP_DMA before SET_IOMMU");
	expect_result(call(ioctl(containers[0].fd, VFIO_IOMMU_MAP_DMA, &map)), -EINVAL);
	begin("SET_IOMMU is held before the VM is non-coherent");
	hold(call_set_iommu, "kvm:kvm_arch_register_noncoherent_dma");
	begin("VFIO_IOMMU_MAP_DMA before the VM is non-coherent");
	expect_result(call(ioctl(containers[0].fd, VFIO_IOMMU_MAP_DMA, &map)), -EINVAL);
	let_go();
	begin("SET_IOMMU goes on");
	expect_result(held.result, 0);
	model_set_iommu(0);
	begin("VFIO_IOMMU_MAP_DMA after SET_IOMMU");
	expect_result(call(ioctl(containers[0].fd, VFIO_IOMMU_MAP_DMA, &map)), 0);
	expect_noncoherent(0, true);
}

/*
 * A driver is about to refer to the VM. On 6.1 nobody has a reference for it yet, so DEL
 * waits; who does something else with the KVM device does not.
 */
static void test_del_while_opened(void)
{
	their_device = plug(false, NONE);
	their_file = track(devices[their_device].group, 0);
	begin("GET_DEVICE_FD is held in the driver");
	hold(call_open_device, "vfio_testdev:testdev_open_device");
	begin("DEL while a device is opened");
	start(&follower, call_del);
	if (old_vfio)
		wait_until(follower_drains, "DEL waits for the driver");
	else
		wait_until(follower_has_ended, "DEL returns");
	begin("the VM's state is read while a device is opened");
	expect_result(read_vm_state(), 0);
	let_go();
	begin("GET_DEVICE_FD goes on");
	expect_result(held.result, 0);
	close_fd(&their_fd);
	begin("DEL goes on");
	join_caller(&follower);
	expect_result(follower.result, 0);
	files[their_file].owners = 0;
	expect_noncoherent(0, false);
}

/* ---- a random walk ------------------------------------------------------- */

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

/* ---- putting it together ------------------------------------------------- */

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "the state can be read back", test_readable },
	{ "a non-coherent device is bound into a coherent group", test_bind_into_coherent },
	{ "a device becomes non-coherent, and is bound then", test_changed_then_bound },
	{ "devices are plugged into a tracked group", test_plug },
	{ "a tracked group without any device", test_no_device_left },
	{ "a tracked dead group, and the new one of the same device", test_dead_and_new },
	{ "a device joins while another one waits to leave", test_joins_while_one_leaves },
	{ "a non-coherent device joins a group whose last one leaves", test_joins_emptied_group },
	{ "files of devices of one group", test_device_files },
	{ "a coherent and a non-coherent group in one container", test_container_mixed },
	{ "a driver is told of the VM that tracked the group last", test_told },
	{ "a driver is told when its device is opened", test_told_when_opened },
	{ "the last non-coherent of many leaves by DEL", test_last_by_del },
	{ "the last non-coherent of many leaves by UNSET_CONTAINER", test_last_by_unset },
	{ "the last non-coherent of many leaves by being unbound", test_last_by_unbind },
	{ "the last non-coherent of many leaves by being unplugged", test_last_by_unplug },
	{ "all leave by closing the KVM device", test_last_by_closing },
	{ "all leave by closing the KVM device, which has kept them", test_last_by_closing_all },
	{ "all leave by process death", test_last_by_death },
	{ "who reads the state can be killed while it changes", test_readers_are_killed },
	{ "no memory is mapped for DMA before the VM is non-coherent", test_no_dma_before },
	{ "DEL while a driver opens a device of the file", test_del_while_opened },
	{ "a random walk", test_walk },
};

static void prepare(void)
{
	int i;

	begin("preparing");
	if (setjmp(test_end)) {
		printf("Bail out! %s\n", reason);
		exit(1);
	}
	old_vfio = kernel_before(6, 2);
	if (access(TESTDEV, F_OK))
		load_testdev("");
	else
		must_put(TESTDEV "destroy", "all");
	count_flushes();
	for (i = 0; i < VMS; i++)
		make_vm(&vms[i]);
}

static bool run_test(void (*run)(void))
{
	walked = NONE;
	if (setjmp(test_end))
		return false;
	set_up();
	run();
	return true;
}

int main(int argc, char **argv)
{
	int failures = 0;
	unsigned int i;

	if (argc > 1)
		seed = atoi(argv[1]);
	if (argc > 2)
		steps = atoi(argv[2]);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("KTAP version 1\n1..%zu\n", ARRAY_SIZE(tests));
	prepare();
	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		bool passed = run_test(tests[i].run);

		tear_down();
		if (!passed)
			printf("# %s\n", reason);
		printf("%s %u %s\n", passed ? "ok" : "not ok", i + 1, tests[i].name);
		failures += !passed;
	}
	printf("# %d of %zu failed\n", failures, ARRAY_SIZE(tests));
	return failures ? 1 : 0;
}
