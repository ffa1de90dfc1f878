// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faults on purpose, one call after the other. A walk with faults makes calls as they come,
 * and has no memory mapped for DMA. Here each call that our edits touch fails in each of its
 * places, for certain. What failed has changed nothing: descriptors, references to modules,
 * pinned memory, VMs in debugfs, and what a VM says of the files that it tracks. What got
 * through has to work. And what was set up leaves nothing when it is closed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "torture_remote.h"

#define PAGE		4096ul
#define RUNS		6	/* of one page each */
#define IOVA		0x100000
#define MOST_PLACES	2000
#define EXPEDITED	"/sys/kernel/rcu_expedited"

/* What is open for a call */
static struct {
	int kvm, vm, vcpu, device;
	int container, iommufd, file[2];	/* groups, or devices' own; the VM tracks them */
	uint32_t ioas[2], table[2], device_id;
	int memory;				/* a file */
	char text[1024];
} here;
/* For calls that are about VMs: a group that is attached */
static int attached = -1;
static bool attached_noncoherent;
static char *memory;

/* ---- what must not change ------------------------------------------------ */

struct host {
	long descriptors, vms, noncoherent, pins, locked, references[MODULES];
	char says[1024];	/* the VM's device, in fdinfo */
};

static long entries_in(const char *path)
{
	DIR *folder = opendir(path);
	long count = 0;

	while (folder && readdir(folder))
		count++;
	if (folder)
		closedir(folder);
	return count;
}

static int device_says(char *text, size_t size)
{
	char path[60], *ours;
	int ret;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", here.device);
	ret = get_text(path, text, size);
	ours = ret ? NULL : strstr(text, "vm:\t");
	if (ours)
		memmove(text, ours, strlen(ours) + 1);
	return ret;
}

static void look_at(struct host *host)
{
	*host = (struct host){
		.descriptors = entries_in("/proc/self/fd"), .vms = entries_in(DEBUGFS "kvm"),
		.noncoherent = get_number(DEBUGFS "kvm/noncoherent_dma"),
		/* It takes time to ask for it. */
		.pins = attached < 0 ? pins() : 0, .locked = locked_kb(),
	};
	get_references(host->references);
	if (here.device >= 0 && device_says(host->says, sizeof(host->says)))
		fail("no fdinfo");
}

static const char *difference(const struct host *a, const struct host *b)
{
	static char text[200];
	int i;
	const struct {
		const char *what;
		long from, to;
	} numbers[] = {
		{ "descriptors", a->descriptors, b->descriptors },
		{ "folders of KVM's in debugfs", a->vms, b->vms },
		{ "non-coherent VMs", a->noncoherent, b->noncoherent },
		{ "pins", a->pins, b->pins }, { "kB locked", a->locked, b->locked },
	};

	for (i = 0; i < (int)ARRAY_SIZE(numbers); i++) {
		snprintf(text, sizeof(text), "%ld %s instead of %ld", numbers[i].to,
			 numbers[i].what, numbers[i].from);
		if (numbers[i].from != numbers[i].to)
			return text;
	}
	for (i = 0; i < MODULES; i++) {
		snprintf(text, sizeof(text), "%ld references to %s instead of %ld",
			 b->references[i], modules[i], a->references[i]);
		if (a->references[i] != b->references[i])
			return text;
	}
	return strcmp(a->says, b->says) ? "the VM's device says something else" : NULL;
}

/* Some of it may be given back a moment later. */
static void must_be(const struct host *before, const char *when)
{
	const char *differs;
	struct host now;
	int tries;

	for (tries = 0; tries < 100; tries++) {
		look_at(&now);
		differs = difference(before, &now);
		if (!differs)
			return;
		usleep(10000);
	}
	fail("%s: %s", when, differs);
}

/* ---- VMs ----------------------------------------------------------------- */

static void make_vm(void)
{
	here.vm = create_vm();
}

/* From its first device on, and until it ends, a VM holds the vendor's module. */
static void make_held_vm(void)
{
	make_vm();
	close(must(kvm_vfio_create(here.vm)));
}

static void make_device(void)
{
	make_vm();
	here.device = must(kvm_vfio_create(here.vm));
}

