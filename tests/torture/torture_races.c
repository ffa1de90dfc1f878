// SPDX-License-Identifier: GPL-2.0-only
/*
 * Races: threads do to the same few VMs, groups and containers what the walks do one after
 * the other, while vCPUs run, and signals interrupt what can be. Nobody can say what a call
 * returns, but for what it never may. Now and then all of them stop, with everything open:
 * then what each VM's device says of the VM and of its files, what debugfs says, and what the
 * guest's WBINVD does have to be the same. When all is closed nothing is left.
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
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "torture_remote.h"

#define THREADS		8
#define RACE_VMS	3
#define RACE_LIVES	2	/* devices of VMs that do not stay */
#define RACE_DEVICES	4	/* files of devices */
#define RACE_CONTAINERS	2
#define RACE_CDEVS	4	/* devices' own files */
#define STOPS		8	/* in which all is compared */

/* In the process that races, and what it says to the one that waits */
static struct race {
	volatile long done;
	atomic_long attached, by_pasid;	/* devices' own files */
	atomic_long blocked;		/* vCPUs that waited for a page */
	atomic_long mapped;		/* memory for DMA */
	atomic_long added;		/* files */
	atomic_bool failed;
	long compared, seen[2];		/* VMs, coherent and non-coherent ones */
	long groups[2];			/* that were compared, not attached and attached */
	long changes;			/* of what VMs are */
	char why[400];
} *race;

static struct {
	struct vm vm[RACE_VMS];
	atomic_int device[RACE_VMS + RACE_LIVES], group[GROUPS], opened[RACE_DEVICES];
	atomic_int container[RACE_CONTAINERS], cdev[RACE_CDEVS];
	/* Always attached, by descriptors that are not in the race, so that type1 is in use */
	int kept_group, kept_container;
	int iommufd;
	uint32_t table[IOASES];		/* IOASes, and what PASIDs can be attached to */
	pthread_mutex_t turn[RACE_VMS][VCPUS], page[RACE_VMS], cpu;
	/* To be signalled: those of the race, the one that binds, a blocked vCPU's of each VM */
	atomic_int tid[THREADS + 1 + RACE_VMS];
	pthread_barrier_t stop;
	atomic_bool stopped;
} shared;

/* The thread that unbinds a device may wait for a file of ours, and this process for it. */
static void __attribute__((noreturn, format(printf, 1, 2))) race_fails(const char *format, ...)
{
	va_list args;

	/* The first one says why; all that is open has gone for the others. */
	if (atomic_exchange(&race->failed, true)) {
		usleep(100000);
	} else {
		va_start(args, format);
		vsnprintf(race->why, sizeof(race->why), format, args);
		va_end(args);
	}
	syscall(SYS_close_range, 3, ~0u, 0);
	_exit(1);
}

