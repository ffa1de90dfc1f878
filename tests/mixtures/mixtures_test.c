// SPDX-License-Identifier: GPL-2.0-only
/*
 * Do modules that are not of one set refuse each other, and work those that are?
 *
 *	mixtures_test
 *
 * In mixtures/ are Debian's modules, ours, and ours as another version (see
 * tests/mixtures/mixtures_build). Each of kvm's vendor module and of VFIO's type1 driver
 * is loaded on each of kvm and vfio: it must load on that of its own set, where
 * a vCPU then runs, and otherwise be refused with ENOENT and a line of the
 * kernel's that names the symbol that binds the set. kvm finds vfio when it
 * adds a file: our kvm must refuse that of another set with EINVAL. Whatever it
 * said, it must hold nothing when it is gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Ends the case, and with the process all that is open of it. */
static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list args;

	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	exit(1);
}

#include "testdev.h"

enum set { STOCK, OURS, OTHER, SETS };

static const char *const set_name[SETS] = { "stock", "ours", "other" };

/* A module that needs another one, and what binds the two */
struct pair {
	const char *base;
	const char *top;
	const char *file;		/* of @top, without .ko */
	const char *stock_symbol;
	const char *bound_symbol;	/* without its id */
};

static struct pair kvm = {
	"kvm", "kvm_amd", "kvm-amd", "kvm_x86_vendor_init", "kvm_x86_vi_",
};

static const struct pair vfio = {
	"vfio", "vfio_iommu_type1", "vfio_iommu_type1",
	"vfio_register_iommu_driver", "vfio_register_iom_",
};

/* ---- modules ------------------------------------------------------------- */

static bool is_loaded(const char *name)
{
	char path[100];

	snprintf(path, sizeof(path), "/sys/module/%s/refcnt", name);
	return !access(path, F_OK);
}

static void unload(const char *name)
{
	if (is_loaded(name) && syscall(SYS_delete_module, name, O_NONBLOCK))
		fail("the module %s does not unload: %s", name, strerror(errno));
}

static void unload_all(void)
{
	unload(kvm.top);
	unload(kvm.base);
	unload("vfio_pci");
	unload("vfio_pci_core");
	unload(vfio.top);
	unload(vfio.base);
}

static const char *module_path(enum set set, const char *file)
{
	static char path[100];

	snprintf(path, sizeof(path), "mixtures/%s/%s.ko", set_name[set], file);
	return path;
}

/* 0 or -errno */
static int try_load(enum set set, const char *file)
{
	int fd = must(open(module_path(set, file), O_RDONLY | O_CLOEXEC));
	int ret = syscall(SYS_finit_module, fd, "", 0) ? -errno : 0;

	close(fd);
	return ret;
}

static void must_load(enum set set, const char *file)
{
	int ret = try_load(set, file);

	if (ret)
		fail("%s of %s does not load: %s", file, set_name[set], strerror(-ret));
}

static void load_debians(const char *name, const char *options)
{
	struct utsname kernel;
	char path[200];

	uname(&kernel);
	snprintf(path, sizeof(path), "/lib/modules/%s/%s.ko", kernel.release, name);
	load(path, options);
}

/* The symbol by which the module of this set is bound */
static const char *binding(const struct pair *pair, enum set set)
{
	static char name[64];
	struct stat stat;
	char *data, *at;
	int fd;

	if (set == STOCK)
		return pair->stock_symbol;
	fd = must(open(module_path(set, pair->file), O_RDONLY | O_CLOEXEC));
	must(fstat(fd, &stat));
	data = mmap(NULL, stat.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	at = memmem(data, stat.st_size, pair->bound_symbol, strlen(pair->bound_symbol));
	if (at)
		snprintf(name, sizeof(name), "%s", at);
	munmap(data, stat.st_size);
	if (!at)
		fail("%s of %s is not bound", pair->top, set_name[set]);
	return name;
}

/* ---- the kernel log ------------------------------------------------------ */

static int open_log(void)
{
	int fd = must(open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC));

	must(lseek(fd, 0, SEEK_END));
	return fd;
}

static bool log_has(int fd, const char *text)
{
	char record[2048];
	ssize_t got;

	while ((got = read(fd, record, sizeof(record) - 1)) > 0) {
		record[got] = '\0';
		if (strstr(record, text))
			return true;
	}
	if (errno != EAGAIN)
		fail("/dev/kmsg: %s", strerror(errno));
	return false;
}

/* ---- a VM ---------------------------------------------------------------- */