static void make_tracked(void)
{
	make_device();
	must(kvm_vfio_add(here.device, attached));
}

/* By another VM, whose guest has run nothing */
static void make_shared(void)
{
	make_tracked();
	here.file[0] = here.device;
	here.file[1] = here.vm;
	make_device();
}

static void ask_kvm(void)
{
	here.kvm = open_kvm();
}

static int make_a_vm(void)
{
	return call(ioctl(here.kvm, KVM_CREATE_VM, 0));
}

/* It does what VMs are for. */
static void vm_works(int vm)
{
	struct kvm_vfio_vm_state state;
	int device = must(kvm_vfio_create(vm));

	must(kvm_vfio_add(device, attached));
	must(kvm_vfio_attr(device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM,
			   &state));
	if (state.files != 1 || state.noncoherent != attached_noncoherent)
		fail("%u files, and the flag is %u", state.files, state.noncoherent);
	close(device);
}

static int make_a_vcpu(void)
{
	here.vcpu = call(ioctl(here.vm, KVM_CREATE_VCPU, 0));
	return here.vcpu;
}

static void here_works(int ret __attribute__((unused)))
{
	vm_works(here.vm);
}

static int make_a_device(void)
{
	struct kvm_create_device request = { .type = KVM_DEV_TYPE_VFIO };
	int lowest = dup(here.vm), ret;

	close(lowest);
	ret = call(create_device_at(here.vm, &request, lowest));
	if (!ret)
		here.device = request.fd;
	return ret;
}

static void device_works(int ret __attribute__((unused)))
{
	must(kvm_vfio_add(here.device, attached));
}

static int add(void)
{
	return call(kvm_vfio_add(here.device, attached));
}

static int del(void)
{
	return call(kvm_vfio_del(here.device, attached));
}

static void is_added(int ret __attribute__((unused)))
{
	must(kvm_vfio_del(here.device, attached));
}

static void is_gone(int ret __attribute__((unused)))
{
	if (call(kvm_vfio_del(here.device, attached)) != -ENOENT)
		fail("the VM tracks it still");
}

static int get_state(void)
{
	struct kvm_vfio_vm_state state;

	return call(kvm_vfio_attr(here.device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_VM, &state));
}

static int get_file_state(void)
{
	struct kvm_vfio_file_state state = { .fd = attached };

	return call(kvm_vfio_attr(here.device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_FILE, &state));
}

static int get_fdinfo(void)
{
	return device_says(here.text, sizeof(here.text));
}

/* All of it or nothing */
static void fdinfo_is_whole(int ret __attribute__((unused)))
{
	struct host host;

	look_at(&host);
	if (strcmp(host.says, here.text))
		fail("fdinfo says '%s'", here.text);
}

static int get_sum(void)
{
	return get_text(DEBUGFS "kvm/noncoherent_dma", here.text, sizeof(here.text));
}

static void sum_is_right(int ret __attribute__((unused)))
{
	if (atoi(here.text) != attached_noncoherent)
		fail("%s VMs are non-coherent", here.text);
}

static int set_limit(void)
{
	return try_wbinvd_limit(here.vm, 0, 500, 0, 0, 0);
}

/* ---- groups and containers ----------------------------------------------- */

static int group_like(bool emulated, bool coherent)
{
	return must_open_group(groups[devices[device_like(emulated, coherent)].group].number);
}

static bool has_both(void)
{
	return device_like(false, true) != NONE && device_like(false, false) != NONE;
}

static bool has_emulated(void)
{
	return device_like(true, false) != NONE && device_like(false, false) != NONE;
}

/* The VM tracks what is open. */
static void track(void)
{
	int i;

	make_device();
	for (i = 0; i < 2; i++)
		if (here.file[i] >= 0)
			must(kvm_vfio_add(here.device, here.file[i]));
}

/* Coherent, if there is such a device */
static void open_a_group(void)
{
	here.container = must(open_container());
	here.file[0] = group_like(false, device_like(false, true) != NONE);
	track();
}

static void join_a_group(void)
{
	open_a_group();
	must(group_join(here.file[0], here.container));
}

static void map_some(void)
{
	must(container_map(here.container, memory, IOVA, RUNS * PAGE));
}

static void attach_a_group(void)
{
	join_a_group();
	must(container_set_iommu(here.container));
}