/* Each thread has a state of its own. */
static unsigned int any(uint64_t *state, unsigned int n)
{
	return (uint32_t)splitmix64(state) % n;
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

/* /dev/kvm and vCPUs, whose descriptor a device's may have become, have attributes of their own. */
#define NO_DEV		-ENXIO
/* The stock device has nothing to read. */
#define READ_ERRORS	-EPERM, NO_DEV

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

static int any_device(uint64_t *state)
{
	return shared.device[any(state, RACE_VMS + RACE_LIVES)];
}

/* A copy that came through a socket, or -1: it may be left there, to be closed with it. */
static int sent_copy(int fd, bool received)
{
	int pair[2], copy = -1;
	char byte;

	if (fd < 0)
		return -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		race_fails("no socket");
	if (send_fd(pair[0], "", 1, fd) == 1 && received &&
	    (receive_fd(pair[1], &byte, 1, &copy) != 1 || copy < 0))
		race_fails("no descriptor came through the socket");
	close(pair[0]);
	close(pair[1]);
	return copy;
}

static void race_add(int device, int fd)
{
	int ret = call(kvm_vfio_add(device, fd));

	ALLOW("ADD", ret, -EEXIST, NO_DEV);
	race->added += !ret;
}

static void race_track(uint64_t *state)
{
	int device = any_device(state), fd = any_file(state), copy = -1;

	switch (any(state, 4)) {
	case 0:
		fd = copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		break;
	case 1:
		fd = copy = sent_copy(fd, any(state, 4));
	}
	if (any(state, 3))
		race_add(device, fd);
	else
		ALLOW("DEL", call(kvm_vfio_del(device, fd)), -ENOENT, NO_DEV);
	close_fd(&copy);
}

static void race_open_group(int g)
{
	int fd;

	if (shared.group[g] >= 0)
		return;
	fd = open_group_number(groups[g].number);
	ALLOW("opening a group", fd, -EBUSY, -ENOENT, -ENODEV, -ENXIO);
	if (fd >= 0)
		put_fd(&shared.group[g], fd);
}

static void race_open(uint64_t *state)
{
	int g = any(state, nr_groups);

	if (shared.group[g] >= 0 && any(state, 4))
		return;
	put_fd(&shared.group[g], -1);
	/* Its devices' own files can only be bound while nobody has it. */
	if (has_iommufd && any(state, 4))
		return;
	race_open_group(g);
}

static int join(int group, int container)
{
	int ret = call(group_join(group, container));

	ALLOW("VFIO_GROUP_SET_CONTAINER", ret, -ENODEV, -EBUSY, -EBADFD);
	return ret;
}

static void leave(int group)
{
	ALLOW("VFIO_GROUP_UNSET_CONTAINER", call(group_leave(group)), -EBUSY, -ENODEV);
}

static void set_iommu(int container)
{
	ALLOW("VFIO_SET_IOMMU", call(container_set_iommu(container)), -EBUSY, -ENODEV);
}

/* No VM has it any more, nor anybody else. */
static void forget_group(int g)
{
	int i;

	for (i = 0; i < RACE_VMS + RACE_LIVES; i++)
		ALLOW("DEL", call(kvm_vfio_del(shared.device[i], shared.group[g])), -ENOENT,
		      NO_DEV);
	put_fd(&shared.group[g], -1);
}

/* Its flag and the number of its non-coherent files change together. */
static void read_vm(int device)
{
	struct kvm_vfio_vm_state is = {};
	int ret = call(kvm_vfio_attr(device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				     KVM_DEV_VFIO_STATE_VM, &is));

	ALLOW("reading a VM's state", ret, READ_ERRORS);
	if (!ret && (is.noncoherent != !!is.noncoherent_files || is.noncoherent_files > is.files))
		race_fails("flag %u, files %u, non-coherent %u", is.noncoherent, is.files,
			   is.noncoherent_files);
}

/*
 * All that makes a VM non-coherent, one after the other; at random it hardly ever is. Then
 * it changes many times in a row, so that others meet that.
 */
static void race_attached(uint64_t *state)
{
	int device = any_device(state), g = any(state, nr_groups), container, times;

	if (has_iommufd && any(state, 2))
		return;
	race_open_group(g);
	container = shared.container[any(state, RACE_CONTAINERS)];
	/* Its devices were unbound meanwhile: with this file nothing can be done any more. */
	if (join(shared.group[g], container) == -ENODEV) {
		forget_group(g);
		return;
	}
	set_iommu(container);
	race_add(device, shared.group[g]);
	for (times = any(state, 16); times > 0; times--) {
		if (!any(state, 4)) {
			ALLOW("DEL", call(kvm_vfio_del(device, shared.group[g])), -ENOENT, NO_DEV);
			race_add(device, shared.group[g]);
		} else {
			leave(shared.group[g]);
			join(shared.group[g], container);
			set_iommu(container);
		}
		read_vm(any_device(state));
	}
	/* While groups are open their devices' own files cannot be bound. */
	if (has_iommufd && any(state, 2))
		forget_group(g);
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
		join(group, container);
		break;
	case 7 ... 9:
		leave(group);
		break;
	default:
		set_iommu(container);
	}
}

