// SPDX-License-Identifier: GPL-2.0-only
/*
 * Races: threads do to the same few VMs, groups and containers what the walks do one after
 * the other, while vCPUs run. Nobody can say what a call returns, but for what it never
 * may; and when all is closed nothing is left.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "torture_remote.h"

#define THREADS		8
#define RACE_VMS	3
#define RACE_DEVICES	4	/* files of devices */
#define RACE_CONTAINERS	2
#define RACE_CDEVS	4	/* devices' own files */

/* In the process that races, and what it says to the one that waits */
static struct race {
	volatile long done;
	atomic_long attached, by_pasid;	/* devices' own files */
	volatile bool failed;
	char why[400];
} *race;

static struct {
	struct vm vm[RACE_VMS];
	atomic_int device[RACE_VMS], group[GROUPS], opened[RACE_DEVICES];
	atomic_int container[RACE_CONTAINERS], cdev[RACE_CDEVS];
	int iommufd;
	uint32_t table[IOASES];		/* IOASes, and what PASIDs can be attached to */
	pthread_mutex_t turn[RACE_VMS][VCPUS];
} shared;

static void __attribute__((noreturn, format(printf, 1, 2))) race_fails(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(race->why, sizeof(race->why), format, args);
	va_end(args);
	race->failed = true;
	_exit(1);
}

/* splitmix64, for each thread */
static unsigned int any(uint64_t *state, unsigned int n)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return (uint32_t)(z ^ z >> 31) % n;
}

/*
 * A descriptor that another thread closes may be that of something else when it is used:
 * EBADF, EINVAL, ENOTTY. The others are those of the call, up to 0.
 */
static void allow(const char *what, int ret, const int *errors)
{
	if (ret >= 0 || ret == -EBADF || ret == -EINVAL || ret == -ENOTTY)
		return;
	while (*errors && ret != *errors)
		errors++;
	if (!*errors)
		race_fails("%s: %s", what, name_of(ret));
}

#define ALLOW(what, ret, ...)						\
	allow(what, ret, (const int[]){ __VA_ARGS__ __VA_OPT__(,) 0 })

/* Puts FD there, and closes what was. */
static void put_fd(atomic_int *place, int fd)
{
	fd = atomic_exchange(place, fd);
	if (fd >= 0)
		close(fd);
}

static void race_device(uint64_t *state)
{
	int v = any(state, RACE_VMS), fd;

	put_fd(&shared.device[v], -1);
	fd = call(kvm_vfio_create(shared.vm[v].fd));
	ALLOW("KVM_CREATE_DEVICE", fd, -EBUSY);
	if (fd >= 0)
		put_fd(&shared.device[v], fd);
}

static int any_file(uint64_t *state)
{
	switch (any(state, has_iommufd ? 5 : 3)) {
	case 0:
		return shared.opened[any(state, RACE_DEVICES)];
	case 1 ... 2:
		return shared.group[any(state, nr_groups)];
	default:
		return shared.cdev[any(state, RACE_CDEVS)];
	}
}

static void race_track(uint64_t *state)
{
	int device = shared.device[any(state, RACE_VMS)], fd = any_file(state);

	if (any(state, 3))
		ALLOW("ADD", call(kvm_vfio_add(device, fd)), -EEXIST);
	else
		ALLOW("DEL", call(kvm_vfio_del(device, fd)), -ENOENT);
}

static void race_open(uint64_t *state)
{
	int g = any(state, nr_groups), fd;

	if (shared.group[g] >= 0 && any(state, 4))
		return;
	put_fd(&shared.group[g], -1);
	/* Its devices' own files can only be bound while nobody has it. */
	if (has_iommufd && any(state, 4))
		return;
	fd = open_group_number(groups[g].number);
	ALLOW("opening a group", fd, -EBUSY, -ENOENT, -ENODEV, -ENXIO);
	if (fd >= 0)
		put_fd(&shared.group[g], fd);
}

