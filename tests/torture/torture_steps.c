// SPDX-License-Identifier: GPL-2.0-only
/*
 * The steps of torture_test. Each one is done for real and in the model, and can be done
 * at any time: what its numbers do not fit is skipped, or expected to fail. So each part of
 * a walk is a walk, and one that fails can be made shorter.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "torture_remote.h"

#define STEP_NAME(name, weight)		#name,
#define STEP_WEIGHT(name, weight)	weight,
const char *const step_names[STEP_KINDS] = { STEPS(STEP_NAME) };
const int step_weights[STEP_KINDS] = { STEPS(STEP_WEIGHT) };

bool has_uffd;
int current_kind;
static int null_fd = -1, iommufd = -1;
static uint32_t ioases[IOASES];

/* ---- VMs ----------------------------------------------------------------- */

/* A thread of its own, so that each VM has a name of its own in debugfs. */
static void *create_vm_here(void *arg)
{
	struct vm *vm = arg;
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	vm->creator = gettid();
	vm->fd = call(ioctl(kvm, KVM_CREATE_VM, 0));
	close(kvm);
	return NULL;
}

static void step_vm(const struct step *step)
{
	struct vm *vm = &vms[step->a];
	pthread_t thread;

	if (vm->exists)
		return;
	if (!is_local(step->a)) {
		expect("a VM in a process of its own", remote_begin(step->a), 0);
		/* Closed with the process, and by nobody else. */
		vm->fd = vm->number;
		vm->exists = true;
		return;
	}
	if (pthread_create(&thread, NULL, create_vm_here, vm) || pthread_join(thread, NULL))
		wrong(BROKEN, "no thread");
	expect("creating a VM", vm->fd, 0);
	vm->number = vm->fd;
	vm->memory = make_memory(vm->fd);
	if (!vm->memory)
		wrong(BROKEN, "no memory for a guest");
	vm->exists = true;
}

static void close_local_vm(struct vm *vm)
{
	int i;

	for (i = 0; i < VCPUS; i++) {
		if (vm->run[i])
			munmap(vm->run[i], vm->run_size);
		vm->run[i] = NULL;
		close_fd(&vm->vcpu[i]);
	}
	if (vm->blocked_page)
		munmap(vm->blocked_page, 4096);
	vm->blocked_page = NULL;
	vm->blocked_slot = false;
	close_fd(&vm->uffd);
	if (vm->memory)
		munmap(vm->memory, 4096);
	vm->memory = NULL;
	close_fd(&vm->fd);
}

static void step_vm_close(const struct step *step)
{
	struct vm *vm = &vms[step->a];

	if (!vm->exists || vm->blocked != NONE)
		return;
	if (is_local(step->a)) {
		close_local_vm(vm);
		return;
	}
	remote_end(step->a);
	vm->fd = vm->dev = -1;
}

enum { HOW_ANEW, HOW_TEST, HOW_BAD_TYPE, HOW_BAD_ADDRESS, HOWS };

void open_null(void)
{
	if (null_fd < 0)
		null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
}

/* So it is on every kernel, for every type of device. */
int create_device_at(int vm, struct kvm_create_device *request, int lowest)
{
	int ret = ioctl(vm, KVM_CREATE_DEVICE, request), error = errno;

	if (ret && error == EFAULT && fcntl(lowest, F_GETFD) >= 0)
		close(lowest);
	errno = error;
	return ret;
}

static int create_device(struct vm *vm, int how, int *expected)
{
	struct kvm_create_device request = {
		.type = how == HOW_BAD_TYPE ? 0xffff : KVM_DEV_TYPE_VFIO, .fd = -1,
		.flags = how == HOW_TEST ? KVM_CREATE_DEVICE_TEST : 0,
	};
	int lowest = dup(null_fd), ret;

	if (vm->fd < 0)
		*expected = -EBADF;
	else if (how == HOW_BAD_TYPE)
		*expected = -ENODEV;
	else if (how == HOW_BAD_ADDRESS)
		*expected = -EFAULT;
	else if (how == HOW_ANEW && vm->has_device)
		*expected = -EBUSY;
	close(lowest);
	ret = CALL_COPY(create_device_at(vm->fd, how == HOW_BAD_ADDRESS ? NULL : &request, lowest));
	return ret || how == HOW_TEST ? ret : (int)request.fd;
}

