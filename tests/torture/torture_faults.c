// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faults on purpose: in such a walk each call is made to fail in the first place where it
 * can, then in the second one, and so on, until it gets through. Places are allocations,
 * copies from and to user space, descriptors and vfio.ko that are looked up
 * (fixtures/fail_calls.c). A call that failed has changed nothing: the model is compared
 * each time.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "torture_remote.h"

#define FAILSLAB	DEBUGFS "failslab/"
#define FAIL_PAGE	DEBUGFS "fail_page_alloc/"
#define FAIL_USERCOPY	DEBUGFS "fail_usercopy/"

bool faults;
unsigned long faults_injected;
int fault_kinds;
bool fault_survived;
/* The place at which the next call of that kind fails */
static int next_place[STEP_KINDS];
static int control = -1, place;

#define SLAB	"/sys/kernel/slab/"

/*
 * Without memory of its own kmemleak complains, once, under a lock that the console takes no part in
 * otherwise: a circle of locks that is the kernel's, not ours. So caches fail but for kmemleak's.
 * Linux 6.1 cannot be told which.
 */
static void spare_kmemleak(void)
{
	DIR *folder = opendir(SLAB);
	struct dirent *entry;
	char path[300];
	int ret = 0;

	while (folder && !ret && (entry = readdir(folder))) {
		if (entry->d_type != DT_DIR || entry->d_name[0] == '.' ||
		    !strncmp(entry->d_name, "kmemleak_", 9))
			continue;
		snprintf(path, sizeof(path), SLAB "%s/failslab", entry->d_name);
		ret = put(path, "1");
	}
	if (folder)
		closedir(folder);
	if (folder && !ret)
		must_put(FAILSLAB "cache-filter", "Y");
}

const char *no_faults(void)
{
	static bool loaded;

	if (access("/proc/thread-self/fail-nth", W_OK) || access(FAILSLAB, F_OK))
		return "this kernel has no fault injection";
	/* What may wait fails as well, and there is no stack trace of what is wanted. */
	must_put(FAILSLAB "ignore-gfp-wait", "N");
	must_put(FAILSLAB "verbose", "0");
	must_put(FAIL_PAGE "ignore-gfp-wait", "N");
	must_put(FAIL_PAGE "verbose", "0");
	/* A single page as well */
	must_put(FAIL_PAGE "min-order", "0");
	must_put(FAIL_USERCOPY "verbose", "0");
	if (!loaded) {
		load("fail_calls.ko", "");
		spare_kmemleak();
	}
	loaded = true;
	return NULL;
}

/* What is written is copied from user space: to take back a place that is next fails, once. */
void fail_at(int nth)
{
	char text[12];
	int size = snprintf(text, sizeof(text), "%d", nth);

	if (pwrite(control, text, size, 0) != size && pwrite(control, text, size, 0) != size)
		wrong(BROKEN, "fail-nth cannot be written");
}

/*
 * How many places the last call was short of its one, 0: it came there. What is read is copied
 * to user space, and may fail by that: then it is not 0.
 */
int places_left(void)
{
	char text[12] = "";

	if (pread(control, text, sizeof(text) - 1, 0) > 0)
		return atoi(text);
	if (errno != EFAULT)
		wrong(BROKEN, "fail-nth cannot be read");
	return 1;
}

bool has_failed(void)
{
	return !places_left();
}

/* Before the first step: steps know which descriptor is the next one. */
void fault_open(void)
{
	if (faults)
		control = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
}

void faults_begin(void)
{
	faults = true;
	fault_open();
}

void faults_end(void)
{
	faults = false;
	close_fd(&control);
}

void fault_begin(int kind)
{
	if (!faults)
		return;
	place = ++next_place[kind];
	fail_at(place);
}

int failed_by(int result, int how)
{
	if (result == -EFAULT)
		return how & BY_EFAULT;
	if (result == -EBADF && how & BY_NO_FILE)
		return BY_NO_FILE;
	if (result == -EINVAL && how & BY_NO_VFIO)
		return BY_NO_VFIO;
	return result == -ENOMEM ? BY_NO_MEMORY : how & BY_ANY_OTHER;
}

void must_be_all_kinds(int which)
{
	static const struct {
		int kind;
		const char *what;
	} kinds[] = {
		{ BY_NO_MEMORY, "memory" }, { BY_EFAULT, "a copy" }, { BY_NO_FILE, "its file" },
		{ BY_NO_VFIO, "vfio.ko" },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		if (!(which & kinds[i].kind))
			fail("no call went without %s", kinds[i].what);
}

bool fault_again(int result, int how)
{
	bool failed;

	if (!faults)
		return false;
	failed = has_failed();
	fail_at(0);
	/* The call has fewer places than that. If it failed by itself the next one is to come there. */
	if (!failed) {
		next_place[current_kind] = result < 0 ? place - 1 : 0;
		return false;
	}
	faults_injected++;
	if (result >= 0) {
		fault_survived = true;
		return false;
	}
	if (!failed_by(result, how))
		return false;		/* or what the model expects */
	fault_kinds |= failed_by(result, how);
	if (current_kind == STEP_CDEV_ATTACH || current_kind == STEP_PASID_ATTACH)
		model_took_back();
	check_unchanged(faults_injected);
	return true;
}

/* ---- one place, for certain ---------------------------------------------- */

/* An ADD that makes the VM non-coherent, and fails in that place or gets through: is it over? */
static bool add_with_fault(int vm, int device, int group, int nth, int *most)
{
	long flushes = vm_number(getpid(), vm, "noncoherent_dma_flushes");
	bool failed;
	int ret;

	fail_at(nth);
	ret = call(kvm_vfio_add(device, group));
	failed = has_failed();
	fail_at(0);
	if (ret && !failed)
		fail("ADD: %s", name_of(ret));
	if (ret)
		return false;
	flushes = vm_number(getpid(), vm, "noncoherent_dma_flushes") - flushes;
	must(kvm_vfio_del(device, group));
	if (flushes < 1 || flushes > CPUS || (!failed && flushes != 1))
		fail("%ld CPUs wrote their caches back, one is dirty", flushes);
	*most = flushes > *most ? flushes : *most;
	return !failed;
}

/* Which of them are dirty cannot be noted, so it is all of them. */
void test_flush_without_memory(void)
{
	int like = device_like(false, false), vm, vcpu, container, group, device, nth = 1, most = 0;
	const char *why = no_faults();
	struct kvm_run *run;
	size_t size;
	void *memory;

	if (why)
		skip("%s", why);
	/* Where all devices are coherent nothing is ever owed. */
	if (like == NONE)
		return;
	restore_devices();
	vm = create_vm();
	memory = make_memory(vm);
	vcpu = make_vcpu(vm, 0, &run, &size);
	if (!memory || vcpu < 0 || run_guest(vcpu, run, false))
		fail("no guest");
	container = must(open_container());
	group = must_open_group(groups[devices[like].group].number);
	must(group_join(group, container));
	must(container_set_iommu(container));
	device = must(kvm_vfio_create(vm));
	faults_begin();
	while (!add_with_fault(vm, device, group, nth, &most))
		if (++nth > 100)
			fail("ADD fails in more than 100 places");
	faults_end();
	if (most != CPUS)
		fail("no ADD went without memory for the mask of CPUs, in %d places", nth);
	munmap(run, size);
	close(vcpu);
	close(device);
	close(group);
	close(container);
	close(vm);
}
