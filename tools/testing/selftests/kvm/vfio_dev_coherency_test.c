// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO pseudo device: is the VM non-coherent?
 *
 *   coherency, walk
 *	exactly while one of its files is attached to an IOMMU domain that does
 *	not enforce coherency; the change is made, and the caches are written
 *	back, before the system call that caused it returns
 *   wbinvd
 *	what that means to the guest
 *   owed
 *	which CPUs' caches are written back when a VM becomes non-coherent
 *
 * See vfio_dev_test.h for what these tests need, and how they know what they say.
 */
#define _GNU_SOURCE

#include "vfio_dev_model.h"

/* --- Groups, in two containers --- */

static void model_leave(struct world *w, struct file *f)
{
	struct file *other = &w->file[f == &w->file[0]];
	int container = f->container;

	f->container = -1;
	f->attached = false;
	/* The last group takes the IOMMU with it. */
	if (other->container != container)
		w->iommu[container] = false;
}

static bool group_is_open(const struct file *f)
{
	return f->fd >= 0 || f->device >= 0 || f->owners;
}

static void group_put(struct world *w, struct file *f)
{
	if (!group_is_open(f) && f->container >= 0)
		model_leave(w, f);
}

static int run_join(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (f->fd < 0) {
		*expected = -EBADF;
	} else if (f->container >= 0) {
		*expected = -EINVAL;
	} else {
		f->container = op->place;
		f->attached = w->iommu[op->place];
	}
	return group_join(f->fd, w->container[op->place]);
}

static int run_leave(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (f->fd < 0)
		*expected = -EBADF;
	else if (f->container < 0)
		*expected = -EINVAL;
	else if (f->device >= 0)
		*expected = -EBUSY;
	else
		model_leave(w, f);
	return group_leave(f->fd);
}

static int run_iommu(struct world *w, const struct op *op, int *expected)
{
	bool can = false;
	int i;

	for (i = 0; i < 2 && !w->iommu[op->place]; i++) {
		if (w->file[i].container != op->place)
			continue;
		w->file[i].attached = true;
		can = true;
	}
	if (can)
		w->iommu[op->place] = true;
	else
		*expected = -EINVAL;
	return set_iommu(w->container[op->place]);
}

static int run_open(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];
	int fd;

	*expected = group_is_open(f) ? -EBUSY : 0;
	fd = group_open(op->file);
	if (fd < 0)
		return fd;
	f->fd = fd;
	return 0;
}

static int run_getdev(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];
	int fd;

	*expected = f->fd < 0 ? -EBADF : f->attached ? 0 : -EINVAL;
	fd = group_get_device(f->fd, op->file);
	if (fd < 0)
		return fd;
	f->device = fd;
	return 0;
}

static int run_putdev(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	close_fd(&f->device);
	group_put(w, f);
	return 0;
}

static const struct op_kind kinds[] = {
	{ "add", run_add, .of_vm = true },
	{ "del", run_del, .of_vm = true },
	{ "reset", run_reset, .of_vm = true },
	{ "join", run_join },
	{ "leave", run_leave },
	{ "iommu", run_iommu, .of_place = true },
	{ "drop", run_close },
	{ "open", run_open },
	{ "getdev", run_getdev },
	{ "putdev", run_putdev },
	{}
};

static int world_open(struct world *w, int nr_groups)
{
	int i, ret = world_init(w, kinds, group_put);

	for (i = 0; i < 2 && !ret; i++) {
		w->container[i] = container_open();
		if (w->container[i] < 0)
			ret = w->container[i];
	}
	for (i = 0; i < nr_groups && !ret; i++) {
		w->file[i].fd = need_group(i);
		if (w->file[i].fd < 0)
			ret = w->file[i].fd;
	}
	return ret;
}

/* --- Sequences that the device must follow --- */

FIXTURE(coherency) {
	struct world world;
};

FIXTURE_VARIANT(coherency) {
	const char *name;
	const char *steps;
};