static void step_device(const struct step *step)
{
	static int devices_made;
	struct vm *vm = &vms[step->a];
	int how = step->b % HOWS, expected = 0, ret;

	if (is_local(step->a)) {
		ret = create_device(vm, how, &expected);
	} else {
		if (!vm->exists || vm->has_device)
			return;
		how = HOW_ANEW;
		ret = remote_device(step->a);
	}
	expect("KVM_CREATE_DEVICE", ret, expected);
	if (ret < 0 || how != HOW_ANEW)
		return;
	vm->dev = ret;
	vm->has_device = true;
	vm->device_id = ++devices_made;
}

static void step_device_close(const struct step *step)
{
	struct vm *vm = &vms[step->a];

	if (vm->dev < 0)
		return;
	if (!is_local(step->a))
		remote_device_close(step->a);
	else
		close(vm->dev);
	vm->dev = -1;
}

/* ---- vCPUs --------------------------------------------------------------- */

static void step_vcpu(const struct step *step)
{
	int number = step->b % VCPUS, ret, expected = 0;
	struct vm *vm = &vms[step->a];

	if (is_local(step->a)) {
		if (vm->fd < 0)
			expected = -EBADF;
		else if (vm->made[number])
			expected = -EEXIST;
		ret = make_vcpu(vm->fd, number, &vm->run[number], &vm->run_size);
	} else {
		if (!vm->exists || vm->made[number])
			return;
		ret = remote_vcpu(step->a, number);
	}
	expect("KVM_CREATE_VCPU", ret, expected);
	if (ret < 0)
		return;
	vm->vcpu[number] = ret;
	vm->made[number] = true;
	model_vcpu(step->a, number);
}

static void step_run(const struct step *step)
{
	int number = step->b % VCPUS, cpu = step->c % CPUS, ret;
	struct vm *vm = &vms[step->a];

	if (vm->vcpu[number] < 0 || vm->blocked == number)
		return;
	if (cpu && !cpu1_online)
		cpu = 0;
	if (is_local(step->a)) {
		if (cpu)
			pin(0, cpu);
		ret = run_guest(vm->vcpu[number], vm->run[number], false);
		if (cpu)
			pin(0, 0);
	} else {
		ret = remote_run(step->a, number, cpu);
	}
	expect("a guest that executes WBINVD", ret, 0);
	model_load(step->a, number, cpu);
	model_wbinvd(step->a, number, cpu);
}

/* ---- a page fault that user space has to resolve ------------------------- */

bool make_missing_page(struct vm *vm)
{
	struct kvm_userspace_memory_region region = {
		.slot = 1, .guest_phys_addr = MISSING_PAGE, .memory_size = 4096,
	};

	vm->uffd = open_userfaultfd(O_NONBLOCK);
	vm->blocked_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				-1, 0);
	region.userspace_addr = (uintptr_t)vm->blocked_page;
	vm->blocked_slot = true;
	return vm->uffd >= 0 && vm->blocked_page != MAP_FAILED &&
	       !hold_back(vm->uffd, vm->blocked_page) &&
	       !ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

void *blocked_vcpu(void *arg)
{
	struct vm *vm = arg;

	return (void *)(long)run_guest(vm->vcpu[vm->blocked], vm->run[vm->blocked], true);
}

static void step_block(const struct step *step)
{
	struct vm *vm = &vms[step->a];
	struct pollfd uffd;
	struct uffd_msg message;

	if (!has_uffd || !is_local(step->a) || vm->fd < 0 || vm->blocked != NONE ||
	    vm->vcpu[step->b % VCPUS] < 0)
		return;
	if (!vm->blocked_slot && !make_missing_page(vm))
		wrong(BROKEN, "no page with userfaultfd");
	madvise(vm->blocked_page, 4096, MADV_DONTNEED);
	vm->blocked = step->b % VCPUS;
	if (pthread_create(&vm->thread, NULL, blocked_vcpu, vm))
		wrong(BROKEN, "no thread");
	model_load(step->a, vm->blocked, 0);
	uffd = (struct pollfd){ .fd = vm->uffd, .events = POLLIN };
	if (poll(&uffd, 1, 20000) != 1 ||
	    read(vm->uffd, &message, sizeof(message)) != sizeof(message))
		wrong(HANG, "VM %d's vCPU does not come to the missing page", step->a);
}

int resolve_page(struct vm *vm)
{
	struct uffdio_zeropage page = { .range = { (uintptr_t)vm->blocked_page, 4096 } };

	return call(ioctl(vm->uffd, UFFDIO_ZEROPAGE, &page));
}