static void run_vm(void)
{
	/* out %al, $0x42; hlt */
	static const uint8_t code[] = { 0xe6, 0x42, 0xf4 };
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = 0x1000, .memory_size = 0x1000,
	};
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2, .rax = 0x5a };
	struct kvm_sregs sregs;
	struct kvm_run *run;
	int dev, vm, vcpu;
	size_t size;
	void *memory;

	memory = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	memcpy(memory, code, sizeof(code));
	region.userspace_addr = (uintptr_t)memory;
	dev = must(open("/dev/kvm", O_RDWR | O_CLOEXEC));
	vm = must(ioctl(dev, KVM_CREATE_VM, 0));
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
	vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0));
	run = map_vcpu(dev, vcpu, &size);
	must(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs));
	must(ioctl(vcpu, KVM_SET_REGS, &regs));
	must(ioctl(vcpu, KVM_RUN, 0));
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x42 ||
	    *((uint8_t *)run + run->io.data_offset) != 0x5a)
		fail("the guest's OUT gave exit %u", run->exit_reason);
	must(ioctl(vcpu, KVM_RUN, 0));
	if (run->exit_reason != KVM_EXIT_HLT)
		fail("the guest's HLT gave exit %u", run->exit_reason);
}

/* ---- the cases ----------------------------------------------------------- */

static void try_pair(const struct pair *pair, enum set base, enum set top)
{
	char line[160];
	int log, ret;

	snprintf(line, sizeof(line), "%s: Unknown symbol %s (err -2)", pair->top,
		 binding(pair, top));
	must_load(base, pair->base);
	log = open_log();
	ret = try_load(top, pair->file);
	if (base == top) {
		if (ret)
			fail("it does not load: %s", strerror(-ret));
		if (pair == &kvm)
			run_vm();
		return;
	}
	if (!ret)
		fail("it loads");
	if (ret != -ENOENT)
		fail("it is refused with: %s", strerror(-ret));
	if (!log_has(log, line))
		fail("the kernel does not say '%s'", line);
}

/*
 * Ours looks up what only vfio of its own set has. Debian's kvm takes a file of
 * our vfio: the function it tells one by is there, since vfio_pci_core needs it
 * on 6.1. The others are not, so that it takes every file for non-coherent, and
 * gives no VM to a device's driver.
 */
static void try_add(const struct pair *pair, enum set kvm_set, enum set vfio_set)
{
	int expected = kvm_set == vfio_set || kvm_set == STOCK ? 0 : -EINVAL;
	struct kvm_create_device device = { .type = KVM_DEV_TYPE_VFIO };
	int dev, vm, group, ret;
	struct kvm_device_attr attr = {
		.group = KVM_DEV_VFIO_GROUP, .attr = KVM_DEV_VFIO_GROUP_ADD,
		.addr = (uintptr_t)&group,
	};
	char path[100];

	must_load(vfio_set, vfio.base);
	must_load(vfio_set, vfio.file);
	load_debians("vfio_pci_core", "");
	load_debians("vfio_pci", "ids=1234:11e8");
	must_load(kvm_set, kvm.base);
	must_load(kvm_set, kvm.file);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", getenv("LAB_EDU"));
	group = must_open_group(group_number_of(path));
	dev = must(open("/dev/kvm", O_RDWR | O_CLOEXEC));
	vm = must(ioctl(dev, KVM_CREATE_VM, 0));
	must(ioctl(vm, KVM_CREATE_DEVICE, &device));
	ret = ioctl(device.fd, KVM_SET_DEVICE_ATTR, &attr) ? -errno : 0;
	if (ret != expected)
		fail("ADD: %s", strerror(-ret));
}

typedef void try_fn(const struct pair *pair, enum set base, enum set top);

/* Does this succeed, in a process of its own? */
static bool succeeds(try_fn *try, const struct pair *pair, enum set base, enum set top)
{
	int status;
	pid_t child = fork();

	if (!child) {
		unload_all();
		if (try)
			try(pair, base, top);
		exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child) {
		printf("# no process: %s\n", strerror(errno));
		return false;
	}
	if (WIFSIGNALED(status))
		printf("# killed by signal %d\n", WTERMSIG(status));
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

static int number, failed;

/* All nine ways; NAME has room for what is on top and what it is put on. */
static void try_all(try_fn *try, const struct pair *pair, const char *name)
{
	for (enum set base = 0; base < SETS; base++) {
		for (enum set top = 0; top < SETS; top++) {
			/* What is held afterwards does not unload. */
			bool ok = succeeds(try, pair, base, top) &
				  succeeds(NULL, NULL, 0, 0);

			failed += !ok;
			printf("%sok %d %s: %s on %s\n", ok ? "" : "not ", ++number,
			       name, set_name[top], set_name[base]);
		}
	}
}

int main(void)
{
	const char *edu = getenv("LAB_EDU"), *machine = getenv("LAB_MACHINE");
	bool have_edu = edu && *edu;

	/* Written by several processes */
	setlinebuf(stdout);
	if (machine && !strcmp(machine, "vmx")) {
		kvm.top = "kvm_intel";
		kvm.file = "kvm-intel";
	}
	printf("KTAP version 1\n1..%d\n", SETS * SETS * (have_edu ? 3 : 2));
	try_all(try_pair, &kvm, "kvm's vendor module");
	try_all(try_pair, &vfio, "vfio_iommu_type1");
	if (have_edu)
		try_all(try_add, NULL, "ADD to vfio by kvm");
	return failed ? 1 : 0;
}