static const FIXTURE_VARIANT(coherency) coherency_variants[] = {
	/* One group: every order of ADD and DEL with SET_CONTAINER, SET_IOMMU, UNSET. */
	{ "add_del_join_iommu_leave", "add1 del1 join1 iommu1 leave1" },
	{ "add_join_del_iommu_leave", "add1 join1 del1 iommu1 leave1" },
	{ "add_join_iommu_del_leave", "add1 join1 iommu1 del1 leave1" },
	{ "add_join_iommu_leave_del", "add1 join1 iommu1 leave1 del1" },
	{ "join_add_del_iommu_leave", "join1 add1 del1 iommu1 leave1" },
	{ "join_add_iommu_del_leave", "join1 add1 iommu1 del1 leave1" },
	{ "join_add_iommu_leave_del", "join1 add1 iommu1 leave1 del1" },
	{ "join_iommu_add_del_leave", "join1 iommu1 add1 del1 leave1" },
	{ "join_iommu_add_leave_del", "join1 iommu1 add1 leave1 del1" },
	{ "join_iommu_leave_add_del", "join1 iommu1 leave1 add1 del1" },
	/* No SET_IOMMU: no DMA. */
	{ "add_join_leave_del", "add1 join1 leave1 del1" },
	{ "join_add_leave_del", "join1 add1 leave1 del1" },
	{ "join_add_del_leave", "join1 add1 del1 leave1" },
	{ "add_only", "add1 del1" },
	/* And again. */
	{ "attached_twice",
	  "add1 join1 iommu1 leave1 join1.2 iommu2 leave1 join1.2 iommu2 del1 leave1" },
	{ "added_twice", "join1 iommu1 add1 del1 add1 del1 leave1" },
	{ "device_closed_while_attached", "join1 iommu1 add1 reset leave1" },
	{ "device_closed_then_attached", "add1 reset join1 iommu1 add1 reset" },
	{ "untracked", "join1 iommu1 del1 leave1" },
	{ "failed_calls",
	  "add1 add1 join1 join1.2 iommu2 iommu1 iommu1 Badd1 Bdel1 leave1 leave1 del1 del1" },
	/* The group's descriptor closed: a tracked file is kept, and stays attached. */
	{ "group_closed_untracked", "join1 iommu1 drop1 open1 add1 del1" },
	{ "group_closed_while_tracked", "add1 join1 iommu1 drop1 open1 reset open1 add1" },
	{ "group_closed_before_attached",
	  "add1 drop1 open1 reset open1 join1 add1 iommu1 drop1 reset" },
	/* Two groups in one container. */
	{ "two_join_then_iommu", "add1 add2 join1 join2 iommu1 leave1 leave2 del1 del2" },
	{ "two_iommu_then_join", "add1 add2 join1 iommu1 join2 leave1 leave2 del1 del2" },
	{ "two_attached_then_added", "join1 join2 iommu1 add1 add2 del1 del2 leave1 leave2" },
	{ "two_first_untracked", "add2 join1 iommu1 join2 leave1 leave2" },
	{ "two_second_untracked", "add1 join1 iommu1 join2 leave1 add1 add2 leave2" },
	{ "two_del_one_of_two", "join1 iommu1 join2 add1 add2 del2 add2 del1 leave2 del2" },
	{ "two_closed_at_once", "join1 join2 iommu1 add1 add2 reset leave1 leave2" },
	{ "two_left_one_by_one",
	  "add1 add2 join1 join2 iommu1 leave2 join2 leave1 join1 leave2 leave1" },
	{ "two_groups_closed", "add1 add2 join1 join2 iommu1 drop1 drop2 reset open1 open2" },
	/* Two groups in two containers. */
	{ "apart_added_first", "add1 add2 join1.1 join2.2 iommu1 iommu2 leave1 leave2 del1 del2" },
	{ "apart_added_last", "join1.1 join2.2 iommu2 iommu1 add1 add2 del1 del2" },
	{ "apart_only_one_iommu", "join1.1 join2.2 add1 add2 iommu2 leave1 del2 leave2" },
	{ "apart_moved",
	  "add1 join1 iommu1 add2 join2.2 iommu2 leave2 join2 leave1 join1 leave1 leave2" },
	{ "apart_del_order", "join1.1 iommu1 join2.2 iommu2 add1 add2 del2 del1 add2 add1 reset" },
	/* Two VMs. */
	{ "vms_one_each", "add1 Badd2 join1.1 iommu1 join2.2 iommu2 leave1 leave2 del1 Bdel2" },
	{ "vms_one_container", "add1 Badd2 join1 join2 iommu1 leave1 join1 leave2 leave1" },
	{ "vms_added_attached", "join1 join2 iommu1 add1 Badd2 del1 Bdel2" },
	{ "vms_handed_over", "join1 iommu1 add1 del1 Badd1 Bdel1 add1 reset Badd1 Breset" },
	{ "vms_exclusive", "add1 Badd1 join1 iommu1 Badd1 Bdel1 del1 Badd1 add1 leave1" },
	{ "vms_only_one_tracks", "Badd2 join1 iommu1 join2 leave1 leave2" },
	{ "vms_device_closed", "add1 Badd2 join1 join2 iommu1 reset Breset" },
	/* With the device open, the group cannot leave; its file lives on in the device's. */
	{ "device_open_then_added", "join1 iommu1 getdev1 add1 leave1 del1 putdev1 leave1" },
	{ "device_open_after_added", "add1 getdev1 join1 iommu1 getdev1 leave1 putdev1 leave1" },
	{ "device_keeps_the_group",
	  "join1 iommu1 getdev1 add1 drop1 open1 reset open1 putdev1 open1" },
	{ "device_and_vm_keep_the_group",
	  "join1 iommu1 add1 getdev1 drop1 putdev1 open1 reset open1" },
};