static void race_container(uint64_t *state)
{
	int container = shared.container[any(state, RACE_CONTAINERS)];
	int group = shared.group[any(state, nr_groups)];

	switch (any(state, 16)) {
	case 0:
		put_fd(&shared.container[any(state, RACE_CONTAINERS)], open_container());
		break;
	case 1 ... 6:
		ALLOW("VFIO_GROUP_SET_CONTAINER", call(group_join(group, container)), -ENODEV,
		      -EBUSY, -EBADFD);
		break;
	case 7 ... 9:
		ALLOW("VFIO_GROUP_UNSET_CONTAINER", call(group_leave(group)), -EBUSY, -ENODEV);
		break;
	default:
		ALLOW("VFIO_SET_IOMMU", call(container_set_iommu(container)), -EBUSY, -ENODEV);
	}
}

static void race_opened(uint64_t *state)
{
	int place = any(state, RACE_DEVICES), fd = -1;
	const struct device *device = &devices[any(state, nr_devices)];

	/* Most of the time none is open, so that groups can leave. */
	if (any(state, 2)) {
		fd = call(ioctl(shared.group[device->group], VFIO_GROUP_GET_DEVICE_FD,
				device->name));
		ALLOW("VFIO_GROUP_GET_DEVICE_FD", fd, -ENODEV, -EBUSY);
	}
	put_fd(&shared.opened[place], fd < 0 ? -1 : fd);
}

static void attach_cdev(int fd, uint64_t *state)
{
	uint32_t table = shared.table[any(state, IOASES)];
	int pasid = any(state, PASIDS) + 1, ret = -1;

	switch (any(state, has_pasids ? 8 : 4)) {
	case 0:
		ALLOW("VFIO_DEVICE_DETACH_IOMMUFD_PT", call(device_file_detach(fd)), -ENODEV);
		break;
	case 1 ... 3:
		ret = call(device_file_attach(fd, &table));
		/* An emulated device wants an IOAS. */
		ALLOW("VFIO_DEVICE_ATTACH_IOMMUFD_PT", ret, -EBUSY, -ENODEV, -ENOENT);
		break;
	case 4:
		ALLOW("VFIO_DEVICE_DETACH_IOMMUFD_PT by a PASID",
		      call(device_file_detach_pasid(fd, pasid)), -EOPNOTSUPP, -ENODEV);
		break;
	default:
		ret = call(device_file_attach_pasid(fd, pasid, table));
		ALLOW("VFIO_DEVICE_ATTACH_IOMMUFD_PT by a PASID", ret, -EOPNOTSUPP, -EBUSY,
		      -ENODEV);
		race->by_pasid += !ret;
	}
	race->attached += !ret;
}

/* Most of the time none is open, so that groups can be. */
static void race_cdev(uint64_t *state)
{
	int place = any(state, RACE_CDEVS), fd = -1, ret;

	if (!has_iommufd)
		return;
	if (any(state, 2)) {
		ret = cdev_number(any(state, nr_devices));
		fd = ret < 0 ? ret : call(open_cdev(ret));
		ALLOW("opening a device's own file", fd, -ENOENT, -ENODEV, -ENXIO);
	}
	if (fd >= 0 && any(state, 4)) {
		ret = call(device_file_bind(fd, shared.iommufd));
		ALLOW("VFIO_DEVICE_BIND_IOMMUFD", ret, -EBUSY, -ENODEV);
		if (!ret)
			attach_cdev(fd, state);
	}
	put_fd(&shared.cdev[place], fd < 0 ? -1 : fd);
}

static void race_attach(uint64_t *state)
{
	if (has_iommufd)
		attach_cdev(shared.cdev[any(state, RACE_CDEVS)], state);
}