/* The first of two groups is attached, and the other one is not coherent. */
static void attach_first(bool emulated)
{
	here.container = must(open_container());
	here.file[0] = group_like(emulated, true);
	here.file[1] = group_like(false, false);
	track();
	must(group_join(here.file[0], here.container));
	must(container_set_iommu(here.container));
}

static void map_for_coherent(void)
{
	attach_first(false);
	map_some();
}

/* It is mapped into no domain, and not pinned. */
static void map_for_emulated(void)
{
	attach_first(true);
	map_some();
}

/* In both domains, if there can be two */
static void attach_groups(void)
{
	if (!has_both()) {
		attach_a_group();
		return;
	}
	attach_first(false);
	must(group_join(here.file[1], here.container));
}

static void map_for_groups(void)
{
	attach_groups();
	map_some();
}

static int open_one(void)
{
	return call(open_container());
}

static int join_first(void)
{
	return call(group_join(here.file[0], here.container));
}

static int join_second(void)
{
	return call(group_join(here.file[1], here.container));
}

static int leave(void)
{
	return call(group_leave(here.file[0]));
}

static int set_iommu(void)
{
	return call(container_set_iommu(here.container));
}

static int map(void)
{
	return call(container_map(here.container, memory, IOVA, RUNS * PAGE));
}

static int unmap(void)
{
	return call(container_unmap(here.container, IOVA, RUNS * PAGE));
}

/* So it is pinned, once. */
static void is_mapped(int ret __attribute__((unused)))
{
	if (locked_kb() != RUNS * 4)
		fail("%ld kB are locked", locked_kb());
	if (container_unmap(here.container, IOVA, RUNS * PAGE) != RUNS * (long)PAGE || locked_kb())
		fail("it cannot be unmapped, %ld kB are locked", locked_kb());
}

static void is_unmapped(int ret __attribute__((unused)))
{
	if (locked_kb())
		fail("%ld kB are still locked", locked_kb());
	map_some();
}

static int open_a_device(void)
{
	int i = device_like(false, device_like(false, true) != NONE);

	return call(ioctl(here.file[0], VFIO_GROUP_GET_DEVICE_FD, devices[i].name));
}

/* ---- iommufd ------------------------------------------------------------- */

static bool has_ioases(void)
{
	return has_iommufd && has_both();
}

/* What came with Linux 6.13, and the fixture's PASIDs, which are of Linux 7.3 */
static bool has_newer(void)
{
	return has_ioases() && has_pasids;
}

static int cdev_like(bool coherent)
{
	return must(open_cdev(must(cdev_number(device_like(false, coherent)))));
}

static void open_ioases(void)
{
	here.iommufd = open_iommufd();
	here.ioas[0] = new_ioas(here.iommufd);
	here.ioas[1] = new_ioas(here.iommufd);
}

static void open_both(void)
{
	here.file[0] = cdev_like(true);
	here.file[1] = cdev_like(false);
	track();
}

static void open_files(void)
{
	open_ioases();
	open_both();
}

static int bind_second(void)
{
	struct bind_iommufd request = { .argsz = sizeof(request), .iommufd = here.iommufd };
	int ret = call(ioctl(here.file[1], VFIO_DEVICE_BIND_IOMMUFD, &request));

	here.device_id = request.out_devid;
	return ret;
}

static int attach_to(int file, int ioas)
{
	uint32_t id = here.ioas[ioas];

	return call(device_file_attach(here.file[file], &id));
}

static int map_in(int ioas)
{
	return call(ioas_map(here.iommufd, here.ioas[ioas], memory, IOVA, RUNS * PAGE));
}

static void must_be_done(int ret, const char *what)
{
	if (ret)
		fail("%s: %s", what, name_of(ret));
}

static void bind_files(void)
{
	must(device_file_bind(here.file[0], here.iommufd));
	must_be_done(bind_second(), "binding");
}

static void bind_both(void)
{
	open_files();
	bind_files();
}

/* In both IOASes memory is mapped; a coherent device is attached to the first one. */
static void attach_coherent(void)
{
	bind_both();
	must_be_done(attach_to(0, 0), "attaching");
	must_be_done(map_in(0), "mapping");
	must_be_done(map_in(1), "mapping");
}