FIXTURE_VARIANTS(coherency);

FIXTURE_SETUP(coherency)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(strpbrk(variant->steps, "2") ? 2 : 1));
	if (strstr(variant->steps, "getdev"))
		REQUIRE(no_pci(0));
	ASSERT_EQ(0, world_open(&self->world, host.nr_groups < 2 ? 1 : 2));
}

FIXTURE_TEARDOWN(coherency)
{
	world_close(&self->world);
}

TEST_F(coherency, flag_follows)
{
	FOLLOW(&self->world, variant->steps, false);
}

/* Exactly when a VM becomes non-coherent are caches written back for it. */
TEST_F(coherency, flush_is_paid)
{
	FOLLOW(&self->world, variant->steps, true);
}

/* All ways in which the device says it. */
TEST_F(coherency, state_agrees)
{
	const char *rest = variant->steps;
	int i, expected;
	char word[16];
	struct op op;

	REQUIRE(no_state(&self->world.vm[0]));
	while (next_word(&rest, word, sizeof(word))) {
		ASSERT_EQ(0, parse_op(&self->world, word, &op));
		op.kind->run(&self->world, &op, &expected);
		for (i = 0; i < 2; i++)
			EXPECT_TRUE(state_agrees(&self->world, i))
				TH_LOG("VM %c after %s in \"%s\"", 'A' + i, word, variant->steps);
	}
}

/* --- A random walk through all of that --- */

FIXTURE(walk) {
	struct world world;
};

FIXTURE_SETUP(walk)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(2));
	ASSERT_EQ(0, world_open(&self->world, 2));
}

FIXTURE_TEARDOWN(walk)
{
	world_close(&self->world);
}

/* What changes something, more often than what only could. */
static const char * const often[] = {
	"add", "add", "add", "del", "del", "join", "join", "join", "leave", "leave",
	"iommu", "iommu", "iommu", "open", "open", "drop", "reset",
};

#define WALK_STEPS	500

TEST_F_TIMEOUT(walk, result_and_flag, 120)
{
	WALK(&self->world, often, WALK_STEPS, 1, WALK_RESULTS);
}

TEST_F_TIMEOUT(walk, flush, 120)
{
	WALK(&self->world, often, WALK_STEPS, 2, WALK_FLUSHES);
}

TEST_F_TIMEOUT(walk, state, 120)
{
	REQUIRE(no_state(&self->world.vm[0]));
	WALK(&self->world, often, 2 * WALK_STEPS, 3, WALK_STATES);
}

/* --- WBINVD of the guest --- */

FIXTURE(wbinvd) {
	struct vm vm;
	int fd;
};

FIXTURE_SETUP(wbinvd)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(1));
	ASSERT_EQ(0, vm_open_guest(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(wbinvd)
{
	vm_close(&self->vm);
}

TEST_F(wbinvd, without_a_device)
{
	long before = hits();
	int i;

	close_fd(&self->vm.dev);
	for (i = 0; i < 20; i++)
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(before, hits());
}

TEST_F(wbinvd, while_coherent)
{
	long before = hits();
	int i;

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < 20; i++)
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(before, hits());
}

TEST_F(wbinvd, while_attached)
{
	long before;
	int i;

	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < 20; i++) {
		before = hits();
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
		EXPECT_EQ(host.noncoherent, hits() > before);
	}
}

/* The vCPU moved: its lines are dirty on the CPU it came from, as well. */
TEST_F(wbinvd, of_a_moved_vcpu)
{
	long before[2];

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	pin(0);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	pin(1);
	before[0] = hits_on(0);
	before[1] = hits_on(1);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(host.noncoherent, hits_on(0) > before[0]);
	EXPECT_EQ(host.noncoherent, hits_on(1) > before[1]);
}