/* Pages that are mapped for DMA, and their addresses, which differ from those of the guests */
#define RACE_PAGES	4
#define RACE_IOVA	0x40000000ull

static char race_memory[RACE_PAGES * 4096] __attribute__((aligned(4096)));

/* What is mapped goes with the last group of the container, who may leave meanwhile. */
static void race_map(uint64_t *state)
{
	struct vfio_iommu_type1_info info = { .argsz = sizeof(info) };
	int container = shared.container[any(state, RACE_CONTAINERS)];
	int page = any(state, RACE_PAGES), n = any(state, RACE_PAGES - page) + 1;
	uint64_t iova = RACE_IOVA + page * 4096;

	/* There they may use what has been freed. */
	if (stock)
		return;
	/* By now it may be that of a device or an iommufd, whose calls have these numbers. */
	switch (any(state, 8)) {
	case 0:
		ALLOW("VFIO_IOMMU_GET_INFO", call(ioctl(container, VFIO_IOMMU_GET_INFO, &info)),
		      -ENODEV);
		break;
	case 1:
		ALLOW("VFIO_IOMMU_UNMAP_DMA of all", call(container_unmap_all(container)), -ENODEV,
		      -ENOENT);
		break;
	case 2 ... 3:
		ALLOW("VFIO_IOMMU_UNMAP_DMA", call(container_unmap(container, iova, n * 4096)),
		      -ENODEV, -ENOENT);
		break;
	default:
		page = call(container_map(container, race_memory + page * 4096, iova, n * 4096));
		ALLOW("VFIO_IOMMU_MAP_DMA", page, -EEXIST, -EINTR, -ENODEV);
		race->mapped += !page;
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
		if (!ret && any(state, 2))
			race_add(any_device(state), fd);
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
	int device = any_device(state);
	char path[60], text[2000];

	read_vm(device);
	ALLOW("reading a file's state",
	      call(kvm_vfio_attr(device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				 KVM_DEV_VFIO_STATE_FILE, &file)), -ENOENT, READ_ERRORS);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", device);
	get_text(path, text, sizeof(text));
}

static void *race_blocked(void *arg)
{
	long v = (long)arg;

	shared.tid[THREADS + 1 + v] = gettid();
	return blocked_vcpu(&shared.vm[v]);
}

/*
 * A vCPU that waits for a page of its guest, while others change what its VM is. This thread
 * gives it the page, come what may.
 */
static void race_block(uint64_t *state)
{
	struct pollfd uffd = { .events = POLLIN };
	int v = any(state, RACE_VMS), vcpu = any(state, VCPUS);
	struct vm *vm = &shared.vm[v];
	pthread_t thread;
	void *ret;

	if (!has_uffd || pthread_mutex_trylock(&shared.page[v]))
		return;
	if (pthread_mutex_trylock(&shared.turn[v][vcpu]))
		goto out_unlock;
	madvise(vm->blocked_page, 4096, MADV_DONTNEED);
	vm->blocked = vcpu;
	if (pthread_create(&thread, NULL, race_blocked, (void *)(long)v))
		race_fails("no thread");
	uffd.fd = vm->uffd;
	if (poll(&uffd, 1, 1000) == 1) {
		race->blocked++;
		usleep(any(state, 5000));
	}
	ALLOW("UFFDIO_ZEROPAGE", resolve_page(vm));
	pthread_join(thread, &ret);
	ALLOW("a guest that waited for a page", (long)ret);
	pthread_mutex_unlock(&shared.turn[v][vcpu]);
out_unlock:
	pthread_mutex_unlock(&shared.page[v]);
}

/*
 * A whole life of a VM. Others find its device meanwhile, and may have closed it at the end
 * of it, to put that of another one there.
 */
static void live(uint64_t *state)
{
	atomic_int *place = &shared.device[RACE_VMS + any(state, RACE_LIVES)];
	bool vm_first = any(state, 2), runs = any(state, 2);
	int kvm, vm, device, vcpu = -1, i, is;
	struct kvm_run *run = NULL;
	uint8_t *memory = NULL;
	size_t run_size;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm = call(ioctl(kvm, KVM_CREATE_VM, 0));
	close(kvm);
	/* A signal ends the wait for the locks of the process's memory. */
	ALLOW("KVM_CREATE_VM", vm, -EINTR);
	if (vm < 0)
		return;
	is = device = call(kvm_vfio_create(vm));
	ALLOW("KVM_CREATE_DEVICE", device);
	put_fd(place, device);
	for (i = 0; i < 3; i++)
		race_add(device, any_file(state));
	if (runs) {
		memory = make_memory(vm);
		vcpu = make_vcpu(vm, 0, &run, &run_size);
		if (!memory || vcpu < 0)
			race_fails("no vCPU: %s", name_of(vcpu));
		ALLOW("a new guest that executes WBINVD", run_guest(vcpu, run, false));
	}
	if (vm_first)
		close(vm);
	if (atomic_compare_exchange_strong(place, &is, -1))
		close(device);
	if (!vm_first)
		close(vm);
	if (!runs)
		return;
	munmap(run, run_size);
	close(vcpu);
	munmap(memory, 4096);
}

static void race_life(uint64_t *state)
{
	if (!any(state, 4))
		live(state);
}

static void race_memslot(uint64_t *state)
{
	struct vm *vm = &shared.vm[any(state, RACE_VMS)];
	struct kvm_userspace_memory_region region = {
		.slot = 2, .guest_phys_addr = 0x10000, .userspace_addr = (uintptr_t)vm->memory,
		.memory_size = any(state, 2) ? 4096 : 0,
	};

	/* Not there to be deleted: EINVAL */
	ALLOW("KVM_SET_USER_MEMORY_REGION",
	      call(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region)), -EEXIST);
}

