/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of the KVM-VFIO pseudo device share: what the host offers, VFIO
 * groups, VMs whose guest executes WBINVD, and the count of those that reached
 * a CPU.
 *
 * Nothing of the common ABI tells whether a VM is non-coherent, and what the
 * device says of itself is to be tested itself.  What it does is visible, though:
 * only in a non-coherent VM does the guest's WBINVD execute wbinvd_ipi() of kvm.ko
 * (or the kernel's __wbinvd()) on a CPU.  So the tests let a guest execute WBINVD and
 * count the hits of a kprobe there, CPU by CPU, with perf_event_open(2).  The
 * IOMMU's part of the truth comes from VFIO_DMA_CC_IOMMU of an attached
 * container.
 *
 * The programs are part of the kernel's selftests, and each is built alone by
 *
 *   gcc -O2 -Wall -static -pthread -I TREE/tools/testing/selftests \
 *	-o vfio_dev_test vfio_dev_test.c
 *
 * They need root, /dev/kvm and devices bound to vfio-pci, each alone in its IOMMU
 * group: two of them and two CPUs for everything.  They are
 *
 *   the last words of the command line, as ../vfio/scripts/run.sh gives them, or
 *   VFIO_DEV_TEST_GROUPS="12 13"	VFIO groups of any kind of device, or
 *   VFIO_DEV_TEST_DEVS="0000:00:03.0 0000:00:04.0", or
 *   VFIO_SELFTESTS_BDF=0000:00:03.0	as the selftests of VFIO are told, or LAB_EDU, or
 *   every device bound to vfio-pci that nobody has open.
 *
 * What the host cannot show is skipped, and the reason given;
 * VFIO_DEV_TEST_STRICT=1 makes such a case fail.  VFIO_DEV_TEST_SEED=N starts
 * the random walks elsewhere.
 */
#ifndef SELFTEST_KVM_VFIO_DEV_TEST_H
#define SELFTEST_KVM_VFIO_DEV_TEST_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"
#include "vfio_dev_uapi.h"

#define MAX_GROUPS	4
#define MAX_CPUS	16
#define MAX_BOUND	64

/*
 * FIXTURE_VARIANT_ADD() for each line of the table FIXTURE_variants, which has the
 * variant's name before its data.
 */
#define FIXTURE_VARIANTS(fixture)						\
	static void __attribute__((constructor)) fixture##_add_variants(void)	\
	{									\
		enum { NR = ARRAY_SIZE(fixture##_variants) };			\
		static struct __fixture_variant_metadata all[NR];		\
		int i;								\
										\
		for (i = 0; i < NR; i++) {					\
			all[i].name = fixture##_variants[i].name;		\
			all[i].data = &fixture##_variants[i];			\
			__register_fixture_variant(&_##fixture##_fixture_object,\
						   &all[i]);			\
		}								\
	}									\
	static void fixture##_add_variants(void)

/* --- The host --- */

/*
 * Found out once, before the first test. A reason (no_...) is empty if there is
 * nothing that could be missing.
 */
static struct {
	char no_kvm[128];
	char no_group[128];
	char no_probe[128];
	int nr_groups;
	int group[MAX_GROUPS];		/* /dev/vfio/N */
	char bdf[MAX_GROUPS][32];	/* empty: not a PCI device */
	bool noncoherent;		/* the IOMMU does not enforce coherency */
	bool strict;
	int nr_cpus;
	int cpu[MAX_CPUS];		/* those we may run on */
	uint32_t probe_type;		/* perf's number for kprobes */
	int probe[MAX_CPUS];		/* counts wbinvd_ipi() on cpu[i] */
	atomic_bool *lost;		/* did not become free; all processes see it */
} host;

/* Where the harness has no place to jump to, each test is a process of its own. */
#ifdef setjmp
#define END_SKIPPED_TEST	longjmp(_metadata->env, 1)
#else
#define END_SKIPPED_TEST	_exit(KSFT_SKIP)
#endif

/* A test that cannot run ends here, in a fixture's setup as well. */
#define REQUIRE(reason) do {							\
	const char *why = (reason);						\
										\
	if (why && *why && host.strict) {					\
		TH_LOG("this host cannot show it: %s", why);			\
		ASSERT_STREQ("", why);						\
	}									\
	if (why && *why)							\
		SKIP(END_SKIPPED_TEST, "%s", why);				\
} while (0)

static inline const char *no_groups(int nr)
{
	static char why[192];

	if (host.no_kvm[0])
		return host.no_kvm;
	if (nr && host.no_group[0])
		return host.no_group;
	if (host.nr_groups >= nr)
		return "";
	snprintf(why, sizeof(why), "needs %d VFIO groups, the host has %d", nr,
		 host.nr_groups);
	return why;
}

static inline const char *no_cpus(int nr)
{
	static char why[64];

	if (host.nr_cpus >= nr)
		return "";
	snprintf(why, sizeof(why), "needs %d CPUs, the host has %d", nr, host.nr_cpus);
	return why;
}

static inline const char *no_pci(int group)
{
	return host.bdf[group][0] ? "" : "the group has no known PCI device";
}

/* Later kernels have files of devices that are VFIO files. */
static inline const char *no_device_files(void)
{
	struct utsname u;
	int major = 0, minor = 0;

	uname(&u);
	if (sscanf(u.release, "%d.%d", &major, &minor) == 2 &&
	    (major > 6 || (major == 6 && minor >= 6)))
		return "";
	return "before Linux 6.6 a device's file is no VFIO file";
}

/* --- System calls that return -errno --- */

static inline long call(long ret)
{
	return ret < 0 ? -errno : ret;
}

static inline int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	long ret;

	if (fd < 0)
		return -errno;
	ret = call(write(fd, text, strlen(text)));
	close(fd);
	return ret < 0 ? ret : 0;
}

static inline int read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	long ret;

	if (fd < 0)
		return -errno;
	ret = call(read(fd, text, size - 1));
	close(fd);
	text[ret > 0 ? ret : 0] = 0;
	return ret < 0 ? ret : 0;
}