static void step_unblock(const struct step *step)
{
	struct vm *vm = &vms[step->a];
	void *ret;

	if (vm->blocked == NONE)
		return;
	expect("UFFDIO_ZEROPAGE", resolve_page(vm), 0);
	pthread_join(vm->thread, &ret);
	expect("a guest that waited for a page", (long)ret, 0);
	model_wbinvd(step->a, vm->blocked, 0);
	vm->blocked = NONE;
}

/* Waits for page faults in progress, so not while there is one. */
static void step_memslot(const struct step *step)
{
	int number = step->b % MEMSLOTS, expected = 0;
	bool create = step->c & 1;
	struct vm *vm = &vms[step->a];
	struct kvm_userspace_memory_region region = {
		.slot = 2 + number, .guest_phys_addr = 0x10000 * (1 + number),
		.memory_size = create ? 4096 : 0, .userspace_addr = (uintptr_t)vm->memory,
	};

	if (!is_local(step->a) || vm->blocked != NONE)
		return;
	if (vm->fd < 0)
		expected = -EBADF;
	else if (!create && !vm->memslot[number])
		expected = -EINVAL;
	expect("KVM_SET_USER_MEMORY_REGION",
	       call(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region)), expected);
	if (!expected)
		vm->memslot[number] = create;
}

/* ---- the KVM-VFIO device ------------------------------------------------- */

static int fd_of(const struct file *file, bool copy)
{
	return !file->used ? -1 : copy ? file->copy : file->fd;
}

static void step_add_or_del(const struct step *step, bool add)
{
	int v = step->a, fd = fd_of(&files[step->b], step->c & 1), ret, expected = 0;
	bool last = add ? !vms[v].files : vms[v].files == 1;
	struct file *file = &files[step->b];
	struct vm *vm = &vms[v];
	long references = stock ? 0 : module_references("vfio");

	if (vm->dev < 0 || fd < 0)
		expected = -EBADF;
	else if (!add)
		expected = tracks(v, file) ? 0 : -ENOENT;
	else if (old_vfio && file->device != NONE)
		expected = -EINVAL;
	else if (tracks(v, file))
		expected = -EEXIST;
	if (is_local(v))
		ret = add ? CALL_FILE(kvm_vfio_add(vm->dev, fd), !vm->files) :
			    CALL_FILE(kvm_vfio_del(vm->dev, fd), false);
	else if (vm->dev >= 0)
		ret = add ? remote_add(v, fd) : remote_del(v, fd);
	else
		return;
	expect(add ? "ADD" : "DEL", ret, expected);
	/* Used from the first file on, up to the last one */
	if (!ret && last)
		references += add ? 1 : -1;
	if (!stock && module_references("vfio") != references)
		wrong(REFERENCES, "after %s vfio has %ld references instead of %ld",
		      add ? "ADD" : "DEL", module_references("vfio"), references);
	if (!ret)
		model_track(v, step->b, add);
}

static void step_add(const struct step *step)
{
	step_add_or_del(step, true);
}

static void step_del(const struct step *step)
{
	step_add_or_del(step, false);
}