/*
 * Until it is killed. The VMs of its parent's process are not for it; it has some of its own,
 * whose devices may come to have the descriptors of those that it did not get.
 */
static void __attribute__((noreturn)) be_killed(uint64_t *state)
{
	int ret;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	ret = call(kvm_vfio_add(any_device(state), any_file(state)));
	ALLOW("ADD by a forked process", ret >= 0 ? -EPROTO : ret, -EIO);
	for (;;) {
		live(state);
		race_container(state);
	}
}

/* A process that has a copy of every descriptor, and ends or is killed */
static void race_fork(uint64_t *state)
{
	bool killed = any(state, 2);
	pid_t pid;

	if (any(state, 4))
		return;
	pid = fork();
	if (!pid && killed)
		be_killed(state);
	if (!pid)
		_exit(0);
	if (pid < 0)
		return;
	if (killed) {
		usleep(any(state, 10000));
		kill(pid, SIGKILL);
	}
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

/* All the others, wherever they are: who waits there may have to begin again. */
static void race_signal(uint64_t *state __attribute__((unused)))
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(shared.tid); i++)
		if (shared.tid[i] && shared.tid[i] != gettid())
			syscall(SYS_tgkill, getpid(), shared.tid[i], SIGUSR1);
}

/* About descriptors that nobody closes: all else is for race_track(). */
static void race_bad(uint64_t *state)
{
	int vm = shared.vm[any(state, RACE_VMS)].fd, device = any_device(state), expected, ret;

	ret = bad_call(any(state, 1000), device, vm, vm, shared.kept_container, any(state, 2),
		       &expected);
	/* What the device's descriptor may have become by now: a vCPU's, or of /dev/kvm */
	if (ret != expected)
		ALLOW("a call that fails", ret >= 0 ? -EPROTO : ret, -ENXIO);
}