TEST_F(wbinvd, stops_with_the_device)
{
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->vm));
	close_fd(&self->vm.dev);
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
}

/* The vCPU keeps the VM alive, and the VM must know that its device is gone. */
TEST_F(wbinvd, stops_with_the_device_of_a_closed_vm)
{
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	close_fd(&self->vm.fd);
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->vm));
	close_fd(&self->vm.dev);
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
}

/* It has written there, and executed no WBINVD yet. */
TEST_F(wbinvd, of_a_vcpu_that_wrote_elsewhere)
{
	long before[2];
	struct vm vm;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, vm_open(&vm));
	ASSERT_EQ(0, vm_add_vcpu(&vm, guest_write_first, sizeof(guest_write_first)));
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(vm.dev, self->fd));
	before[0] = hits_on(0);
	before[1] = hits_on(1);
	pin(0);
	EXPECT_EQ(0, vm_wbinvd(&vm));
	EXPECT_EQ(before[0], hits_on(0));
	EXPECT_EQ(before[1], hits_on(1));
	pin(1);
	EXPECT_EQ(0, vm_wbinvd(&vm));
	EXPECT_EQ(host.noncoherent, hits_on(0) > before[0]);
	EXPECT_EQ(host.noncoherent, hits_on(1) > before[1]);
	vm_close(&vm);
}

/* Wait until the vCPU, which runs, has left its guest @n times more. */
static bool exits_follow(struct vm *vm, long n)
{
	long goal = debugfs_stat(vm, "exits") + n;
	int i;

	for (i = 0; i < 60000; i++) {
		if (debugfs_stat(vm, "exits") >= goal)
			return true;
		sleep_ms(1);
	}
	return false;
}

/* A guest that does nothing else sees the change at once. */
TEST_F(wbinvd, of_a_running_vcpu)
{
	struct runner r = { 0 };
	long before;
	struct vm vm;
	int i;

	REQUIRE(no_cpus(2));
	if (access("/sys/kernel/debug/kvm", F_OK))
		REQUIRE("debugfs is not mounted");
	ASSERT_EQ(0, vm_open(&vm));
	ASSERT_EQ(0, vm_add_vcpu(&vm, guest_wbinvd, sizeof(guest_wbinvd)));
	ASSERT_EQ(0, dev_add(vm.dev, self->fd));
	pin(0);
	ASSERT_EQ(0, runner_start(&r, &vm, 1));
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, group_attach(self->fd));
		before = hits();
		EXPECT_TRUE(exits_follow(&vm, 100));
		EXPECT_EQ(host.noncoherent, hits() > before);
		EXPECT_EQ(0, group_leave(self->fd));
		/* The instruction it was in may still have been under way. */
		EXPECT_TRUE(exits_follow(&vm, 10));
		before = hits();
		EXPECT_TRUE(exits_follow(&vm, 100));
		EXPECT_EQ(before, hits());
	}
	EXPECT_EQ(0, runner_stop(&r));
	vm_close(&vm);
}

/* --- The flush that a VM owes when it becomes non-coherent --- */

enum becoming { BY_ADD, BY_IOMMU, BY_JOIN };

FIXTURE(owed) {
	struct vm vm;
	int fd;
	int other;
	int container;
};

FIXTURE_VARIANT(owed) {
	const char *name;
	enum becoming how;
};

static const FIXTURE_VARIANT(owed) owed_variants[] = {
	{ "by_add", BY_ADD },
	{ "by_set_iommu", BY_IOMMU },
	{ "by_set_container", BY_JOIN },
};

FIXTURE_VARIANTS(owed);

