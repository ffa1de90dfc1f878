// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio.noncoherent=refuse: what it refuses, and that this changes nothing. See dma_test.c.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "dma.h"
#include "vm.h"

#define AT		0x100000ull

void may(const char *what)
{
	must_put(PERMITTED, "%s\n", what);
}

static void must_say(const char *what)
{
	char text[40];

	if (get_text(PERMITTED, text, sizeof(text)))
		fail("%s cannot be read", PERMITTED);
	text[strcspn(text, "\n")] = '\0';
	if (strcmp(text, what))
		fail("%s says '%s', not '%s'", PERMITTED, text, what);
}

void must_be_refused(int ret, const char *what)
{
	if (!ret)
		fail("%s is not refused", what);
	if (errno != EPERM)
		fail("%s: %s", what, strerror(errno));
}

static void must_be_in_a_container(int group, bool in)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };

	must(ioctl(group, VFIO_GROUP_GET_STATUS, &status));
	if (!!(status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET) != in)
		fail("the group is %sin a container", in ? "not " : "");
}

static void must_be_attached_to(int device, const char *what)
{
	char path[96], text[40];

	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/domain", device);
	if (get_text(path, text, sizeof(text)))
		fail("%s cannot be read", path);
	text[strcspn(text, "\n")] = '\0';
	if (strcmp(text, what))
		fail("device %d is attached to '%s', not '%s'", device, text, what);
}

/* ---- scenarios ----------------------------------------------------------- */

static void parameter(void)
{
	must_say("allow");
	may("refuse");
	must_say("refuse");
	if (put(PERMITTED, "refused") != -EINVAL || put(PERMITTED, "1") != -EINVAL)
		fail("it may be written what means nothing");
	must_say("refuse");
	may("allow");
	must_say("allow");
}

/* A group whose container has no IOMMU yet */
static void new_container(void)
{
	int group = group_of(NONCOHERENT), container = must(open_container()), other;
	char *memory = same_page(2);

	must(group_join(group, container));
	may("refuse");
	phase("a container's only group is refused, and nothing is flushed for it");
	must_be_refused(container_set_iommu(container), "VFIO_SET_IOMMU");
	expect_clflushes(0, 0);
	phase_end();
	must_be_attached_to(NONCOHERENT, "blocked");
	must_be_in_a_container(group, true);
	if (!container_map(container, memory, AT, PAGE))
		fail("memory can be mapped without an IOMMU");

	may("allow");
	phase("the same container, allowed");
	must(container_set_iommu(container));
	expect_clflushes(TEST_PAGES * 2 * LINES, TEST_PAGES * 2 * LINES);
	phase_end();
	must_be_attached_to(NONCOHERENT, "paging");
	map_phase(container, memory, AT, PAGE, 1, LINES);

	may("refuse");
	map_phase(container, memory, 2 * AT, 2 * PAGE, 2, 2 * LINES);
	unmap_phase(container, AT, PAGE, 1, LINES);
	must_be_attached_to(NONCOHERENT, "paging");
	/* One that shares the other's domain is refused as well. */
	other = group_of(NONCOHERENT_2);
	phase("a second group is refused");
	must_be_refused(group_join(other, container), "joining");
	expect_clflushes(0, 0);
	phase_end();
	must_be_in_a_container(other, false);
	must_be_attached_to(NONCOHERENT_2, "identity");
	unmap_phase(container, 2 * AT, 2 * PAGE, 2, 2 * LINES);
}

static void used_container(void)
{
	int group = group_of(NONCOHERENT), good = group_of(COHERENT), container, tries;
	char *memory = same_page(4);

	may("refuse");
	container = attach_phase(good, true);
	map_phase(container, memory, AT, 4 * PAGE, 4, 0);
	phase("a non-coherent group is refused by a container with mappings");
	for (tries = 0; tries < 10; tries++)
		must_be_refused(group_join(group, container), "joining");
	expect_clflushes(0, 0);
	phase_end();
	must_be_in_a_container(group, false);
	must_be_in_a_container(good, true);
	must_be_attached_to(NONCOHERENT, "identity");
	if (ioctl(container, VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU) != 1)
		fail("the container is not coherent any more");
	map_phase(container, memory, 2 * AT, 4 * PAGE, 4, 0);
	unmap_phase(container, AT, 4 * PAGE, 4, 0);
	unmap_phase(container, 2 * AT, 4 * PAGE, 4, 0);
	/* It can go elsewhere. */
	may("allow");
	attach_phase(group, false);
	must_be_attached_to(NONCOHERENT, "paging");
}

/* Of two groups that wait for an IOMMU, one is refused: the other is not attached, either. */
static void one_of_two(void)
{
	int group = group_of(NONCOHERENT), good = group_of(COHERENT);
	int container = must(open_container());

	must(group_join(good, container));
	must(group_join(group, container));
	may("refuse");
	must_be_refused(container_set_iommu(container), "VFIO_SET_IOMMU");
	must_be_attached_to(NONCOHERENT, "blocked");
	must_be_attached_to(COHERENT, "blocked");
	must(group_leave(group));
	must(container_set_iommu(container));
	must_be_attached_to(COHERENT, "paging");
}