static void race_cpu(uint64_t *state)
{
	int ret;

	if (any(state, 16) || pthread_mutex_trylock(&shared.cpu))
		return;
	ret = put(CPU1, "0");
	ALLOW("a CPU that goes", ret, -EBUSY);
	if (!ret)
		ALLOW("a CPU that comes", put(CPU1, "1"), -EBUSY);
	pthread_mutex_unlock(&shared.cpu);
}

static void race_unload(uint64_t *state)
{
	static const char *const used[] = {
		"kvm", "kvm_amd", "vfio", "vfio_iommu_type1", "iommufd",
	};
	const char *name = used[any(state, ARRAY_SIZE(used) - !has_iommufd)];
	int ret = try_unload(name);

	/* The debug kernel has some of them built in. */
	if (ret != -EWOULDBLOCK && ret != -EBUSY && ret != -EINTR &&
	    (ret != -ENOENT || module_references(name) >= 0))
		race_fails("unloading %s, which is used: %s", name, name_of(ret));
}

static void race_bind(uint64_t *state)
{
	int device = any(state, nr_devices);

	/* Not all the time, so that groups can be attached */
	if (devices[device].emulated || devices[device].group == shared.kept_group ||
	    any(state, 4)) {
		usleep(1000);
		return;
	}
	/* Waits for who has it open, and somebody will close it. */
	bind_device(device, false);
	bind_device(device, true);
}

/* ---- all of them stop ---------------------------------------------------- */

static int differs(char *why, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, sizeof(race->why), format, args);
	va_end(args);
	return 1;
}

/* Lines of TEXT that begin with what fdinfo has of a file, and end so */
static unsigned int count_lines(const char *text, const char *end)
{
	unsigned int count = 0, length = strlen(end);
	const char *line = text, *next;

	for (; (next = strchr(line, '\n')); line = next + 1)
		count += !strncmp(line, "file:\t", 6) && next - line > length &&
			 !strncmp(next - length, end, length);
	return count;
}

static bool is_flushed(struct vm *vm)
{
	uint64_t before;
	int ret;

	pin(0, 0);
	before = flushes_counted();
	ret = run_guest(vm->vcpu[0], vm->run[0], false);
	if (ret)
		race_fails("a guest that executes WBINVD: %s", name_of(ret));
	ret = flushes_counted() > before;
	pin(0, -1);
	return ret;
}

/* One VM's device, fdinfo, debugfs, and its guest */
static int compare_vm(int v, char *why)
{
	struct kvm_vfio_vm_state is = {};
	int device = shared.device[v], ret;
	char path[60], text[4000];
	long flag, changes;
	bool flushed;

	if (device < 0)
		return 0;
	ret = call(kvm_vfio_attr(device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				 KVM_DEV_VFIO_STATE_VM, &is));
	if (ret)
		return differs(why, "reading the state of VM %d: %s", v, name_of(ret));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", device);
	get_text(path, text, sizeof(text));
	if (count_lines(text, "") != is.files ||
	    count_lines(text, " not-enforced") != is.noncoherent_files)
		return differs(why, "VM %d has %u files, %u non-coherent, and in fdinfo %s", v,
			       is.files, is.noncoherent_files, text);
	flag = vm_number(getpid(), shared.vm[v].fd, "noncoherent_dma");
	changes = vm_number(getpid(), shared.vm[v].fd, "noncoherent_dma_changes");
	if (flag != !!is.noncoherent_files || flag != is.noncoherent || changes % 2 != flag)
		return differs(why, "VM %d: flag %u, in debugfs %ld after %ld changes, non-coherent %u",
			       v, is.noncoherent, flag, changes, is.noncoherent_files);
	flushed = is_flushed(&shared.vm[v]);
	if (flushed != flag)
		return differs(why, "VM %d: a WBINVD has %sreached the CPU, with the flag %ld", v,
			       flushed ? "" : "not ", flag);
	race->seen[flag]++;
	return 0;
}

static bool group_can_be_coherent(int g)
{
	int i;

	for (i = 0; i < nr_devices; i++)
		if (devices[i].group == g && !devices[i].coherent_at_first)
			return false;
	return true;
}