static void attach_both(void)
{
	bind_both();
	must_be_done(attach_to(0, 0), "attaching");
	must_be_done(attach_to(1, 0), "attaching");
}

static void map_for_both(void)
{
	attach_both();
	must_be_done(map_in(0), "mapping");
	must_be_done(map_in(1), "mapping");
}

/* A device is attached to the IOAS that memory is to be copied to. */
static void map_to_copy(void)
{
	bind_both();
	must_be_done(attach_to(1, 1), "attaching");
	must_be_done(map_in(0), "mapping");
}

static void attach_for_file(void)
{
	attach_both();
	here.memory = must(memfd_create("memory", MFD_CLOEXEC));
	must(ftruncate(here.memory, RUNS * PAGE));
	must(fallocate(here.memory, 0, 0, RUNS * PAGE));
}

/*
 * Page tables of one IOAS in which memory is mapped: one that enforces coherency, and one that
 * does not. They are made for devices that are not open yet.
 */
static void make_pasid_tables(void)
{
	int i;

	open_ioases();
	must_be_done(map_in(0), "mapping");
	for (i = 0; i < 2; i++)
		here.table[i] = new_pasid_table(here.iommufd, devices[device_like(false, !i)].id,
						here.ioas[0]);
	open_both();
	bind_files();
}

#define ANY_PASID	PASIDS

static int attach_by_pasid(int file, int table)
{
	return call(device_file_attach_pasid(here.file[file], ANY_PASID, here.table[table]));
}

static void attach_coherent_by_pasid(void)
{
	make_pasid_tables();
	must_be_done(attach_by_pasid(0, 0), "attaching by a PASID");
}

static void attach_second_by_pasid(void)
{
	make_pasid_tables();
	must_be_done(attach_by_pasid(1, 1), "attaching by a PASID");
}

static void group_and_ioas(void)
{
	open_ioases();
	here.file[0] = group_like(false, false);
	track();
	must_be_done(map_in(0), "mapping");
}

/* Whoever knows of containers alone gets the IOAS in which memory is mapped. */
static void group_joins_ioas(void)
{
	struct vfio_ioas request = { .size = sizeof(request), .op = 1 };

	group_and_ioas();
	request.ioas_id = here.ioas[0];
	must(ioctl(here.iommufd, IOMMU_VFIO_IOAS, &request));
	must(group_join(here.file[0], here.iommufd));
}

static int make_an_ioas(void)
{
	struct ioas_alloc request = { .size = sizeof(request) };

	return call(ioctl(here.iommufd, IOMMU_IOAS_ALLOC, &request));
}

static int make_a_table(void)
{
	struct hwpt_alloc request = {
		.size = sizeof(request), .dev_id = here.device_id, .pt_id = here.ioas[0],
	};

	return call(ioctl(here.iommufd, IOMMU_HWPT_ALLOC, &request));
}

static int attach_second(void)
{
	return attach_to(1, 0);
}

static int replace_second(void)
{
	return attach_to(1, 1);
}

static int detach_second(void)
{
	return call(device_file_detach(here.file[1]));
}

static int map_ioas(void)
{
	return map_in(0);
}

static int unmap_ioas(void)
{
	return call(ioas_unmap(here.iommufd, here.ioas[0], IOVA, RUNS * PAGE));
}

static int copy_ioas(void)
{
	return call(ioas_copy(here.iommufd, here.ioas[1], here.ioas[0], IOVA, RUNS * PAGE));
}

/* It is of its own: to unmap what it was copied from leaves it. */
static void is_copied(int ret __attribute__((unused)))
{
	must_be_done(unmap_ioas(), "unmapping what was copied");
	must(ioas_unmap(here.iommufd, here.ioas[1], IOVA, RUNS * PAGE));
}

static int map_file(void)
{
	return call(ioas_map_file(here.iommufd, here.ioas[0], here.memory, IOVA, RUNS * PAGE));
}

static void ioas_is_mapped(int ret __attribute__((unused)))
{
	must_be_done(unmap_ioas(), "unmapping");
}

static int attach_second_to_pasid(void)
{
	return attach_by_pasid(1, 1);
}

static int replace_by_pasid(void)
{
	return attach_by_pasid(0, 1);
}