/* Calls that fail, or ask for nothing; what stock says of those that only ours have */
static const struct bad {
	unsigned long op;
	uint32_t group;
	uint64_t attr;
	enum { TO_NULL, TO_MINUS_1, TO_9999, TO_DEV_NULL, TO_VM, TO_DEVICE, TO_CONTAINER } to;
	int expected, stock;
} bad_calls[] = {
	{ KVM_SET_DEVICE_ATTR, 1, 1, TO_NULL, -EFAULT, -EFAULT },
	{ KVM_SET_DEVICE_ATTR, 1, 2, TO_NULL, -EFAULT, -EFAULT },
	{ KVM_SET_DEVICE_ATTR, 1, 1, TO_MINUS_1, -EBADF, -EBADF },
	{ KVM_SET_DEVICE_ATTR, 1, 2, TO_MINUS_1, -EBADF, -EBADF },
	{ KVM_SET_DEVICE_ATTR, 1, 1, TO_9999, -EBADF, -EBADF },
	{ KVM_SET_DEVICE_ATTR, 1, 2, TO_9999, -EBADF, -EBADF },
	{ KVM_SET_DEVICE_ATTR, 1, 1, TO_DEV_NULL, -EINVAL, -EINVAL },
	{ KVM_SET_DEVICE_ATTR, 1, 2, TO_DEV_NULL, -ENOENT, -ENOENT },
	{ KVM_SET_DEVICE_ATTR, 1, 1, TO_VM, -EINVAL, -EINVAL },
	{ KVM_SET_DEVICE_ATTR, 1, 2, TO_VM, -ENOENT, -ENOENT },
	{ KVM_SET_DEVICE_ATTR, 1, 1, TO_DEVICE, -EINVAL, -EINVAL },
	{ KVM_SET_DEVICE_ATTR, 1, 2, TO_DEVICE, -ENOENT, -ENOENT },
	{ KVM_SET_DEVICE_ATTR, 1, 1, TO_CONTAINER, -EINVAL, -EINVAL },
	{ KVM_SET_DEVICE_ATTR, 1, 2, TO_CONTAINER, -ENOENT, -ENOENT },
	{ KVM_SET_DEVICE_ATTR, 1, 0, TO_NULL, -ENXIO, -ENXIO },
	{ KVM_SET_DEVICE_ATTR, 1, 3, TO_NULL, -ENXIO, -ENXIO },
	{ KVM_SET_DEVICE_ATTR, 1, 4, TO_NULL, -ENXIO, -ENXIO },
	{ KVM_SET_DEVICE_ATTR, 1, 1 | 1ULL << 32, TO_NULL, -ENXIO, -ENXIO },
	{ KVM_SET_DEVICE_ATTR, 0, 1, TO_NULL, -ENXIO, -ENXIO },
	{ KVM_SET_DEVICE_ATTR, 2, 1, TO_NULL, -ENXIO, -ENXIO },
	{ KVM_SET_DEVICE_ATTR, 0x1000, 1, TO_DEV_NULL, -ENXIO, -ENXIO },
	{ KVM_SET_DEVICE_ATTR, 0x1000, 2, TO_DEV_NULL, -ENXIO, -ENXIO },
	{ KVM_GET_DEVICE_ATTR, 1, 1, TO_NULL, -ENXIO, -EPERM },
	{ KVM_GET_DEVICE_ATTR, 2, 1, TO_NULL, -ENXIO, -EPERM },
	{ KVM_GET_DEVICE_ATTR, 0x1000, 0, TO_NULL, -ENXIO, -EPERM },
	{ KVM_GET_DEVICE_ATTR, 0x1000, 3, TO_NULL, -ENXIO, -EPERM },
	{ KVM_GET_DEVICE_ATTR, 0x1000, 1 | 1ULL << 32, TO_NULL, -ENXIO, -EPERM },
	{ KVM_GET_DEVICE_ATTR, 0x1000, 1, TO_NULL, -EFAULT, -EPERM },
	{ KVM_GET_DEVICE_ATTR, 0x1000, 2, TO_NULL, -EFAULT, -EPERM },
	{ KVM_GET_DEVICE_ATTR, 0x1000, 2, TO_MINUS_1, -EBADF, -EPERM },
	{ KVM_GET_DEVICE_ATTR, 0x1000, 2, TO_DEV_NULL, -ENOENT, -EPERM },
	{ KVM_GET_DEVICE_ATTR, 0x1000, 2, TO_DEVICE, -ENOENT, -EPERM },
	{ KVM_HAS_DEVICE_ATTR, 1, 1, TO_NULL, 0, 0 },
	{ KVM_HAS_DEVICE_ATTR, 1, 2, TO_NULL, 0, 0 },
	{ KVM_HAS_DEVICE_ATTR, 1, 3, TO_NULL, -ENXIO, -ENXIO },
	{ KVM_HAS_DEVICE_ATTR, 2, 1, TO_NULL, -ENXIO, -ENXIO },
	{ KVM_HAS_DEVICE_ATTR, 0x1000, 1, TO_NULL, 0, -ENXIO },
	{ KVM_HAS_DEVICE_ATTR, 0x1000, 2, TO_NULL, 0, -ENXIO },
	{ KVM_HAS_DEVICE_ATTR, 0x1000, 3, TO_NULL, -ENXIO, -ENXIO },
	{ KVM_CREATE_VCPU, 1, 1, TO_NULL, -ENOTTY, -ENOTTY },
};

int bad_call(unsigned int number, int device, int vm, int other, int container, bool flags,
	     int *expected)
{
	const struct bad *bad = &bad_calls[number % ARRAY_SIZE(bad_calls)];
	/* As large as what is asked for, which is not written */
	int32_t fd[4] = {
		[0] = (const int[]){ [TO_MINUS_1] = -1, [TO_9999] = 9999, [TO_DEV_NULL] = null_fd,
				     [TO_VM] = vm, [TO_DEVICE] = other,
				     [TO_CONTAINER] = container }[bad->to],
	};
	struct kvm_device_attr attr = {
		.flags = flags, .group = bad->group, .attr = bad->attr,
		.addr = bad->to == TO_NULL ? 0 : (uintptr_t)fd,
	};

	*expected = stock ? bad->stock : bad->expected;
	/* What it is about may have been closed. */
	if (fd[0] < 0 && *expected != -ENXIO && *expected != -EPERM && bad->to >= TO_VM)
		*expected = -EBADF;
	if (device < 0)
		*expected = -EBADF;
	return call(ioctl(device, bad->op, &attr));
}