/* 1: its devices can be opened, so it is attached; 0: it is not; NONE: none is bound now. */
static int group_is_attached(int g)
{
	int i, fd = -ENODEV;

	for (i = 0; i < nr_devices && fd == -ENODEV; i++)
		if (devices[i].group == g)
			fd = call(ioctl(shared.group[g], VFIO_GROUP_GET_DEVICE_FD, devices[i].name));
	if (fd >= 0)
		close(fd);
	return fd >= 0 ? 1 : fd == -EINVAL ? 0 : NONE;
}

static int file_state(int v, int fd, unsigned int *is)
{
	struct kvm_vfio_file_state file = { .fd = fd };
	int ret = shared.device[v] < 0 ? -ENOENT :
		  call(kvm_vfio_attr(shared.device[v], KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				     KVM_DEV_VFIO_STATE_FILE, &file));

	*is = file.coherency;
	return ret;
}

/* One that no VM tracks: what would it be to a VM? ~0 if there is none that can track it. */
static unsigned int state_when_added(int fd)
{
	unsigned int is = ~0u;
	int v;

	for (v = 0; v < RACE_VMS && is == ~0u; v++) {
		if (shared.device[v] < 0 || call(kvm_vfio_add(shared.device[v], fd)))
			continue;
		if (file_state(v, fd, &is) || call(kvm_vfio_del(shared.device[v], fd)))
			race_fails("a file that was added cannot be read, or deleted");
	}
	return is;
}

/* Is it to all VMs what it is? */
static int compare_group(int g, char *why)
{
	int v, ret, fd = shared.group[g], attached;
	unsigned int is = ~0u, to_one, expected;

	if (fd < 0 || groups[g].emulated)
		return 0;
	for (v = 0; v < RACE_VMS; v++) {
		ret = file_state(v, fd, &to_one);
		if (ret == -ENOENT)
			continue;
		if (ret || (is != ~0u && is != to_one))
			return differs(why, "group %d: %s, %u to VM %d, %u to others", g,
				       name_of(ret), to_one, v, is);
		is = to_one;
	}
	if (is == ~0u)
		is = state_when_added(fd);
	attached = is == ~0u ? NONE : group_is_attached(g);
	if (attached == NONE)
		return 0;
	expected = !attached ? KVM_VFIO_FILE_NOT_ATTACHED : group_can_be_coherent(g) ?
		   KVM_VFIO_FILE_ENFORCED : KVM_VFIO_FILE_NOT_ENFORCED;
	if (is != expected)
		return differs(why, "group %d is %u instead of %u", g, is, expected);
	race->groups[attached]++;
	return 0;
}

static int compare_all(char *why)
{
	long expected = 0, is;
	int i;

	for (i = 0; i < RACE_VMS; i++) {
		if (compare_vm(i, why))
			return 1;
		expected += vm_number(getpid(), shared.vm[i].fd, "noncoherent_dma");
	}
	for (i = 0; i < nr_groups; i++)
		if (compare_group(i, why))
			return 1;
	is = get_number(DEBUGFS "kvm/noncoherent_dma");
	return is == expected ? 0 :
	       differs(why, "%ld VMs are non-coherent instead of %ld", is, expected);
}

/*
 * The thread that binds devices does not stop in the middle of it. Either it waits for a
 * device to be closed, which nobody does now, or it is through in a moment.
 */
static void compare(void)
{
	char why[sizeof(race->why)];
	int tries;

	for (tries = 0; tries < 300; tries++) {
		if (!compare_all(why)) {
			race->compared++;
			return;
		}
		usleep(10000);
	}
	race_fails("%s", why);
}

static void stop(void)
{
	if (pthread_barrier_wait(&shared.stop) == PTHREAD_BARRIER_SERIAL_THREAD) {
		shared.stopped = true;
		compare();
		shared.stopped = false;
	}
	pthread_barrier_wait(&shared.stop);
}