static int detach_pasid(void)
{
	return call(device_file_detach_pasid(here.file[1], ANY_PASID));
}

/* As before; both devices are attached to one page table then. */
static void pasid_is_attached(int ret __attribute__((unused)))
{
	must_be_done(attach_by_pasid(1, 1), "attaching by a PASID once more");
}

static int join_iommufd(void)
{
	return call(group_join(here.file[0], here.iommufd));
}

static int open_by_iommufd(void)
{
	return call(ioctl(here.file[0], VFIO_GROUP_GET_DEVICE_FD,
			  devices[device_like(false, false)].name));
}

/* ---- each call in each place --------------------------------------------- */

/* Where a PCI device is enabled, ACPI may use what it has freed, having no memory. */
static bool has_no_acpi(void)
{
	return devices[0].id != NONE;
}

/* As in step_leave() */
static bool can_leave(void)
{
	return !old_vfio || has_no_acpi();
}

/*
 * Where the answer cannot be copied out, and EFAULT says so, what was asked for is done:
 * the kernel's own calls are so.
 */
#define DONE_BUT_EFAULT	1024
/* It returns a descriptor that nobody else closes. */
#define OPENS		2048
/* It need not have any: it allocates nothing, and what it reads cannot be made to fail. */
#define NO_PLACES	4096

static const struct places {
	const char *name;
	void (*prepare)(void);
	int (*make)(void);
	void (*works)(int ret);		/* what got through */
	int how;
	bool (*possible)(void);
} vm_calls[] = {
	{ "KVM_CREATE_VM", ask_kvm, make_a_vm, vm_works, OPENS, NULL },
	{ "KVM_CREATE_VCPU", make_vm, make_a_vcpu, here_works, 0, NULL },
	{ "KVM_CREATE_DEVICE", make_held_vm, make_a_device, device_works, BY_EFAULT, NULL },
	{ "ADD", make_device, add, is_added, BY_EFAULT | BY_NO_FILE | BY_NO_VFIO, NULL },
	{ "ADD of another VM's file", make_shared, add, is_added,
	  BY_EFAULT | BY_NO_FILE | BY_NO_VFIO, NULL },
	{ "DEL", make_tracked, del, is_gone, BY_EFAULT | BY_NO_FILE, NULL },
	{ "the VM's state", make_tracked, get_state, NULL, BY_EFAULT, NULL },
	{ "a file's state", make_tracked, get_file_state, NULL, BY_EFAULT | BY_NO_FILE, NULL },
	{ "fdinfo", make_tracked, get_fdinfo, fdinfo_is_whole, BY_EFAULT | BY_ANY_OTHER, NULL },
	{ "a sum in debugfs", make_tracked, get_sum, sum_is_right, BY_EFAULT | BY_ANY_OTHER, NULL },
	{ "KVM_CAP_X86_WBINVD_LIMIT", make_vm, set_limit, here_works, BY_EFAULT, NULL },
}, vfio_calls[] = {
	{ "opening a container", NULL, open_one, NULL, OPENS | BY_EFAULT | BY_ANY_OTHER,
	  NULL },
	{ "a group joins", open_a_group, join_first, NULL, NO_PLACES | BY_EFAULT | BY_ANY_OTHER,
	  NULL },
	{ "VFIO_SET_IOMMU", join_a_group, set_iommu, NULL, BY_ANY_OTHER, NULL },
	{ "a group joins where memory is mapped", map_for_coherent, join_second, is_mapped,
	  BY_EFAULT | BY_ANY_OTHER, has_both },
	{ "a group joins where memory is not pinned", map_for_emulated, join_second, is_mapped,
	  BY_EFAULT | BY_ANY_OTHER, has_emulated },
	{ "mapping", attach_groups, map, is_mapped, BY_EFAULT | BY_ANY_OTHER, NULL },
	{ "unmapping", map_for_groups, unmap, is_unmapped,
	  DONE_BUT_EFAULT | BY_EFAULT | BY_ANY_OTHER, NULL },
	{ "opening a device", attach_a_group, open_a_device, NULL,
	  OPENS | BY_EFAULT | BY_ANY_OTHER, has_no_acpi },
	{ "a group leaves", attach_a_group, leave, NULL, BY_ANY_OTHER, can_leave },

	{ "IOMMU_IOAS_ALLOC", open_ioases, make_an_ioas, NULL, BY_EFAULT | BY_ANY_OTHER,
	  has_ioases },
	{ "binding", open_files, bind_second, NULL, BY_EFAULT | BY_ANY_OTHER, has_ioases },
	{ "IOMMU_HWPT_ALLOC", attach_coherent, make_a_table, NULL, BY_EFAULT | BY_ANY_OTHER,
	  has_ioases },
	{ "attaching", attach_coherent, attach_second, NULL,
	  DONE_BUT_EFAULT | BY_EFAULT | BY_ANY_OTHER, has_ioases },
	{ "attaching to another", map_for_both, replace_second, NULL,
	  DONE_BUT_EFAULT | BY_EFAULT | BY_ANY_OTHER, has_ioases },
	{ "detaching", map_for_both, detach_second, NULL, BY_EFAULT | BY_ANY_OTHER, has_ioases },
	{ "attaching by a PASID", make_pasid_tables, attach_second_to_pasid, pasid_is_attached,
	  DONE_BUT_EFAULT | BY_EFAULT | BY_ANY_OTHER, has_newer },
	{ "attaching by a PASID to another", attach_coherent_by_pasid, replace_by_pasid,
	  pasid_is_attached, DONE_BUT_EFAULT | BY_EFAULT | BY_ANY_OTHER, has_newer },
	{ "detaching a PASID", attach_second_by_pasid, detach_pasid, pasid_is_attached,
	  BY_EFAULT | BY_ANY_OTHER, has_newer },
	{ "IOMMU_IOAS_MAP", attach_both, map_ioas, NULL,
	  DONE_BUT_EFAULT | BY_EFAULT | BY_ANY_OTHER, has_ioases },
	{ "IOMMU_IOAS_COPY", map_to_copy, copy_ioas, is_copied,
	  DONE_BUT_EFAULT | BY_EFAULT | BY_ANY_OTHER, has_ioases },
	{ "IOMMU_IOAS_MAP_FILE", attach_for_file, map_file, ioas_is_mapped,
	  DONE_BUT_EFAULT | BY_EFAULT | BY_ANY_OTHER, has_newer },
	{ "IOMMU_IOAS_UNMAP", map_for_both, unmap_ioas, NULL,
	  DONE_BUT_EFAULT | BY_EFAULT | BY_ANY_OTHER, has_ioases },
	{ "a group joins an iommufd", group_and_ioas, join_iommufd, NULL, BY_EFAULT | BY_ANY_OTHER,
	  has_ioases },
	{ "opening a device by an iommufd", group_joins_ioas, open_by_iommufd, NULL,
	  OPENS | BY_EFAULT | BY_ANY_OTHER, has_ioases },
};