static void race_run(uint64_t *state)
{
	struct vm *vm = &shared.vm[any(state, RACE_VMS)];
	int vcpu = any(state, VCPUS), times;
	pthread_mutex_t *turn = &shared.turn[vm - shared.vm][vcpu];

	/* What run says of the exit is there for one thread only. */
	if (pthread_mutex_trylock(turn))
		return;
	for (times = any(state, 4); times >= 0; times--)
		ALLOW("a guest that executes WBINVD",
		      run_guest(vm->vcpu[vcpu], vm->run[vcpu], false));
	pthread_mutex_unlock(turn);
}

static void race_read(uint64_t *state)
{
	struct kvm_vfio_file_state file = { .fd = any_file(state) };
	int v = any(state, RACE_VMS), device = shared.device[v];
	struct kvm_vfio_vm_state is = {};
	char path[60], text[2000];

	if (!call(kvm_vfio_attr(device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				KVM_DEV_VFIO_STATE_VM, &is)) &&
	    (is.noncoherent != !!is.noncoherent_files || is.noncoherent_files > is.files))
		race_fails("flag %u, files %u, non-coherent %u", is.noncoherent, is.files,
			   is.noncoherent_files);
	/* /dev/kvm, whose descriptor it may have become, has attributes of its own: ENXIO. */
	ALLOW("reading a file's state",
	      call(kvm_vfio_attr(device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				 KVM_DEV_VFIO_STATE_FILE, &file)), -ENOENT, -EPERM, -ENXIO);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", device);
	get_text(path, text, sizeof(text));
}

/* A whole life of a VM */
static void race_life(uint64_t *state)
{
	bool vm_first = any(state, 2);
	int kvm, vm, device, i;

	if (any(state, 4))
		return;
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	close(kvm);
	device = kvm_vfio_create(vm);
	for (i = 0; i < 3; i++)
		ALLOW("ADD", call(kvm_vfio_add(device, any_file(state))), -EEXIST);
	close(vm_first ? vm : device);
	close(vm_first ? device : vm);
}

static void race_bind(uint64_t *state)
{
	int device = any(state, nr_devices);

	if (devices[device].emulated)
		return;
	/* Waits for who has it open, and somebody will close it. */
	bind_device(device, false);
	bind_device(device, true);
}

static void *race_thread(void *arg)
{
	static void (*const what[])(uint64_t *state) = {
		race_track, race_track, race_track, race_container, race_container,
		race_container, race_open, race_opened, race_run, race_run, race_read,
		race_device, race_life, race_cdev, race_cdev, race_attach, race_attach,
	};
	long number = (long)arg;
	uint64_t state = options.seed * 1000003ULL + number;
	int i;

	for (i = 0; i < options.rounds; i++) {
		if (number == THREADS)
			race_bind(&state);
		else
			what[any(&state, ARRAY_SIZE(what))](&state);
		race->done++;
	}
	return NULL;
}

static void race_vms(void)
{
	int v, i;

	for (v = 0; v < RACE_VMS; v++) {
		struct vm *vm = &shared.vm[v];

		vm->fd = create_vm();
		vm->memory = make_memory(vm->fd);
		for (i = 0; i < VCPUS; i++)
			vm->vcpu[i] = make_vcpu(vm->fd, i, &vm->run[i], &vm->run_size);
		if (!vm->memory || vm->vcpu[1] < 0)
			race_fails("no VM");
		shared.device[v] = must(kvm_vfio_create(vm->fd));
	}
}

static void close_all(void)
{
	size_t i;

	for (i = 0; i < RACE_VMS; i++)
		put_fd(&shared.device[i], -1);
	for (i = 0; i < RACE_DEVICES; i++)
		put_fd(&shared.opened[i], -1);
	for (i = 0; i < GROUPS; i++)
		put_fd(&shared.group[i], -1);
	for (i = 0; i < RACE_CONTAINERS; i++)
		put_fd(&shared.container[i], -1);
	for (i = 0; i < RACE_CDEVS; i++)
		put_fd(&shared.cdev[i], -1);
}