static inline void sleep_ms(int ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000L };

	nanosleep(&t, NULL);
}

/* This thread runs on host.cpu[i] only, on all of them for -1. */
static inline void pin(int i)
{
	cpu_set_t set;
	int j;

	CPU_ZERO(&set);
	for (j = 0; j < host.nr_cpus; j++)
		if (i < 0 || i == j)
			CPU_SET(host.cpu[j], &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/* --- VFIO --- */

static inline int group_open(int i)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%d", host.group[i]);
	return call(open(path, O_RDWR | O_CLOEXEC));
}

/*
 * The last reference to the file may be put a moment after its owner has gone. A
 * group that somebody has kept is not waited for again, by no test: all of them
 * would take an hour to fail.
 */
static inline int group_open_soon(int i)
{
	int tries, fd = -EBUSY;

	for (tries = 0; tries < 200 && fd == -EBUSY; tries++) {
		if (tries && host.lost[i])
			break;
		if (tries)
			sleep_ms(10);
		fd = group_open(i);
	}
	host.lost[i] = fd == -EBUSY;
	return fd;
}

static inline int container_open(void)
{
	return call(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
}

static inline int group_join(int group, int container)
{
	return call(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
}

static inline int group_leave(int group)
{
	return call(ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
}

static inline int set_iommu(int container)
{
	return call(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
}

static inline int group_get_device(int group, int i)
{
	return call(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, host.bdf[i]));
}

/* --- The KVM device --- */

static inline int set_attr(int dev, uint32_t group, uint64_t attr, const void *addr)
{
	struct kvm_device_attr a = {
		.group = group,
		.attr = attr,
		.addr = (uintptr_t)addr,
	};

	return call(ioctl(dev, KVM_SET_DEVICE_ATTR, &a));
}

static inline int get_attr(int dev, uint32_t group, uint64_t attr, void *addr)
{
	struct kvm_device_attr a = {
		.group = group,
		.attr = attr,
		.addr = (uintptr_t)addr,
	};

	return call(ioctl(dev, KVM_GET_DEVICE_ATTR, &a));
}

static inline int has_attr(int dev, uint32_t group, uint64_t attr)
{
	struct kvm_device_attr a = { .group = group, .attr = attr };

	return call(ioctl(dev, KVM_HAS_DEVICE_ATTR, &a));
}

static inline int dev_add(int dev, int32_t fd)
{
	return set_attr(dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, &fd);
}

static inline int dev_del(int dev, int32_t fd)
{
	return set_attr(dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_DEL, &fd);
}

static inline int create_device(int vm, uint32_t flags)
{
	struct kvm_create_device cd = {
		.type = KVM_DEV_TYPE_VFIO,
		.fd = (uint32_t)-1,
		.flags = flags,
	};
	int ret = call(ioctl(vm, KVM_CREATE_DEVICE, &cd));

	return ret ? ret : (int)cd.fd;
}

static inline int test_device(int vm)
{
	struct kvm_create_device cd = {
		.type = KVM_DEV_TYPE_VFIO,
		.flags = KVM_CREATE_DEVICE_TEST,
	};

	return call(ioctl(vm, KVM_CREATE_DEVICE, &cd));
}

/* --- A VM with one device, and one vCPU if it must say whether it is coherent --- */

struct vm {
	int fd;
	int vcpu;
	int dev;
	struct kvm_run *run;
	size_t run_size;
	uint8_t *mem;
};

#define NO_VM	((struct vm){ .fd = -1, .vcpu = -1, .dev = -1 })

static inline int vm_open_without_device(struct vm *vm)
{
	int kvm = call(open("/dev/kvm", O_RDWR | O_CLOEXEC));

	*vm = NO_VM;
	if (kvm < 0)
		return kvm;
	vm->fd = call(ioctl(kvm, KVM_CREATE_VM, 0));
	vm->run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	close(kvm);
	return vm->fd < 0 ? vm->fd : 0;
}

static inline int vm_open(struct vm *vm)
{
	int ret = vm_open_without_device(vm);

	if (ret)
		return ret;
	vm->dev = create_device(vm->fd, 0);
	return vm->dev < 0 ? vm->dev : 0;
}

static inline void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* The mapping of a vCPU keeps the VM alive as much as its descriptor does. */
static inline void vm_close(struct vm *vm)
{
	if (vm->run)
		munmap(vm->run, vm->run_size);
	close_fd(&vm->dev);
	close_fd(&vm->vcpu);
	close_fd(&vm->fd);
	if (vm->mem)
		munmap(vm->mem, 4096);
	*vm = NO_VM;
}

#ifdef __x86_64__
static const char no_guest[] = "";

#define GUEST_ENTRY	0x1000

/* wbinvd; hlt; jmp to the start */
static const uint8_t guest_wbinvd_once[] = { 0x0f, 0x09, 0xf4, 0xeb, 0xfb };

/* incw %cs:0x1800; hlt; and then as above */
static const uint8_t guest_write_first[] = {
	0x2e, 0xff, 0x06, 0x00, 0x18, 0xf4, 0x0f, 0x09, 0xf4, 0xeb, 0xfb,
};

/* dirties a cache line for ever */
static const uint8_t guest_busy[] = {
	0x2e, 0xff, 0x06, 0x00, 0x18,	/* incw %cs:0x1800 */
	0xeb, 0xf9,			/* jmp to the start */
};

/* wbinvd for ever */
static const uint8_t guest_wbinvd[] = { 0x0f, 0x09, 0xeb, 0xfc };

/* A page of real mode code, and a vCPU that stands at its beginning. */
static inline int vm_add_vcpu(struct vm *vm, const uint8_t *code, size_t size)
{
	struct kvm_userspace_memory_region slot = {
		.guest_phys_addr = GUEST_ENTRY,
		.memory_size = 4096,
	};
	struct kvm_regs regs = { .rip = GUEST_ENTRY, .rflags = 2 };
	struct kvm_sregs sregs;
	void *map;
	int ret;

	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return -errno;
	vm->mem = map;
	memcpy(vm->mem, code, size);
	slot.userspace_addr = (uintptr_t)vm->mem;
	ret = call(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot));
	if (ret)
		return ret;
	/* Asked for by processors that cannot run real mode code in a guest. */
	ioctl(vm->fd, KVM_SET_TSS_ADDR, 0xfffbd000UL);
	vm->vcpu = call(ioctl(vm->fd, KVM_CREATE_VCPU, 0UL));
	if (vm->vcpu < 0)
		return vm->vcpu;
	map = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	if (map == MAP_FAILED)
		return -errno;
	vm->run = map;
	ret = call(ioctl(vm->vcpu, KVM_GET_SREGS, &sregs));
	if (ret)
		return ret;
	sregs.cs.selector = 0;
	sregs.cs.base = 0;
	ret = call(ioctl(vm->vcpu, KVM_SET_SREGS, &sregs));
	return ret ? ret : call(ioctl(vm->vcpu, KVM_SET_REGS, &regs));
}
#else
static const char no_guest[] = "only x86 has WBINVD";
static const uint8_t guest_wbinvd_once[1], guest_write_first[1], guest_busy[1], guest_wbinvd[1];

static inline int vm_add_vcpu(struct vm *vm, const uint8_t *code, size_t size)
{
	return -EOPNOTSUPP;
}
#endif

static inline int add_guest(struct vm *vm)
{
	return vm_add_vcpu(vm, guest_wbinvd_once, sizeof(guest_wbinvd_once));
}

static inline int vm_open_guest(struct vm *vm)
{
	int ret = vm_open(vm);

	return ret ? ret : add_guest(vm);
}

/* A VM that another thread creates, after which KVM names it */
struct creator {
	struct vm vm;
	pid_t tid;
	int ret;
	int (*open)(struct vm *vm);
};

static inline void *creator_main(void *arg)
{
	struct creator *c = arg;

	c->tid = gettid();
	c->ret = c->open(&c->vm);
	return NULL;
}

static inline int create_in_thread(struct creator *c)
{
	pthread_t thread;
	int ret = -pthread_create(&thread, NULL, creator_main, c);

	if (ret)
		return ret;
	pthread_join(thread, NULL);
	return c->ret;
}

/* To the next HLT of the guest, which is one WBINVD in most. */
static inline int vm_wbinvd(struct vm *vm)
{
	int ret;

	do {
		ret = call(ioctl(vm->vcpu, KVM_RUN, 0));
	} while (ret == -EINTR);
	if (ret)
		return ret;
	return vm->run->exit_reason == KVM_EXIT_HLT ? 0 : -EPROTO;
}

/* A guest that never stops, on a CPU of its own. */
struct runner {
	pthread_t thread;
	struct vm *vm;
	int cpu;
	atomic_bool stop;
	atomic_int error;
};

static inline void do_nothing(int sig)
{
}

static inline void *runner_main(void *arg)
{
	struct runner *r = arg;
	int ret;

	pin(r->cpu);
	while (!r->stop) {
		ret = call(ioctl(r->vm->vcpu, KVM_RUN, 0));
		if (ret != -EINTR) {
			r->error = ret ?: -EPROTO;
			break;
		}
	}
	return NULL;
}

static inline int runner_start(struct runner *r, struct vm *vm, int cpu)
{
	struct sigaction action = { .sa_handler = do_nothing };

	sigaction(SIGUSR1, &action, NULL);
	r->vm = vm;
	r->cpu = cpu;
	return -pthread_create(&r->thread, NULL, runner_main, r);
}

static inline int runner_stop(struct runner *r)
{
	r->stop = true;
	r->vm->run->immediate_exit = 1;
	pthread_kill(r->thread, SIGUSR1);
	pthread_join(r->thread, NULL);
	r->vm->run->immediate_exit = 0;
	return r->error;
}

/* --- How often WBINVD was executed for a guest --- */

static inline long probe_hits(int probe)
{
	uint64_t count = 0;

	if (read(probe, &count, sizeof(count)) != sizeof(count))
		return -1;
	return count;
}

static inline long hits_on(int i)
{
	return probe_hits(host.probe[i]);
}

static inline long hits(void)
{
	long sum = 0;
	int i;

	for (i = 0; i < host.nr_cpus; i++)
		sum += hits_on(i);
	return sum;
}

/* 1 if the VM is non-coherent, 0 if not, -errno if its guest does not run. */
static inline int vm_noncoherent(struct vm *vm)
{
	long before = hits();
	int ret = vm_wbinvd(vm);

	return ret ? ret : hits() > before;
}

static inline int open_probe(const char *function, int cpu)
{
	struct perf_event_attr attr = {
		.type = host.probe_type,
		.size = sizeof(attr),
		.kprobe_func = (uintptr_t)function,
	};

	return call(syscall(SYS_perf_event_open, &attr, -1, cpu, -1,
			    PERF_FLAG_FD_CLOEXEC));
}

static inline int open_probes(const char *function)
{
	int i;

	for (i = 0; i < host.nr_cpus; i++) {
		host.probe[i] = open_probe(function, host.cpu[i]);
		if (host.probe[i] < 0)
			break;
	}
	if (i == host.nr_cpus)
		return 0;
	while (i > 0)
		close(host.probe[--i]);
	return host.probe[0] < 0 ? host.probe[0] : -EIO;
}

/* --- What the device says of itself --- */

static inline int get_vm_state(int dev, struct kvm_vfio_vm_state *state)
{
	memset(state, 0xff, sizeof(*state));
	return get_attr(dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM, state);
}

/* KVM_VFIO_FILE_* or -errno */
static inline int get_file_state(int dev, int fd)
{
	struct kvm_vfio_file_state state = { .fd = fd, .coherency = 0xffffffff };
	int ret = get_attr(dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_FILE, &state);

	return ret ? ret : (int)state.coherency;
}

/* The words after "KEY:" in the Nth such line of a file in /proc/self/fdinfo */
static inline int fdinfo(int fd, const char *key, int nth, char *value, size_t size)
{
	size_t length = strlen(key);
	char path[64], line[512];
	int ret = -ENOENT;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "re");
	if (!file)
		return -errno;
	while (ret && fgets(line, sizeof(line), file)) {
		if (strncmp(line, key, length) || strncmp(line + length, ":\t", 2))
			continue;
		if (nth--)
			continue;
		line[strcspn(line, "\n")] = 0;
		snprintf(value, size, "%.*s", (int)size - 1, line + length + 2);
		ret = 0;
	}
	fclose(file);
	return ret;
}

static inline long fdinfo_number(int fd, const char *key)
{
	char value[64];
	int ret = fdinfo(fd, key, 0, value, sizeof(value));

	return ret ? ret : atol(value);
}

/* A VM's file in debugfs: the directory is named after process and descriptor. */
static inline long debugfs_stat(const struct vm *vm, const char *name)
{
	char path[256], text[32];
	int ret;

	if (vm)
		snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/%s", getpid(),
			 vm->fd, name);
	else
		snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%s", name);
	ret = read_file(path, text, sizeof(text));
	return ret ? ret : atol(text);
}

/* A statistic of a VM or vCPU, as KVM_GET_STATS_FD gives it, or -errno */
static inline long binary_stat(int kvm_fd, const char *name)
{
	struct kvm_stats_header header;
	struct kvm_stats_desc *desc;
	int fd = call(ioctl(kvm_fd, KVM_GET_STATS_FD, 0));
	long ret = -ENOENT;
	size_t size;
	uint64_t value;
	unsigned int i;

	if (fd < 0)
		return fd;
	if (pread(fd, &header, sizeof(header), 0) != sizeof(header)) {
		close(fd);
		return -EIO;
	}
	size = sizeof(*desc) + header.name_size;
	desc = calloc(1, size);
	for (i = 0; desc && i < header.num_desc && ret == -ENOENT; i++) {
		if (pread(fd, desc, size, header.desc_offset + i * size) != (ssize_t)size)
			ret = -EIO;
		else if (!strcmp(desc->name, name))
			ret = pread(fd, &value, sizeof(value),
				    header.data_offset + desc->offset) == sizeof(value) ?
				(long)value : -EIO;
	}
	free(desc);
	close(fd);
	return ret;
}

static inline const char *no_state(const struct vm *vm)
{
	return has_attr(vm->dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM) ?
		"nothing can be read from the device" : "";
}

/* --- Finding out about the host --- */

static inline void find_cpus(void)
{
	cpu_set_t set;
	int cpu;

	sched_getaffinity(0, sizeof(set), &set);
	for (cpu = 0; cpu < CPU_SETSIZE && host.nr_cpus < MAX_CPUS; cpu++)
		if (CPU_ISSET(cpu, &set))
			host.cpu[host.nr_cpus++] = cpu;
	/* Every CPU we can run on is then one whose hits are counted. */
	pin(-1);
}

/*
 * This VM exists as long as the program: the kernel patches its own code for the
 * first VM and after the last one, which need not happen in every test.
 */
static inline void find_kvm(void)
{
	static struct vm vm;
	int ret = vm_open_guest(&vm);

	if (vm.fd < 0)
		snprintf(host.no_kvm, sizeof(host.no_kvm), "/dev/kvm: no VM: %s", strerror(-ret));
	else if (ret == -ENODEV)
		snprintf(host.no_kvm, sizeof(host.no_kvm), "KVM has no VFIO device");
}

static inline bool group_known(int nr)
{
	int i;

	for (i = 0; i < host.nr_groups; i++)
		if (host.group[i] == nr)
			return true;
	return false;
}

/* Only a group that can be opened, and has all its devices in VFIO's hands. */
static inline void offer_group(int nr, const char *bdf)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	int fd;

	if (host.nr_groups == MAX_GROUPS || group_known(nr))
		return;
	host.group[host.nr_groups] = nr;
	fd = group_open(host.nr_groups);
	if (fd < 0)
		return;
	if (!ioctl(fd, VFIO_GROUP_GET_STATUS, &status) &&
	    (status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
		snprintf(host.bdf[host.nr_groups], sizeof(host.bdf[0]), "%s", bdf);
		host.nr_groups++;
	}
	close(fd);
}

static inline void offer_device(const char *bdf)
{
	char path[128], target[256];
	ssize_t size;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%.31s/iommu_group", bdf);
	size = readlink(path, target, sizeof(target) - 1);
	if (size < 0)
		return;
	target[size] = 0;
	offer_group(atoi(strrchr(target, '/') + 1), bdf);
}

static inline void offer_all_devices(void)
{
	DIR *dir = opendir("/sys/bus/pci/drivers/vfio-pci");
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (strchr(entry->d_name, ':'))
			offer_device(entry->d_name);
	if (dir)
		closedir(dir);
}

static inline void offer_words(const char *list, void (*offer)(const char *word))
{
	char *copy = strdup(list), *rest = copy, *word;

	while ((word = strsep(&rest, " \t\n,")))
		if (*word)
			offer(word);
	free(copy);
}

static inline void offer_number(const char *nr)
{
	offer_group(atoi(nr), "");
}

static inline bool is_bdf(const char *word)
{
	unsigned int segment, bus, device, function;
	int length = 0;

	return sscanf(word, "%4x:%2x:%2x.%1x%n", &segment, &bus, &device, &function,
		      &length) == 4 && !word[length];
}

/* Are there words at the end of the command line that name devices? */
static inline bool offer_last_words(int argc, char **argv)
{
	int first = argc, i;

	while (first > 1 && is_bdf(argv[first - 1]))
		first--;
	for (i = first; i < argc; i++)
		offer_device(argv[i]);
	return first < argc;
}

static inline void find_groups(int argc, char **argv)
{
	const char *groups = getenv("VFIO_DEV_TEST_GROUPS");
	const char *devs = getenv("VFIO_DEV_TEST_DEVS") ?: getenv("VFIO_SELFTESTS_BDF") ?:
		getenv("LAB_EDU");
	bool named = offer_last_words(argc, argv);

	if (!named && groups)
		offer_words(groups, offer_number);
	else if (!named && devs)
		offer_words(devs, offer_device);
	else if (!named)
		offer_all_devices();
	if (!host.nr_groups)
		snprintf(host.no_group, sizeof(host.no_group),
			 "no device bound to vfio-pci in a viable group that is free");
}

static inline void ask_iommu(void)
{
	int group, container, ret;

	if (!host.nr_groups)
		return;
	group = group_open(0);
	container = container_open();
	ret = group_join(group, container);
	if (!ret)
		ret = set_iommu(container);
	if (ret)
		snprintf(host.no_group, sizeof(host.no_group),
			 "the group does not attach to a type 1 container: %s", strerror(-ret));
	else
		host.noncoherent = ioctl(container, VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU) == 0;
	close(container);
	close(group);
}

static inline void find_probe(void)
{
	static const char type_file[] = "/sys/bus/event_source/devices/kprobe/type";
	char text[32];
	int ret;

	snprintf(host.no_probe, sizeof(host.no_probe), "%s", no_guest);
	if (*no_guest)
		return;
	ret = read_file(type_file, text, sizeof(text));
	if (!ret) {
		host.probe_type = atoi(text);
		ret = open_probes("kvm:wbinvd_ipi");
		if (ret)	/* not a module */
			ret = open_probes("wbinvd_ipi");
		if (ret)	/* a KVM that has none: newer kernels share theirs with it */
			ret = open_probes("__wbinvd");
	}
	if (ret)
		snprintf(host.no_probe, sizeof(host.no_probe),
			 "no kprobe on wbinvd_ipi() by perf_event_open: %s", strerror(-ret));
}

static inline void find_out(int argc, char **argv)
{
	const char *strict = getenv("VFIO_DEV_TEST_STRICT");

	host.strict = strict && atoi(strict);
	host.lost = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (host.lost == MAP_FAILED)
		abort();
	find_cpus();
	find_kvm();
	find_groups(argc, argv);
	ask_iommu();
	find_probe();
	printf("# %d VFIO groups, %d CPUs, IOMMU %s coherency%s%s\n", host.nr_groups,
	       host.nr_cpus, host.noncoherent ? "does not enforce" : "enforces",
	       host.no_probe[0] ? ", " : "", host.no_probe);
}

/*
 * A group as a test uses it: it is in no container at first, and it is free
 * again once its test has ended.
 */
static inline int need_group(int i)
{
	return group_open_soon(i);
}

/* Attached: its device could do DMA, were it open. */
static inline int group_attach(int group)
{
	int container = container_open();
	int ret = group_join(group, container);

	if (!ret)
		ret = set_iommu(container);
	/* The group keeps the container. */
	close(container);
	return ret;
}

/*
 * The group by another name: a device node DIR/NAME, which remains for the caller
 * to remove.
 */
static inline int group_open_as(int i, const char *dir, const char *name)
{
	char path[256];
	struct stat s;

	snprintf(path, sizeof(path), "/dev/vfio/%d", host.group[i]);
	if (stat(path, &s))
		return -errno;
	mkdir(dir, 0700);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (mknod(path, S_IFCHR | 0600, s.st_rdev) && errno != EEXIST)
		return -errno;
	return call(open(path, O_RDWR | O_CLOEXEC));
}

static inline void group_unlink(const char *dir, const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	unlink(path);
	rmdir(dir);
}

/* --- A device that is taken away from vfio-pci --- */

static inline int bind_vfio_pci(const char *bdf)
{
	char path[128];
	int ret;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%.31s/driver", bdf);
	if (!access(path, F_OK))
		return 0;
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%.31s/driver_override", bdf);
	ret = write_file(path, "vfio-pci");
	if (ret)
		return ret;
	ret = write_file("/sys/bus/pci/drivers_probe", bdf);
	/* As found: which driver it gets is not ours to decide for ever. */
	write_file(path, "\n");
	return ret;
}

static inline int unbind_vfio_pci(const char *bdf)
{
	return write_file("/sys/bus/pci/drivers/vfio-pci/unbind", bdf);
}

struct unbinder {
	pthread_t thread;
	const char *bdf;
	int ret;
	atomic_bool done;
};

static inline void *unbinder_main(void *arg)
{
	struct unbinder *u = arg;

	u->ret = unbind_vfio_pci(u->bdf);
	u->done = true;
	return NULL;
}

static inline uint32_t next_random(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 12;
}

/*
 * What the device says of its VM, in all its ways: FILES are tracked, and so many
 * of them are not coherent.  Also true if it says nothing; that it has to is for
 * a test of its own, see no_state().
 */
static inline bool vm_state_is(const struct vm *vm, int files, int noncoherent)
{
	struct kvm_vfio_vm_state state;

	if (*no_state(vm))
		return true;
	return !get_vm_state(vm->dev, &state) && state.files == (uint32_t)files &&
		state.noncoherent_files == (uint32_t)noncoherent &&
		state.noncoherent == !!noncoherent && !state.pad &&
		fdinfo_number(vm->dev, "noncoherent") == !!noncoherent &&
		fdinfo_number(vm->dev, "files") == files &&
		fdinfo_number(vm->dev, "noncoherent_files") == noncoherent;
}

/* The same for one file: KVM_VFIO_FILE_*, or -ENOENT if the VM does not track it. */
static inline bool file_state_is(const struct vm *vm, int fd, int expected)
{
	return *no_state(vm) || get_file_state(vm->dev, fd) == expected;
}

/* What a file that is attached must be on this host. */
static inline int attached_state(void)
{
	return host.noncoherent ? KVM_VFIO_FILE_NOT_ENFORCED : KVM_VFIO_FILE_ENFORCED;
}

/* As TEST_HARNESS_MAIN, after a look at the host. */
static inline int run_tests(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	find_out(argc, argv);
	return test_harness_run(argc, argv);
}

#endif /* SELFTEST_KVM_VFIO_DEV_TEST_H */