static void nothing_is_open(void)
{
	memset(&here, 0, sizeof(here));
	here.kvm = here.vm = here.vcpu = here.device = here.container = here.iommufd = -1;
	here.file[0] = here.file[1] = here.memory = -1;
}

static void close_all(void)
{
	close_fd(&here.vcpu);
	close_fd(&here.file[0]);
	close_fd(&here.file[1]);
	close_fd(&here.container);
	close_fd(&here.iommufd);
	close_fd(&here.memory);
	close_fd(&here.device);
	close_fd(&here.vm);
	close_fd(&here.kvm);
	nothing_is_open();
}

/* In that place, or not at all. Did it come there? */
static bool call_with_fault(const struct places *call, int nth, int *failures)
{
	struct host before;
	bool failed;
	int ret;

	if (call->prepare)
		call->prepare();
	look_at(&before);
	fail_at(nth);
	ret = call->make();
	failed = has_failed();
	fail_at(0);
	if (ret < 0 && !failed)
		fail("%s", name_of(ret));
	if (ret < 0) {
		++*failures;
		if (!failed_by(ret, call->how))
			fail("made to fail it returns %s", name_of(ret));
		fault_kinds |= failed_by(ret, call->how);
		/* The first place is where what is asked for is copied in. */
		if (ret != -EFAULT || !(call->how & DONE_BUT_EFAULT) || nth == 1)
			must_be(&before, name_of(ret));
	} else if (call->works) {
		call->works(ret);
	}
	if (ret >= 0 && call->how & OPENS)
		close(ret);
	close_all();
	return failed;
}