static void step_bad(const struct step *step)
{
	struct vm *vm = &vms[step->a];
	int expected, ret;

	if (!is_local(step->a))
		return;
	ret = bad_call(step->b, vm->dev, vm->fd, vm->dev, containers[0].fd, step->c & 1, &expected);
	expect("a call that fails", ret, expected);
}

/* Somebody else with the descriptor can do nothing with it. */
static void step_foreign(const struct step *step)
{
	int h = step->a % HOLDERS;

	if (!holders[h].pid || !is_local(step->b))
		return;
	expect("ADD by a forked process", holder_adds(h, step->b, step->c),
	       vms[step->b].device_held & 1u << h ? -EIO : -EBADF);
}

/* ---- groups, and what they open ------------------------------------------ */

static void step_open(const struct step *step)
{
	int expected = 0, fd;

	if (step->a >= nr_groups || files[step->b].used)
		return;
	if (!group_is_alive(step->a))
		expected = -ENOENT;
	else if (live_file(step->a) != NONE || group_is_bound(step->a))
		expected = -EBUSY;
	fd = CALL_VFIO_COPY(open_group_number(groups[step->a].number));
	expect("opening a group", fd, expected);
	if (fd >= 0)
		model_open(step->b, step->a, NONE, NONE, fd);
}

/* What a device says to a call for groups */
static int not_a_group(const struct file *file)
{
	if (file->cdev && !file->bound)
		return -EINVAL;
	return devices[file->device].id == NONE ? -ENOTTY : -EINVAL;
}

static void step_open_device(const struct step *step)
{
	struct file *group = &files[step->a];
	struct device *device = &devices[step->c];
	int expected = 0, fd;

	if (step->c >= nr_devices || files[step->b].used)
		return;
	if (fd_of(group, false) < 0)
		expected = -EBADF;
	else if (group->device != NONE)
		expected = not_a_group(group);
	else if (group->dead || !device->bound || device->group != group->group)
		expected = -ENODEV;
	else if (!is_attached(group))
		expected = -EINVAL;
	fd = CALL_VFIO_COPY(ioctl(fd_of(group, false), VFIO_GROUP_GET_DEVICE_FD, device->name));
	expect("VFIO_GROUP_GET_DEVICE_FD", fd, expected);
	if (fd >= 0)
		model_open(step->b, group->group, step->c, step->a, fd);
}

/* ---- devices' own files -------------------------------------------------- */

static void step_cdev(const struct step *step)
{
	int number, fd;

	if (!has_iommufd || step->a >= nr_devices || files[step->b].used)
		return;
	number = cdev_number(step->a);
	if ((number < 0) != !devices[step->a].bound)
		wrong(STATE, "device %d has %s file of its own", step->a, number < 0 ? "no" : "a");
	if (number < 0)
		return;
	fd = CALL_VFIO_COPY(open_cdev(number));
	expect("opening a device's own file", fd, 0);
	if (fd >= 0)
		model_cdev(step->b, step->a, fd, number);
}

static void step_cdev_bind(const struct step *step)
{
	struct file *file = &files[step->a];
	int expected = 0, ret;

	if (!file->used || !file->cdev || file->fd < 0)
		return;
	if (live_file(file->group) != NONE)
		expected = -EBUSY;
	else if (device_is_bound(file->device))
		expected = -EINVAL;
	ret = CALL_VFIO_COPY(device_file_bind(file->fd, iommufd));
	expect("VFIO_DEVICE_BIND_IOMMUFD", ret, expected);
	if (!ret)
		file->bound = true;
}

static int first_table(int ioas)
{
	int i;

	for (i = 0; i < nr_tables; i++)
		if (tables[i].ioas == ioas)
			return i;
	return NONE;
}

static int attach(int fd, uint32_t from, uint32_t *to)
{
	*to = from;
	return device_file_attach(fd, to);
}

/* By the ID of the IOAS, or of its first page table, or of one that is for PASIDs as well */
static int table_wanted(int ioas, int how)
{
	if (how & 2 && has_pasids)
		return how & 1;
	return how & 1 ? first_table(ioas) : NONE;
}