/* The first devices of the fixture: see begin_iommufd(). */
static void race_iommufd(void)
{
	int i;

	shared.iommufd = open_iommufd();
	for (i = 0; i < IOASES; i++)
		shared.table[i] = new_ioas(shared.iommufd);
	if (!has_pasids)
		return;
	for (i = 0; i < PASID_TABLES; i++)
		shared.table[i + 1] = new_pasid_table(shared.iommufd, i, shared.table[0]);
}

/* The VMs are still there: each is as new, and has become coherent as often as not. */
static void check_races(void)
{
	struct kvm_vfio_vm_state is;
	long flag, changes;
	int v, device;

	for (v = 0; v < RACE_VMS && !stock; v++) {
		flag = vm_number(getpid(), shared.vm[v].fd, "noncoherent_dma");
		changes = vm_number(getpid(), shared.vm[v].fd, "noncoherent_dma_changes");
		if (flag || changes < 0 || changes % 2)
			race_fails("VM %d has the flag %ld after %ld changes", v, flag, changes);
		device = must(kvm_vfio_create(shared.vm[v].fd));
		is = (struct kvm_vfio_vm_state){};
		if (kvm_vfio_attr(device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_VM, &is) ||
		    is.files || is.noncoherent || is.noncoherent_files)
			race_fails("VM %d has a flag %u, files %u", v, is.noncoherent, is.files);
		close(device);
	}
}

static void __attribute__((noreturn)) be_race(void)
{
	pthread_t threads[THREADS + 1];
	long i;

	if (setjmp(test_end))
		race_fails("%s", why_ended());
	for (i = 0; i < GROUPS; i++)
		shared.group[i] = -1;
	for (i = 0; i < RACE_DEVICES; i++)
		shared.opened[i] = -1;
	for (i = 0; i < RACE_CONTAINERS; i++)
		shared.container[i] = open_container();
	for (i = 0; i < RACE_CDEVS; i++)
		shared.cdev[i] = -1;
	if (has_iommufd)
		race_iommufd();
	race_vms();
	pin(0, -1);
	for (i = 0; i <= THREADS; i++)
		if (pthread_create(&threads[i], NULL, race_thread, (void *)i))
			race_fails("no thread");
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	close_all();
	pthread_join(threads[THREADS], NULL);
	close_all();
	check_races();
	_exit(0);
}

/* Seconds in which nobody comes any further */
#define RACE_LIMIT	120

static void wait_for_race(pid_t pid)
{
	struct pollfd end = { .fd = syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	int quiet = 0;
	long done = 0;

	while (poll(&end, 1, 1000) == 0) {
		quiet = race->done == done ? quiet + 1 : 0;
		done = race->done;
		if (quiet < RACE_LIMIT)
			continue;
		say_where(pid);
		kill(pid, SIGKILL);
		if (poll(&end, 1, 20000) == 0)
			never_ends("a race that is killed");
		fail("the threads come no further after %ld calls", done);
	}
	close(end.fd);
}

void test_races(void)
{
	const char *left;
	int status;
	pid_t pid;

	race = shared_memory(sizeof(*race));
	restore_devices();
	fflush(stdout);
	pid = must(fork());
	if (!pid)
		be_race();
	wait_for_race(pid);
	must(waitpid(pid, &status, 0));
	if (race->failed)
		fail("%s", race->why);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail("the process ended with %#x", status);
	left = references_left();
	if (left)
		fail("%s", left);
	if (has_iommufd && race->done > 500 && !race->attached)
		fail("nothing was ever attached by iommufd");
	if (has_pasids && race->done > 2000 && !race->by_pasid)
		fail("nothing was ever attached by a PASID");
	printf("# %ld calls by %d threads, %ld of them attached by iommufd, %ld by a PASID\n",
	       race->done, THREADS + 1, race->attached, race->by_pasid);
}