static void *race_thread(void *arg)
{
	static void (*const what[])(uint64_t *state) = {
		race_track, race_track, race_track, race_container, race_container,
		race_container, race_open, race_opened, race_run, race_run, race_read,
		race_device, race_life, race_cdev, race_cdev, race_attach, race_attach,
		race_attached, race_attached, race_attached, race_attached, race_memslot,
		race_fork, race_cpu, race_unload, race_cdev, race_cdev, race_attach,
		race_block, race_signal, race_bad, race_map, race_map, race_map,
	};
	long number = (long)arg;
	uint64_t state = options.seed * 1000003ULL + number;
	int i;

	shared.tid[number] = gettid();
	for (i = 0; i < options.rounds; i++, race->done++) {
		if (number == THREADS) {
			while (shared.stopped)
				usleep(1000);
			race_bind(&state);
			continue;
		}
		what[any(&state, ARRAY_SIZE(what))](&state);
		if (!stock && (i + 1) % (options.rounds / STOPS ?: 1) == 0)
			stop();
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
		if (has_uffd && !make_missing_page(vm))
			race_fails("no page with userfaultfd");
		shared.device[v] = must(kvm_vfio_create(vm->fd));
	}
}

static void close_all(void)
{
	size_t i;

	for (i = 0; i < RACE_VMS + RACE_LIVES; i++)
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

/* The last group of a device that an IOMMU is before */
static void keep_group(void)
{
	int g = nr_groups - 1, fd;

	while (groups[g].emulated)
		g--;
	shared.kept_group = g;
	shared.kept_container = must(open_container());
	fd = open_group_number(groups[g].number);
	if (fd < 0 || group_join(fd, shared.kept_container) ||
	    container_set_iommu(shared.kept_container))
		race_fails("the group %d cannot be attached", groups[g].number);
}

static void signalled(int number __attribute__((unused)))
{
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
		race->changes += changes;
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
	for (i = 0; i < RACE_LIVES; i++)
		shared.device[RACE_VMS + i] = -1;
	open_null();
	keep_group();
	if (has_iommufd)
		race_iommufd();
	race_vms();
	/* Without SA_RESTART */
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = signalled }, NULL);
	pthread_barrier_init(&shared.stop, NULL, THREADS);
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

/* So many calls, and something of each kind has come about. */
#define ENOUGH		800
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
		if (race->failed)
			printf("# %s\n", race->why);
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
	if (race->done > 500 && !race->added)
		fail("no file was ever added");
	if (!stock && race->done > ENOUGH && !race->changes && has_noncoherent_devices())
		fail("no VM has ever changed");
	if (has_iommufd && race->done > 500 && !race->attached)
		fail("nothing was ever attached by iommufd");
	if (has_pasids && race->done > 2000 && !race->by_pasid)
		fail("nothing was ever attached by a PASID");
	if (!stock && race->done > ENOUGH && !race->mapped)
		fail("no memory was ever mapped");
	if (has_uffd && race->done > ENOUGH && !race->blocked)
		fail("no vCPU was ever blocked");
	if (!stock && !race->compared)
		fail("the threads were never compared");
	/* Nine of ten are.  In a host with few groups a race compares two to ten of them. */
	if (!stock && race->groups[0] >= 8 && !race->groups[1])
		fail("no group was ever attached when they were compared");
	if (!stock && race->done > ENOUGH && devices[0].id != NONE && !race->groups[0] && !race->groups[1])
		fail("no group was ever compared");
	printf("# %ld calls by %d threads, %ld of them added a file, %ld attached by iommufd, %ld by a PASID, %ld blocked a vCPU, %ld mapped memory; VMs have changed %ld times, and were in %ld stops coherent %ld times, non-coherent %ld times; groups were not attached %ld times, attached %ld times\n",
	       race->done, THREADS + 1, race->added, race->attached, race->by_pasid, race->blocked,
	       race->mapped, race->changes, race->compared, race->seen[0], race->seen[1],
	       race->groups[0], race->groups[1]);
}