static void step_cdev_attach(const struct step *step)
{
	int ioas = step->b % IOASES, table = table_wanted(ioas, step->c), ret;
	struct file *file = &files[step->a];
	int expected = 0, gets = NONE;
	uint32_t id, from;

	if (!file->used || !file->cdev || file->fd < 0)
		return;
	/* Where its ID cannot be copied out, it has left the page table that it had before. */
	if (faults && file->attached)
		return;
	if (groups[file->group].emulated)
		table = NONE;
	else if (file->bound)
		gets = table_for(file, ioas, table);
	if (!file->bound || gets == -EINVAL)
		expected = -EINVAL;
	if (expected && file->bound && !groups[file->group].emulated && told_in_vain(file))
		return;
	from = table == NONE ? ioases[ioas] : tables[table].id;
	ret = CALL_VFIO_COPY(attach(file->fd, from, &id));
	expect("VFIO_DEVICE_ATTACH_IOMMUFD_PT", ret, expected);
	if (ret)
		return;
	if (gets != NONE && id != tables[gets].id)
		wrong(STATE, "file %d gets page table %u instead of %u", step->a, id,
		      tables[gets].id);
	model_attach_cdev(file, ioas, gets, id);
}

static void step_cdev_detach(const struct step *step)
{
	struct file *file = &files[step->a];
	int ret;

	if (!file->used || !file->cdev || file->fd < 0)
		return;
	ret = CALL_VFIO_COPY(device_file_detach(file->fd));
	expect("VFIO_DEVICE_DETACH_IOMMUFD_PT", ret, file->bound ? 0 : -EINVAL);
	if (!ret && file->attached)
		model_detach_cdev(file);
}

/* A file with PASIDs: of an emulated device, whose driver has none, as well */
static struct file *pasid_file(const struct step *step, int *expected)
{
	struct file *file = &files[step->a];

	if (!has_pasids || !file->used || !file->cdev || file->fd < 0)
		return NULL;
	*expected = !file->bound ? -EINVAL : groups[file->group].emulated ? -EOPNOTSUPP : 0;
	return file;
}

static void step_pasid_attach(const struct step *step)
{
	int pasid = step->b % PASIDS, table = step->c % PASID_TABLES, expected, ret;
	struct file *file = pasid_file(step, &expected);

	/* As in step_cdev_attach() */
	if (!file || (faults && file->pasids & 1u << pasid))
		return;
	if (!expected)
		expected = pasid_fits(file, pasid, table);
	if (expected == -EINVAL && file->bound && told_in_vain(file))
		return;
	ret = CALL_VFIO_COPY(device_file_attach_pasid(file->fd, pasid + 1, tables[table].id));
	expect("VFIO_DEVICE_ATTACH_IOMMUFD_PT by a PASID", ret, expected);
	if (!ret)
		model_attach_pasid(file, pasid, table);
}

static void step_pasid_detach(const struct step *step)
{
	int pasid = step->b % PASIDS, expected, ret;
	struct file *file = pasid_file(step, &expected);

	if (!file)
		return;
	ret = CALL_VFIO_COPY(device_file_detach_pasid(file->fd, pasid + 1));
	expect("VFIO_DEVICE_DETACH_IOMMUFD_PT by a PASID", ret, expected);
	if (!ret && file->pasids & 1u << pasid)
		model_detach_pasid(file, pasid);
}

static void begin_iommufd(void)
{
	int i;

	iommufd = open_iommufd();
	for (i = 0; i < IOASES; i++)
		ioases[i] = new_ioas(iommufd);
	/* The first device of the fixture is coherent, the second one is not. */
	if (has_pasids)
		model_pasid_tables(new_pasid_table(iommufd, 0, ioases[0]),
				   new_pasid_table(iommufd, 1, ioases[0]));
}

/* ---- descriptors --------------------------------------------------------- */

static void step_close(const struct step *step)
{
	struct file *file = &files[step->a];

	if (file->used)
		close_fd(step->c & 1 ? &file->copy : &file->fd);
}

static void step_dup(const struct step *step)
{
	struct file *file = &files[step->a];

	if (!file->used || file->fd < 0 || file->copy >= 0)
		return;
	file->copy = fcntl(file->fd, F_DUPFD_CLOEXEC, 3);
	expect("F_DUPFD", file->copy, 0);
}

static void step_send(const struct step *step)
{
	struct file *file = &files[step->a];

	if (fd_of(file, false) < 0 || nr_flight == FLIGHT)
		return;
	expect("sending a descriptor", send_fd(flight_socket[0], "", 1, file->fd), 0);
	flight[nr_flight++] = step->a;
	file->flights++;
}