static int count_places(const struct places *call)
{
	int ret, left;

	if (call->prepare)
		call->prepare();
	fail_at(MOST_PLACES);
	ret = call->make();
	left = places_left();
	fail_at(0);
	if (ret < 0)
		fail("%s, with nothing that fails: %s", call->name, name_of(ret));
	if (call->how & OPENS)
		close(ret);
	close_all();
	return MOST_PLACES - left;
}

/*
 * KVM_CREATE_VM makes a hundred files in debugfs, each in the same few places, of which it goes
 * without most. Ours are the last ones. Between them some are enough, each time others of those
 * few.
 */
static int next_of(int place, int places)
{
	return place < 60 || place > places - 60 ? place + 1 : place + 7;
}

static void in_each_place(const struct places *call)
{
	int place, places, tries = 0, failures = 0;
	bool failed = true;
	struct host before;
	time_t begun = time(NULL);

	nothing_is_open();
	look_at(&before);
	places = count_places(call);
	for (place = 1; failed; place = next_of(place, places)) {
		if (place >= MOST_PLACES)
			fail("it does not end");
		snprintf(about, sizeof(about), "%s, place %d: ", call->name, place);
		failed = call_with_fault(call, place, &failures);
		must_be(&before, "when all is closed");
		tries += failed;
	}
	about[0] = '\0';
	if (!tries && !(call->how & NO_PLACES))
		fail("%s was not made to fail at all", call->name);
	printf("# %s fails in %d of %d places, %ld s\n", call->name, failures, tries,
	       (long)(time(NULL) - begun));
}

static void attach_for_vms(void)
{
	int container = must(open_container()), like = device_like(false, false);

	attached_noncoherent = like != NONE;
	attached = group_like(false, !attached_noncoherent);
	must(group_join(attached, container));
	must(container_set_iommu(container));
}

/* All are there, so that pinning them has no places of page faults'. */
static void make_runs(void)
{
	memory = same_page(RUNS);
	must(madvise(memory, RUNS * PAGE, MADV_POPULATE_WRITE));
}

#define WENT_WRONG	128

/* In a process of its own, whose end closes all. Its status: how calls failed, or that. */
static void __attribute__((noreturn)) be_caller(const struct places *call, bool of_vm)
{
	if (setjmp(test_end)) {
		printf("# %s\n", why_ended());
		fflush(stdout);
		_exit(WENT_WRONG);
	}
	make_runs();
	if (of_vm)
		attach_for_vms();
	fault_kinds = 0;
	faults_begin();
	in_each_place(call);
	fflush(stdout);
	_exit(fault_kinds);
}

static bool all_work(const struct places *calls, size_t count, bool of_vm, int *kinds)
{
	bool good = true;
	int status;
	pid_t pid;
	size_t i;

	for (i = 0; i < count; i++) {
		if (calls[i].possible && !calls[i].possible())
			continue;
		fflush(stdout);
		pid = must(fork());
		if (!pid)
			be_caller(&calls[i], of_vm);
		must(waitpid(pid, &status, 0));
		if (!WIFEXITED(status) || WEXITSTATUS(status) == WENT_WRONG)
			good = false;
		else
			*kinds |= WEXITSTATUS(status);
	}
	return good;
}

void test_places(void)
{
	const char *why = no_faults();
	int kinds = 0;
	bool good;

	if (why)
		skip("%s", why);
	if (has_both() && options.memtypes)
		skip("the same without memory types");
	restore_devices();
	good = all_work(vfio_calls, ARRAY_SIZE(vfio_calls), false, &kinds);
	/* Which host this is is the same to KVM, and its debugfs has hundreds of places. */
	if (has_both()) {
		must_put(EXPEDITED, "1");	/* each VM that ends waits for RCU, too */
		good &= all_work(vm_calls, ARRAY_SIZE(vm_calls), true, &kinds);
		must_put(EXPEDITED, "0");
		if (good)
			must_be_all_kinds(kinds);
	}
	if (!good)
		fail("a call that failed has changed something");
}