FIXTURE_SETUP(owed)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(variant->how == BY_JOIN ? 2 : 1));
	ASSERT_EQ(0, vm_open(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	self->container = container_open();
	ASSERT_LE(0, self->container);
	if (variant->how == BY_JOIN) {
		/* A container whose IOMMU is set by another group. */
		self->other = need_group(1);
		ASSERT_EQ(0, group_join(self->other, self->container));
		ASSERT_EQ(0, set_iommu(self->container));
	} else {
		ASSERT_EQ(0, group_join(self->fd, self->container));
	}
	ASSERT_EQ(0, variant->how == BY_ADD ? set_iommu(self->container) :
					      dev_add(self->vm.dev, self->fd));
}

FIXTURE_TEARDOWN(owed)
{
	vm_close(&self->vm);
}

static int become(enum becoming how, struct vm *vm, int fd, int container)
{
	switch (how) {
	case BY_ADD:
		return dev_add(vm->dev, fd);
	case BY_IOMMU:
		return set_iommu(container);
	default:
		return group_join(fd, container);
	}
}

/* Back to where it was. BY_IOMMU needs the group in the container again. */
static int unbecome(enum becoming how, struct vm *vm, int fd, int container)
{
	int ret;

	if (how == BY_ADD)
		return dev_del(vm->dev, fd);
	ret = group_leave(fd);
	if (!ret && how == BY_IOMMU)
		ret = group_join(fd, container);
	return ret;
}

TEST_F(owed, paid)
{
	long before;

	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	before = hits();
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	EXPECT_EQ(host.noncoherent, hits() > before);
}

TEST_F(owed, paid_again)
{
	long before;
	int i;

	ASSERT_EQ(0, add_guest(&self->vm));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, vm_wbinvd(&self->vm));
		before = hits();
		ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
		EXPECT_EQ(host.noncoherent, hits() > before);
		ASSERT_EQ(0, vm_wbinvd(&self->vm));
		before = hits();
		ASSERT_EQ(0, unbecome(variant->how, &self->vm, self->fd, self->container));
		EXPECT_EQ(before, hits());
	}
}

TEST_F(owed, paid_on_every_cpu)
{
	long before[2];
	int i;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, add_guest(&self->vm));
	for (i = 0; i < 2; i++) {
		pin(i);
		ASSERT_EQ(0, vm_wbinvd(&self->vm));
		before[i] = hits_on(i);
	}
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	for (i = 0; i < 2; i++)
		EXPECT_EQ(host.noncoherent, hits_on(i) > before[i])
			TH_LOG("on CPU %d", host.cpu[i]);
}

/* Each vCPU has a CPU of its own; the second one need not run to have been there. */
TEST_F(owed, paid_for_every_vcpu)
{
	long before[2];
	int i, second;

	REQUIRE(no_cpus(2));
	pin(0);
	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	pin(1);
	second = call(ioctl(self->vm.fd, KVM_CREATE_VCPU, 1UL));
	ASSERT_LE(0, second);
	for (i = 0; i < 2; i++)
		before[i] = hits_on(i);
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	for (i = 0; i < 2; i++)
		EXPECT_EQ(host.noncoherent, hits_on(i) > before[i])
			TH_LOG("on CPU %d", host.cpu[i]);
	close(second);
}

/* CPUs that belong to somebody else are left in peace. */
TEST_F(owed, not_paid_elsewhere)
{
	struct vm other;
	long before;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, vm_open_guest(&other));
	pin(1);
	ASSERT_EQ(0, vm_wbinvd(&other));
	/* Also a vCPU's making counts as being there. */
	pin(0);
	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	pin(1);
	before = hits_on(1);
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	EXPECT_EQ(before, hits_on(1));
	vm_close(&other);
}

TEST_F(owed, nothing_without_vcpu)
{
	long before = hits();

	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	EXPECT_EQ(before, hits());
}

TEST_F(owed, nothing_for_a_second_file)
{
	long before;
	int fd;

	REQUIRE(no_groups(2));
	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	fd = variant->how == BY_JOIN ? self->other : need_group(1);
	if (variant->how != BY_JOIN)
		ASSERT_EQ(0, group_attach(fd));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	before = hits();
	ASSERT_EQ(0, dev_add(self->vm.dev, fd));
	EXPECT_EQ(before, hits());
}

/* Running in the guest all the time, it dirties lines after each flush. */
TEST_F(owed, paid_where_a_vcpu_runs)
{
	struct runner r = { 0 };
	long before;
	int i;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, vm_add_vcpu(&self->vm, guest_busy, sizeof(guest_busy)));
	pin(0);
	ASSERT_EQ(0, runner_start(&r, &self->vm, 1));
	sleep_ms(50);
	for (i = 0; i < 5; i++) {
		before = hits_on(1);
		EXPECT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
		EXPECT_EQ(host.noncoherent, hits_on(1) > before)
			TH_LOG("change %d", i);
		sleep_ms(10);
		EXPECT_EQ(0, unbecome(variant->how, &self->vm, self->fd, self->container));
		sleep_ms(10);
	}
	EXPECT_EQ(0, runner_stop(&r));
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
