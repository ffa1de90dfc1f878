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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "files.h"
#include "vfio.h"
#include "vm.h"

/* What fails ends the case, and with the process all that is open of it. */

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

static void unload_if_loaded(const char *name)
{
	if (module_references(name) >= 0)
		unload(name);
}

static void unload_all(void)
{
	unload_if_loaded(kvm.top);
	unload_if_loaded(kvm.base);
	unload_if_loaded("vfio_pci");
	unload_if_loaded("vfio_pci_core");
	unload_if_loaded(vfio.top);
	unload_if_loaded(vfio.base);
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
	void *memory = shared_memory(0x1000);
	int vm = create_vm(), vcpu;
	struct kvm_run *run;
	size_t size;

	memcpy(memory, code, sizeof(code));
	add_memory(vm, 0, 0x1000, 0x1000, memory);
	vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0));
	run = map_vcpu(vcpu, &size);
	start_real_mode(vcpu, 0x1000, 0);
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
	int vm, group, ret;

	must_load(vfio_set, vfio.base);
	must_load(vfio_set, vfio.file);
	load_kernels("vfio_pci_core", "");
	load_kernels("vfio_pci", "ids=1234:11e8");
	must_load(kvm_set, kvm.base);
	must_load(kvm_set, kvm.file);
	group = must_open_group(group_number_of(edu_device(0)));
	vm = create_vm();
	ret = kvm_vfio_add(must(kvm_vfio_create(vm)), group) ? -errno : 0;
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