static void emulated_are_not(void)
{
	may("refuse");
	group_attach(group_of(new_device("emulated")));
}

static void without_iommu(void)
{
	int container = must(open_container()), group;
	char path[64];

	must_put(NOIOMMU, "1");
	snprintf(path, sizeof(path), "/dev/vfio/noiommu-%d",
		 testdev_group_number(new_device("noiommu")));
	group = must(open(path, O_RDWR | O_CLOEXEC));
	must(group_join(group, container));
	may("refuse");
	must_be_refused(ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU), "VFIO_SET_IOMMU");
	may("allow");
	must(ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU));
}

/* What a VM that tracks the group was told, ever */
static long changes(void)
{
	return get_number(DEBUGFS "kvm/noncoherent_dma_changes");
}

static void vm_is_not_told(void)
{
	int device = must(kvm_vfio_create(create_vm())), group = group_of(NONCOHERENT);
	int good = group_of(COHERENT), container = group_attach(good), tries;
	struct kvm_vfio_vm_state state;
	long before;

	must(kvm_vfio_add(device, group));
	must(kvm_vfio_add(device, good));
	before = must(changes());
	may("refuse");
	for (tries = 0; tries < 10; tries++)
		must_be_refused(group_join(group, container), "joining");
	must(kvm_vfio_attr(device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
			   KVM_DEV_VFIO_STATE_VM, &state));
	if (state.noncoherent || state.noncoherent_files || state.files != 2)
		fail("the VM has %u files, %u not coherent", state.files,
		     state.noncoherent_files);
	if (changes() != before)
		fail("the VM changed %ld times", changes() - before);
	may("allow");
	must(group_join(group, container));
	if (changes() != before + 1)
		fail("what is allowed is no change");
}

int open_log(void)
{
	int log = must(open("/dev/kmsg", O_RDONLY | O_NONBLOCK));

	must(lseek(log, 0, SEEK_END));
	return log;
}

int refusals_logged(int log, int device)
{
	char name[32], line[4096];
	int count = 0, got;

	snprintf(name, sizeof(name), "vfio_testdev.%d: ", device);
	while ((got = read(log, line, sizeof(line) - 1)) > 0 || (got < 0 && errno == EPIPE)) {
		line[got < 0 ? 0 : got] = '\0';
		count += strstr(line, name) && strstr(line, "vfio.noncoherent=refuse");
	}
	return count;
}

/* The scenarios before may have used up what there may be in five seconds. */
static int refuse_until_logged(int container, int log, int device)
{
	int tries, lines = 0;

	for (tries = 0; !lines && tries < 30; tries++) {
		sleep_ms(500);
		must_be_refused(container_set_iommu(container), "VFIO_SET_IOMMU");
		lines = refusals_logged(log, device);
	}
	return lines;
}

#define TRIES	200

static void messages(void)
{
	int log = open_log(), tries, lines;
	int group = group_of(NONCOHERENT), container = must(open_container());

	must(group_join(group, container));
	may("refuse");
	lines = refuse_until_logged(container, log, NONCOHERENT);
	if (lines != 1)
		fail("%d lines name the device, not one", lines);
	for (tries = 0; tries < TRIES; tries++)
		must_be_refused(container_set_iommu(container), "VFIO_SET_IOMMU");
	lines = refusals_logged(log, NONCOHERENT);
	if (lines > TRIES / 2)
		fail("%d refusals have %d lines", TRIES, lines);
}

/* The first of its devices has no driver: what is meant is the second one. */
static void message_of_a_group(void)
{
	int first = new_device("noncoherent"), container = must(open_container());
	int log_1 = open_log(), log_2 = open_log(), log_3 = open_log(), lines, others;

	must_put(TESTDEV "create", "2 noncoherent %d", first);
	must(unbind_testdev(first));
	must(group_join(group_of(first + 1), container));
	may("refuse");
	lines = refuse_until_logged(container, log_2, first + 1);
	if (lines != 1)
		fail("%d lines name the first device that has a driver, not one", lines);
	others = refusals_logged(log_1, first) + refusals_logged(log_3, first + 2);
	if (others)
		fail("%d lines name another one of the group", others);
}

void allowed_again(void)
{
	may("allow");
}

const struct scenario refuse_scenarios[] = {
	{ "refuse: the parameter", parameter },
	{ "refuse: an only group", new_container },
	{ "allow", allowed_again },
	{ "refuse: a group joins a coherent one", used_container },
	{ "allow after a coherent one", allowed_again },
	{ "refuse: one of two groups", one_of_two },
	{ "refuse: not emulated devices", emulated_are_not },
	{ "allow after emulated devices", allowed_again },
	{ "refuse: a VM is not told", vm_is_not_told },
	{ "allow after a VM", allowed_again },
	{ "refuse: one line names the device", messages },
	{ "allow after messages", allowed_again },
	{ "refuse: one line names the device of a group", message_of_a_group },
	{ "allow after a group's message", allowed_again },
};

const int refuse_count = ARRAY_SIZE(refuse_scenarios);

const struct scenario noiommu_scenarios[] = {
	{ "refuse: without an IOMMU", without_iommu },
	{ "allow after no-IOMMU", allowed_again },
};

const int noiommu_count = ARRAY_SIZE(noiommu_scenarios);