/* It becomes the copy, if there is none; else it is closed. */
static void step_receive(const struct step *step __attribute__((unused)))
{
	struct file *file;
	char byte;
	int fd;

	if (!nr_flight)
		return;
	file = &files[flight[0]];
	memmove(flight, flight + 1, --nr_flight * sizeof(*flight));
	if (receive_fd(flight_socket[1], &byte, 1, &fd) != 1 || fd < 0)
		wrong(BROKEN, "no descriptor came through the socket");
	file->flights--;
	if (file->copy < 0)
		file->copy = fd;
	else
		close(fd);
}

/* ---- containers ---------------------------------------------------------- */

/*
 * VT-d's driver allocates when a group returns to the host's own domain, with iommu=pt
 * as well before Linux 6.2, and the IOMMU core warns of whatever fails.  A group that
 * is attached beside others gets there on its way from a domain of its own to theirs.
 */
static bool warns_of_failed_detach(void)
{
	return old_vfio && devices[0].id == NONE;
}

static int groups_in(int container)
{
	int i, n = 0;

	for (i = 0; i < FILES; i++)
		n += files[i].used && files[i].device == NONE && files[i].container == container;
	return n;
}

static void step_join(const struct step *step)
{
	int container = step->b % CONTAINERS, ret, expected = 0;
	struct file *file = &files[step->a];

	if (fd_of(file, false) < 0)
		expected = -EBADF;
	else if (file->device != NONE)
		expected = not_a_group(file);
	else if (containers[container].fd < 0)
		expected = -EBADF;
	else if (file->container != NONE)
		expected = -EINVAL;
	else if (file->dead)
		expected = -ENODEV;
	if (warns_of_failed_detach() && containers[container].iommu)
		ret = call(group_join(fd_of(file, false), containers[container].fd));
	else
		ret = CALL_VFIO_COPY(group_join(fd_of(file, false), containers[container].fd));
	expect("VFIO_GROUP_SET_CONTAINER", ret, expected);
	if (!ret)
		model_join(step->a, container);
}

static void step_leave(const struct step *step)
{
	struct file *file = &files[step->a];
	int ret, expected = 0;

	if (fd_of(file, false) < 0)
		expected = -EBADF;
	else if (file->device != NONE)
		expected = not_a_group(file);
	else if (file->container == NONE)
		expected = -EINVAL;
	else if (has_children(step->a))
		expected = -EBUSY;
	if (warns_of_failed_detach())
		ret = call(group_leave(fd_of(file, false)));
	else
		ret = CALL_VFIO(group_leave(fd_of(file, false)));
	expect("VFIO_GROUP_UNSET_CONTAINER", ret, expected);
	if (!ret)
		model_detach(file);
}

static void step_iommu(const struct step *step)
{
	int container = step->b % CONTAINERS, ret, expected = 0;

	if (containers[container].fd < 0)
		expected = -EBADF;
	else if (containers[container].iommu || !groups_in(container))
		expected = -EINVAL;
	if (warns_of_failed_detach() && groups_in(container) > 1)
		ret = call(container_set_iommu(containers[container].fd));
	else
		ret = CALL_VFIO(container_set_iommu(containers[container].fd));
	expect("VFIO_SET_IOMMU", ret, expected);
	if (!ret)
		model_iommu(container);
}

/* A closed one is there for as long as groups are in it. */
static void step_container(const struct step *step)
{
	struct container *container = &containers[step->b % CONTAINERS];

	if (!step->c) {
		close_fd(&container->fd);
	} else if (!container->alive) {
		container->fd = call(open_container());
		expect("opening a container", container->fd, 0);
	}
}

/* ---- devices ------------------------------------------------------------- */

static void step_bind(const struct step *step)
{
	struct device *device = &devices[step->a];

	if (step->a >= nr_devices || device->emulated)
		return;
	expect("bind", bind_device(step->a, true), device->bound ? -EBUSY : 0);
	device->bound = true;
}

/* It would wait for a device that is open. */
static void step_unbind(const struct step *step)
{
	struct device *device = &devices[step->a];

	if (step->a >= nr_devices || device->emulated || device_is_open(step->a))
		return;
	expect("unbind", bind_device(step->a, false), device->bound ? 0 : -ENODEV);
	if (device->bound)
		model_unbound(step->a);
}

/* From Linux 6.2 on VFIO relies on it not to change while it matters. */
static void step_coherent(const struct step *step)
{
	struct device *device = &devices[step->a];
	char path[100];
	int file;

	if (step->a >= nr_devices || device->emulated || device->id == NONE)
		return;
	if (group_is_bound(device->group))
		return;
	file = live_file(device->group);
	if (!old_vfio && device->bound && file != NONE && is_attached(&files[file]))
		return;
	device->coherent = step->b & 1;
	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/coherent", device->id);
	expect("the device's coherency", put(path, "%d", device->coherent), 0);
}

/* ---- processes with a copy of everything --------------------------------- */

static void step_fork(const struct step *step)
{
	int h = step->a % HOLDERS, i;
	unsigned int bit = 1u << h;

	if (holders[h].pid)
		return;
	expect("fork", holder_begin(h), 0);
	for (i = 0; i < FILES; i++)
		if (files[i].used && (files[i].fd >= 0 || files[i].copy >= 0))
			files[i].held |= bit;
	for (i = 0; i < CONTAINERS; i++)
		if (containers[i].fd >= 0)
			containers[i].held |= bit;
	for (i = 0; i < LOCAL_VMS; i++) {
		if (vms[i].fd >= 0)
			vms[i].held |= bit;
		if (vms[i].dev >= 0)
			vms[i].device_held |= bit;
	}
}

static void step_kill(const struct step *step)
{
	int h = step->a % HOLDERS, i;
	unsigned int bit = 1u << h;

	if (!holders[h].pid)
		return;
	holder_end(h);
	for (i = 0; i < FILES; i++)
		files[i].held &= ~bit;
	for (i = 0; i < CONTAINERS; i++)
		containers[i].held &= ~bit;
	for (i = 0; i < LOCAL_VMS; i++) {
		vms[i].held &= ~bit;
		vms[i].device_held &= ~bit;
	}
}

/* ---- CPUs ---------------------------------------------------------------- */

static void step_cpu(const struct step *step)
{
	bool online = step->c & 1;

	if (online == cpu1_online)
		return;
	expect("a CPU that goes or comes", put(CPU1, "%d", online), 0);
	cpu1_online = online;
	if (online) {
		count_flushes_on(1);
		flushes_on[1] = 0;
	}
}

/* ---- one step ------------------------------------------------------------ */

void do_step(const struct step *step)
{
	static void (*const steps[STEP_KINDS])(const struct step *step) = {
		[STEP_VM] = step_vm, [STEP_VM_CLOSE] = step_vm_close,
		[STEP_DEVICE] = step_device, [STEP_DEVICE_CLOSE] = step_device_close,
		[STEP_VCPU] = step_vcpu, [STEP_RUN] = step_run,
		[STEP_BLOCK] = step_block, [STEP_UNBLOCK] = step_unblock,
		[STEP_MEMSLOT] = step_memslot, [STEP_ADD] = step_add, [STEP_DEL] = step_del,
		[STEP_READ] = step_read, [STEP_BAD] = step_bad, [STEP_OPEN] = step_open,
		[STEP_OPEN_DEVICE] = step_open_device, [STEP_CDEV] = step_cdev,
		[STEP_CDEV_BIND] = step_cdev_bind, [STEP_CDEV_ATTACH] = step_cdev_attach,
		[STEP_CDEV_DETACH] = step_cdev_detach, [STEP_PASID_ATTACH] = step_pasid_attach,
		[STEP_PASID_DETACH] = step_pasid_detach, [STEP_CLOSE] = step_close,
		[STEP_DUP] = step_dup, [STEP_SEND] = step_send, [STEP_RECEIVE] = step_receive,
		[STEP_JOIN] = step_join, [STEP_LEAVE] = step_leave, [STEP_IOMMU] = step_iommu,
		[STEP_CONTAINER] = step_container, [STEP_BIND] = step_bind,
		[STEP_UNBIND] = step_unbind, [STEP_COHERENT] = step_coherent,
		[STEP_FORK] = step_fork, [STEP_KILL] = step_kill, [STEP_FOREIGN] = step_foreign,
		[STEP_CPU] = step_cpu,
	};
	struct step fits = *step;

	if (null_fd < 0) {
		open_null();
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, flight_socket))
			wrong(BROKEN, "no socket");
		if (has_iommufd)
			begin_iommufd();
	}
	current_kind = fits.kind %= STEP_KINDS;
	fault_survived = false;
	/* Those from a file may have any numbers. */
	fits.a %= fits.kind <= STEP_BAD ? VMS : FILES;
	if (fits.kind != STEP_BAD)
		fits.b %= fits.kind == STEP_FOREIGN ? VMS : FILES;
	fits.c %= FILES;
	steps[fits.kind](&fits);
	model_settle();
	model_follow();
}
