// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO pseudo device with devices' files and with iommufd.
 *
 * vfio_dev_*_test.c have groups in type 1 containers.  Here are the other ways a
 * VFIO file gets attached to an IOMMU domain, fixture by fixture:
 *
 *   cdev, cdev_walk, cdev_exclusive, cdev_killed, cdev_unplug, cdev_vm_gone,
 *   cdev_stress
 *	/dev/vfio/devices/vfioN, bound and attached through iommufd
 *   compat
 *	groups in the container that an iommufd offers; such a group is attached
 *	while its device is open
 *   group_device
 *	the file that VFIO_GROUP_GET_DEVICE_FD gives
 *
 * The first two need CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV, the last Linux
 * 6.6; what a kernel does not have is skipped.  How the tests know that a VM is
 * non-coherent, what they need and what they can be told: see vfio_dev_test.h.
 */
#define _GNU_SOURCE
#include <sys/wait.h>

#include "vfio_cdev_test.h"
#include "vfio_dev_model.h"

/* --- Files of devices, or with COMPAT of their groups, and an iommufd --- */

/*
 * The last reference to a device's file unbinds it. A group's takes the iommufd
 * away, yet its device lives on.
 */
static void file_put(struct world *w, struct file *f)
{
	if (f->fd >= 0 || f->owners)
		return;
	f->bound = false;
	if (!w->compat)
		f->attached = false;
}

/*
 * A group opens once. A device opens as often as one likes, but only one of its
 * files can be bound, so there is one here.
 */
static int run_open(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];
	bool alive = f->fd >= 0 || f->owners;
	int fd;

	if (alive && !w->compat)
		return 0;
	*expected = alive ? -EBUSY : 0;
	fd = w->compat ? group_open(op->file) : cdev_open(op->file);
	if (fd < 0)
		return fd;
	f->fd = fd;
	return 0;
}

/* Give the file to the iommufd: for a group, that is its container. */
static int run_bind(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (f->fd < 0)
		*expected = -EBADF;
	else if (f->bound)
		*expected = -EINVAL;
	else
		f->bound = true;
	return w->compat ? group_join(f->fd, w->iommufd) : cdev_bind(f->fd, w->iommufd);
}

static bool model_is_bound(const struct file *f, int *expected)
{
	*expected = f->fd < 0 ? -EBADF : f->bound ? 0 : -EINVAL;
	return !*expected;
}

static int run_attach(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (model_is_bound(f, expected))
		f->attached = true;
	return cdev_attach(f->fd, w->ioas[op->place]);
}

static int run_detach(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (model_is_bound(f, expected))
		f->attached = false;
	return cdev_detach(f->fd);
}

/* To an IOAS that is not there: stays attached to what it was. */
static int run_nowhere(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (model_is_bound(f, expected))
		*expected = -ENOENT;
	return cdev_attach(f->fd, 0x7fffffff);
}

/* To an IOAS that has no room for it: the same. */
static int run_noroom(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (model_is_bound(f, expected))
		*expected = -EADDRINUSE;
	return cdev_attach(f->fd, w->ioas[2]);
}

/* The answer cannot be written: the same. */
static int run_fault(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (model_is_bound(f, expected))
		*expected = -EFAULT;
	return cdev_attach_in_vain(f->fd, 0, w->ioas[op->place]);
}

/* Out of the iommufd's container; an open device stays attached, though. */
static int run_leave(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (model_is_bound(f, expected))
		f->bound = false;
	return group_leave(f->fd);
}

static int run_getdev(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];
	int fd;

	if (f->device >= 0)
		return 0;
	if (model_is_bound(f, expected))
		f->attached = true;
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
	f->attached = false;
	return 0;
}

static const struct op_kind kinds[] = {
	{ "add", run_add, .of_vm = true },
	{ "del", run_del, .of_vm = true },
	{ "reset", run_reset, .of_vm = true },
	{ "close", run_close },
	{ "open", run_open },
	{ "bind", run_bind },
	{ "attach", run_attach },
	{ "detach", run_detach },
	{ "nowhere", run_nowhere },
	{ "noroom", run_noroom },
	{ "fault", run_fault },
	{ "leave", run_leave },
	{ "getdev", run_getdev },
	{ "putdev", run_putdev },
	{}
};

static int world_open(struct world *w, bool compat, int nr_files)
{
	int i, ret = world_init(w, kinds, file_put);

	w->compat = compat;
	w->iommufd = iommufd_open();
	for (i = 0; i < 3 && !ret; i++)
		ret = ioas_alloc(w->iommufd, &w->ioas[i]);
	if (!ret)
		ret = ioas_spoil(w->iommufd, w->ioas[2]);
	for (i = 0; i < nr_files && !ret; i++) {
		if (!compat)
			ret = cdev_wait(i);
		if (!ret)
			w->file[i].fd = compat ? need_group(i) : cdev_open(i);
		if (w->file[i].fd < 0)
			ret = w->file[i].fd;
	}
	return ret;
}

/* --- Files of devices --- */

FIXTURE(cdev) {
	struct world world;
};

FIXTURE_VARIANT(cdev) {
	const char *name;
	const char *steps;
};

static const FIXTURE_VARIANT(cdev) cdev_variants[] = {
	/* As QEMU and rust-vmm do it. */
	{ "add_bind_attach", "add1 bind1 attach1 detach1 del1 close1" },
	{ "bind_add_attach", "bind1 add1 attach1 detach1 del1" },
	{ "bind_attach_add", "bind1 attach1 add1 del1 add1 detach1 del1" },
	{ "del_before_detach", "add1 bind1 attach1 del1 detach1" },
	{ "del_before_attach", "add1 bind1 del1 attach1 detach1" },
	{ "never_bound", "add1 attach1 detach1 nowhere1 fault1 del1" },
	{ "never_attached", "add1 bind1 detach1 del1 detach1" },
	{ "untracked", "bind1 attach1 attach1.2 detach1 del1" },
	/* And again, and elsewhere. */
	{ "attached_again", "add1 bind1 attach1 detach1 attach1 detach1 detach1 attach1.2" },
	{ "moved", "add1 bind1 attach1.1 attach1.2 attach1.1 detach1" },
	{ "moved_then_added", "bind1 attach1.1 attach1.2 add1 attach1.1 del1" },
	{ "attached_to_the_same", "add1 bind1 attach1 attach1 detach1 attach1" },
	/* What fails leaves it attached to what it was, or to nothing. */
	{ "attach_fails",
	  "add1 bind1 nowhere1 noroom1 attach1 nowhere1 noroom1 detach1 noroom1 nowhere1" },
	{ "attach_cannot_tell", "add1 bind1 fault1 attach1 fault1 attach1.2 fault1 detach1" },
	{ "attach_fails_then_added",
	  "bind1 attach1 nowhere1 noroom1 add1 del1 fault1 add1 attach1" },
	{ "failed_calls", "add1 add1 Badd1 bind1 bind1 attach1 bind1 add1 Badd1 Bdel1 del1 del1" },
	/* The descriptor closed: the tracked file is kept, bound and attached as it is. */
	{ "closed_while_attached",
	  "add1 bind1 attach1 close1 del1 reset open1 add1 bind1 attach1" },
	{ "closed_while_bound", "add1 bind1 close1 reset open1 bind1 attach1 add1" },
	{ "closed_while_tracked_only", "add1 close1 reset open1 bind1 attach1 add1 close1" },
	{ "closed_untracked", "bind1 attach1 close1 open1 add1 bind1 attach1" },
	{ "kvm_device_closed", "add1 bind1 attach1 reset detach1 add1 attach1 reset add1" },
	/* Two devices. */
	{ "two_in_one_ioas", "add1 add2 bind1 bind2 attach1 attach2 detach1 detach2 del1 del2" },
	{ "two_apart", "bind1 bind2 attach1.1 attach2.2 add1 add2 del1 del2 add2 detach1 detach2" },
	{ "two_one_untracked",
	  "add1 bind1 bind2 attach2 attach1 detach1 add2 attach1.2 detach2 detach1" },
	{ "two_moved_together",
	  "add1 add2 bind1 bind2 attach1.1 attach2.1 attach1.2 attach2.2 detach2 detach1" },
	{ "two_closed_at_once",
	  "add1 bind1 attach1 add2 bind2 attach2 close1 close2 reset open1 open2 add1" },
	/* Two VMs. */
	{ "vms_one_each", "add1 Badd2 bind1 bind2 attach1 attach2 detach1 detach2 Bdel2 del1" },
	{ "vms_handed_over", "add1 bind1 attach1 del1 Badd1 add1 Breset add1 reset Badd1 detach1" },
	{ "vms_closed", "add1 Badd2 bind1 bind2 attach2.2 attach1.2 close1 close2 reset Breset" },
};

FIXTURE_VARIANTS(cdev);

FIXTURE_SETUP(cdev)
{
	int nr = strpbrk(variant->steps, "2") ? 2 : 1;

	REQUIRE_IOMMUFD(nr);
	REQUIRE(no_cdev(nr));
	ASSERT_EQ(0, world_open(&self->world, false, host.nr_groups < 2 ? 1 : 2));
}

FIXTURE_TEARDOWN(cdev)
{
	world_close(&self->world);
}

TEST_F(cdev, flag_follows)
{
	FOLLOW(&self->world, variant->steps, false);
}

/* Exactly when a VM becomes non-coherent are caches written back for it. */
TEST_F(cdev, flush_is_paid)
{
	FOLLOW(&self->world, variant->steps, true);
}

/* --- A random walk through all of that --- */

FIXTURE(cdev_walk) {
	struct world world;
};

FIXTURE_SETUP(cdev_walk)
{
	REQUIRE_IOMMUFD(2);
	REQUIRE(no_cdev(2));
	ASSERT_EQ(0, world_open(&self->world, false, 2));
}

FIXTURE_TEARDOWN(cdev_walk)
{
	world_close(&self->world);
}

/* What changes something, more often than what only could. */
static const char * const often[] = {
	"add", "add", "add", "del", "del", "bind", "bind", "bind", "attach", "attach",
	"attach", "attach", "detach", "detach", "nowhere", "noroom", "fault", "close",
	"open", "open", "open", "reset",
};

TEST_F_TIMEOUT(cdev_walk, result_flag_and_flush, 240)
{
	WALK(&self->world, often, 400, 1, WALK_RESULTS | WALK_FLUSHES);
}

/* --- Groups in an iommufd's container --- */

FIXTURE(compat) {
	struct world world;
};

FIXTURE_VARIANT(compat) {
	const char *name;
	const char *steps;
};

static const FIXTURE_VARIANT(compat) compat_variants[] = {
	{ "add_first", "add1 bind1 getdev1 putdev1 leave1 del1" },
	{ "add_bound", "bind1 add1 getdev1 putdev1 getdev1 del1 putdev1 leave1" },
	{ "add_open", "bind1 getdev1 add1 del1 add1 putdev1 del1" },
	{ "never_open", "add1 bind1 bind1 leave1 leave1 getdev1 del1" },
	/* Nothing says that an open device lets go of the iommufd with its group. */
	{ "left_while_open", "add1 bind1 getdev1 leave1 bind1 leave1 putdev1 getdev1" },
	{ "group_closed_tracked",
	  "add1 bind1 getdev1 close1 open1 putdev1 reset open1 bind1 add1 getdev1" },
	/* The next who opens the group gets its device as it is. */
	{ "group_closed_device_open", "bind1 getdev1 close1 open1 add1 putdev1 bind1 getdev1" },
	{ "kvm_device_closed", "add1 bind1 getdev1 reset add1 reset putdev1 add1 getdev1" },
	{ "two", "add1 add2 bind1 bind2 getdev1 getdev2 putdev1 putdev2 del1 del2" },
	{ "vms_one_each", "add1 Badd2 bind1 bind2 getdev2 getdev1 Badd1 putdev2 putdev1 Breset" },
	{ "vms_handed_over", "bind1 getdev1 add1 Badd1 del1 Badd1 Breset add1 putdev1" },
};

FIXTURE_VARIANTS(compat);

FIXTURE_SETUP(compat)
{
	REQUIRE_IOMMUFD(strpbrk(variant->steps, "2") ? 2 : 1);
	ASSERT_EQ(0, world_open(&self->world, true, host.nr_groups < 2 ? 1 : 2));
}

FIXTURE_TEARDOWN(compat)
{
	world_close(&self->world);
}

TEST_F(compat, flag_follows)
{
	FOLLOW(&self->world, variant->steps, false);
}

TEST_F(compat, flush_is_paid)
{
	FOLLOW(&self->world, variant->steps, true);
}

/* --- Files of devices that a group gave --- */

FIXTURE(group_device) {
	struct vm a;
	struct vm b;
	int group;
	int iommufd;
	int device;
};

FIXTURE_VARIANT(group_device) {
	const char *name;
	bool iommufd;
};

static const FIXTURE_VARIANT(group_device) group_device_variants[] = {
	{ "container", false },
	{ "iommufd", true },
};

FIXTURE_VARIANTS(group_device);

FIXTURE_SETUP(group_device)
{
	REQUIRE(no_device_files());
	if (variant->iommufd)
		REQUIRE(no_iommufd());
	REQUIRE(no_groups(1));
	REQUIRE(no_pci(0));
	REQUIRE(host.no_probe);
	self->b = NO_VM;
	ASSERT_EQ(0, vm_open_guest(&self->a));
	ASSERT_EQ(0, vm_open_guest(&self->b));
	self->group = need_group(0);
	ASSERT_LE(0, self->group);
	self->iommufd = variant->iommufd ? iommufd_open() : -1;
	ASSERT_EQ(0, variant->iommufd ? group_join(self->group, self->iommufd) :
					group_attach(self->group));
	self->device = group_get_device(self->group, 0);
	ASSERT_LE(0, self->device);
}

FIXTURE_TEARDOWN(group_device)
{
	vm_close(&self->a);
	vm_close(&self->b);
	close_fd(&self->device);
	close_fd(&self->group);
	close_fd(&self->iommufd);
}

/* The VM tracks so many FILES, of which so many are ATTACHED, and is what they make it. */
#define EXPECT_TRACKS(tracker, files, attached) do {				\
	const int noncoherent = host.noncoherent ? (attached) : 0;		\
	struct vm *vm = (tracker);						\
										\
	EXPECT_EQ(!!noncoherent, vm_noncoherent(vm));				\
	EXPECT_TRUE(vm_state_is(vm, files, noncoherent));			\
} while (0)

/* It is attached as long as it is open. */
TEST_F(group_device, flag_follows)
{
	EXPECT_TRACKS(&self->a, 0, 0);
	EXPECT_EQ(0, dev_add(self->a.dev, self->device));
	EXPECT_TRACKS(&self->a, 1, 1);
	EXPECT_TRUE(file_state_is(&self->a, self->device, attached_state()));
	EXPECT_EQ(0, dev_del(self->a.dev, self->device));
	EXPECT_TRACKS(&self->a, 0, 0);
	EXPECT_TRUE(file_state_is(&self->a, self->device, -ENOENT));
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, self->device));
}

TEST_F(group_device, state_can_be_read)
{
	REQUIRE(no_state(&self->a));
	EXPECT_EQ(0, dev_add(self->a.dev, self->device));
	EXPECT_EQ(attached_state(), get_file_state(self->a.dev, self->device));
	EXPECT_EQ(-ENOENT, get_file_state(self->b.dev, self->device));
	EXPECT_EQ(-ENOENT, get_file_state(self->a.dev, self->group));
}

TEST_F(group_device, both_vms_track_it)
{
	int copy = dup(self->device);

	EXPECT_EQ(0, dev_add(self->a.dev, self->device));
	EXPECT_EQ(-EEXIST, dev_add(self->a.dev, self->device));
	EXPECT_EQ(-EEXIST, dev_add(self->a.dev, copy));
	EXPECT_EQ(0, dev_add(self->b.dev, self->device));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->device));
	EXPECT_EQ(0, dev_del(self->b.dev, self->device));
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->device));
	EXPECT_TRACKS(&self->a, 1, 1);
	EXPECT_TRACKS(&self->b, 0, 0);
	EXPECT_TRUE(file_state_is(&self->a, copy, attached_state()));
	EXPECT_TRUE(file_state_is(&self->b, copy, -ENOENT));
	EXPECT_EQ(0, dev_del(self->a.dev, copy));
	EXPECT_EQ(0, dev_add(self->b.dev, self->device));
	EXPECT_TRACKS(&self->b, 1, 1);
	EXPECT_TRUE(file_state_is(&self->a, copy, -ENOENT));
	EXPECT_TRUE(file_state_is(&self->b, copy, attached_state()));
	EXPECT_EQ(0, dev_add(self->a.dev, self->device));
}

/* Its group is a file of its own. */
TEST_F(group_device, beside_its_group)
{
	EXPECT_EQ(0, dev_add(self->a.dev, self->group));
	EXPECT_EQ(0, dev_add(self->a.dev, self->device));
	EXPECT_TRACKS(&self->a, 2, 2);
	EXPECT_EQ(0, dev_del(self->a.dev, self->group));
	EXPECT_TRACKS(&self->a, 1, 1);
	EXPECT_TRUE(file_state_is(&self->a, self->group, -ENOENT));
	EXPECT_TRUE(file_state_is(&self->a, self->device, attached_state()));
	EXPECT_EQ(0, dev_add(self->a.dev, self->group));
	EXPECT_EQ(0, dev_del(self->a.dev, self->device));
	EXPECT_TRACKS(&self->a, 1, 1);
	EXPECT_TRUE(file_state_is(&self->a, self->group, attached_state()));
	EXPECT_TRUE(file_state_is(&self->a, self->device, -ENOENT));
	EXPECT_EQ(0, dev_del(self->a.dev, self->group));
	EXPECT_TRACKS(&self->a, 0, 0);
}

/* A device can be opened twice, and then has two files. */
TEST_F(group_device, two_files)
{
	int second = group_get_device(self->group, 0);

	ASSERT_LE(0, second);
	EXPECT_EQ(0, dev_add(self->a.dev, self->device));
	EXPECT_EQ(0, dev_add(self->a.dev, second));
	EXPECT_TRACKS(&self->a, 2, 2);
	EXPECT_EQ(0, dev_del(self->a.dev, self->device));
	EXPECT_TRACKS(&self->a, 1, 1);
	EXPECT_TRUE(file_state_is(&self->a, self->device, -ENOENT));
	close_fd(&self->device);
	EXPECT_TRACKS(&self->a, 1, 1);
	EXPECT_TRUE(file_state_is(&self->a, second, attached_state()));
	EXPECT_EQ(0, dev_del(self->a.dev, second));
	EXPECT_TRACKS(&self->a, 0, 0);
	close(second);
}

/*
 * VFIO has told vfio-pci to let go of the device, and waits until nobody has it
 * open: until then it may do DMA, and its group's user must not hear otherwise.
 */
TEST_F(group_device, unbound_with_two_files)
{
	int second = group_get_device(self->group, 0), i;
	struct unbinder u = { .bdf = host.bdf[0] };

	ASSERT_LE(0, second);
	EXPECT_EQ(0, dev_add(self->a.dev, self->group));
	EXPECT_EQ(0, dev_add(self->b.dev, second));
	ASSERT_EQ(0, pthread_create(&u.thread, NULL, unbinder_main, &u));
	sleep_ms(300);
	EXPECT_TRACKS(&self->a, 1, 1);
	close_fd(&self->device);
	EXPECT_FALSE(u.done);
	EXPECT_TRACKS(&self->a, 1, 1);
	EXPECT_TRACKS(&self->b, 1, 1);
	EXPECT_EQ(0, dev_del(self->a.dev, self->group));
	EXPECT_EQ(0, dev_add(self->a.dev, self->group));
	EXPECT_TRACKS(&self->a, 1, 1);
	EXPECT_TRUE(file_state_is(&self->a, self->group, attached_state()));
	EXPECT_EQ(0, dev_del(self->b.dev, second));
	close(second);
	for (i = 0; i < 500 && !u.done; i++)
		sleep_ms(10);
	EXPECT_TRUE(u.done);
	EXPECT_TRACKS(&self->a, 1, 0);
	EXPECT_TRACKS(&self->b, 0, 0);
	EXPECT_TRUE(file_state_is(&self->a, self->group, KVM_VFIO_FILE_NOT_ATTACHED));
	/* Else a device that is wrongly kept would keep this process, too. */
	vm_close(&self->a);
	vm_close(&self->b);
	close_fd(&self->group);
	pthread_join(u.thread, NULL);
	EXPECT_EQ(0, u.ret);
	EXPECT_EQ(0, bind_vfio_pci(host.bdf[0]));
}

/* The VM keeps the file, the file the device, and that the group's attachment. */
TEST_F(group_device, kept_while_tracked)
{
	EXPECT_EQ(0, dev_add(self->a.dev, self->device));
	EXPECT_EQ(0, dev_add(self->b.dev, self->group));
	close_fd(&self->device);
	EXPECT_TRACKS(&self->a, 1, 1);
	EXPECT_TRACKS(&self->b, 1, 1);
	if (!variant->iommufd)
		EXPECT_EQ(-EBUSY, group_leave(self->group));
	close_fd(&self->a.dev);
	EXPECT_EQ(0, vm_noncoherent(&self->a));
	EXPECT_TRACKS(&self->b, 1, !variant->iommufd);
	EXPECT_EQ(0, group_leave(self->group));
	EXPECT_TRACKS(&self->b, 1, 0);
	EXPECT_TRUE(file_state_is(&self->b, self->group, KVM_VFIO_FILE_NOT_ATTACHED));
}

/* These are for devices that do not come from a group. */
TEST_F(group_device, cannot_be_bound)
{
	EXPECT_EQ(0, dev_add(self->a.dev, self->device));
	EXPECT_GT(0, cdev_bind(self->device, self->iommufd));
	EXPECT_GT(0, cdev_attach(self->device, 1));
	EXPECT_GT(0, cdev_detach(self->device));
	EXPECT_TRACKS(&self->a, 1, 1);
}

/* --- Who else has the device --- */

FIXTURE(cdev_exclusive) {
	struct world world;
	int fd;
	int other;		/* another file of the same device */
};

FIXTURE_SETUP(cdev_exclusive)
{
	REQUIRE_IOMMUFD(1);
	REQUIRE(no_cdev(1));
	ASSERT_EQ(0, world_open(&self->world, false, 1));
	self->fd = self->world.file[0].fd;
	self->other = cdev_open(0);
	ASSERT_LE(0, self->other);
}

FIXTURE_TEARDOWN(cdev_exclusive)
{
	close_fd(&self->other);
	world_close(&self->world);
}

TEST_F(cdev_exclusive, copy_is_the_same)
{
	int copy = dup(self->fd);

	EXPECT_EQ(0, dev_add(self->world.vm[0].dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->world.vm[0].dev, copy));
	EXPECT_EQ(0, dev_add(self->world.vm[1].dev, copy));
	EXPECT_EQ(0, dev_del(self->world.vm[0].dev, copy));
	EXPECT_EQ(-ENOENT, dev_del(self->world.vm[0].dev, self->fd));
}

/* Only one of a device's files can be bound; the other has no DMA. */
TEST_F(cdev_exclusive, other_file_is_another)
{
	struct vm *a = &self->world.vm[0], *b = &self->world.vm[1];

	EXPECT_EQ(0, dev_add(a->dev, self->fd));
	EXPECT_EQ(0, dev_add(b->dev, self->other));
	EXPECT_EQ(0, cdev_bind(self->fd, self->world.iommufd));
	EXPECT_EQ(-EINVAL, cdev_bind(self->other, self->world.iommufd));
	EXPECT_EQ(0, cdev_attach(self->fd, self->world.ioas[0]));
	EXPECT_EQ(-EINVAL, cdev_attach(self->other, self->world.ioas[0]));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(a));
	EXPECT_EQ(0, vm_noncoherent(b));
	EXPECT_EQ(0, dev_del(a->dev, self->fd));
	close_fd(&self->world.file[0].fd);
	/* The device is free, and now that of the other. */
	EXPECT_EQ(0, cdev_bind(self->other, self->world.iommufd));
	EXPECT_EQ(0, vm_noncoherent(b));
	EXPECT_EQ(0, cdev_attach(self->other, self->world.ioas[1]));
	EXPECT_EQ(0, vm_noncoherent(a));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(b));
}

/* A group that is open keeps its device from being bound, and the other way round. */
TEST_F(cdev_exclusive, group_or_device)
{
	struct vm *a = &self->world.vm[0];
	int group = need_group(0);

	ASSERT_LE(0, group);
	EXPECT_EQ(0, dev_add(a->dev, self->fd));
	EXPECT_EQ(0, dev_add(a->dev, group));
	EXPECT_EQ(-EBUSY, cdev_bind(self->fd, self->world.iommufd));
	EXPECT_EQ(-EINVAL, cdev_attach(self->fd, self->world.ioas[0]));
	EXPECT_EQ(0, vm_noncoherent(a));
	EXPECT_EQ(0, group_attach(group));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(a));
	EXPECT_EQ(0, dev_del(a->dev, group));
	EXPECT_EQ(0, vm_noncoherent(a));
	close(group);
	EXPECT_EQ(0, cdev_bind(self->fd, self->world.iommufd));
	EXPECT_EQ(-EBUSY, group_open(0));
	EXPECT_EQ(0, cdev_attach(self->fd, self->world.ioas[0]));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(a));
}

/* Another iommufd is another process's, perhaps: the device has to leave first. */
TEST_F(cdev_exclusive, rebound_to_another_iommufd)
{
	struct vm *a = &self->world.vm[0];
	int second = iommufd_open();
	uint32_t ioas;

	EXPECT_EQ(0, ioas_alloc(second, &ioas));
	EXPECT_EQ(0, dev_add(a->dev, self->fd));
	EXPECT_EQ(0, dev_add(a->dev, self->other));
	EXPECT_EQ(0, cdev_bind(self->fd, self->world.iommufd));
	EXPECT_EQ(0, cdev_attach(self->fd, self->world.ioas[0]));
	EXPECT_EQ(-EINVAL, cdev_bind(self->fd, second));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(a));
	EXPECT_EQ(0, dev_del(a->dev, self->fd));
	close_fd(&self->world.file[0].fd);
	EXPECT_EQ(0, vm_noncoherent(a));
	EXPECT_EQ(0, cdev_bind(self->other, second));
	EXPECT_EQ(0, cdev_attach(self->other, ioas));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(a));
	/* The device keeps the iommufd. */
	close(second);
	EXPECT_EQ(host.noncoherent, vm_noncoherent(a));
}

/* --- A VM that ends before its devices --- */

FIXTURE(cdev_vm_gone) {
	struct world world;
};

FIXTURE_VARIANT(cdev_vm_gone) {
	const char *name;
	const char *before;
	const char *after;
};

static const FIXTURE_VARIANT(cdev_vm_gone) cdev_vm_gone_variants[] = {
	{ "unbound", "add1", "bind1 attach1 Badd1 detach1" },
	{ "bound", "add1 bind1", "attach1 Badd1 detach1 attach1" },
	{ "attached", "add1 bind1 attach1", "attach1.2 Badd1 detach1 attach1" },
};

FIXTURE_VARIANTS(cdev_vm_gone);

FIXTURE_SETUP(cdev_vm_gone)
{
	REQUIRE_IOMMUFD(1);
	REQUIRE(no_cdev(1));
	ASSERT_EQ(0, world_open(&self->world, false, 1));
}

FIXTURE_TEARDOWN(cdev_vm_gone)
{
	world_close(&self->world);
}

/* A bound device holds on to the VM it was bound for, but the file is free. */
TEST_F(cdev_vm_gone, file_is_free)
{
	FOLLOW(&self->world, variant->before, false);
	vm_close(&self->world.vm[0]);
	self->world.file[0].owners = 0;
	ASSERT_EQ(0, vm_open_guest(&self->world.vm[0]));
	FOLLOW(&self->world, variant->after, false);
}

/* --- A process killed between any two steps --- */

FIXTURE(cdev_killed) {
};

FIXTURE_VARIANT(cdev_killed) {
	const char *name;
	const char *steps;
	bool compat;
};

static const FIXTURE_VARIANT(cdev_killed) cdev_killed_variants[] = {
	{ "after_add", "add1" },
	{ "after_bind", "add1 bind1" },
	{ "after_attach", "add1 bind1 attach1" },
	{ "after_detach", "add1 bind1 attach1 detach1" },
	{ "after_close", "add1 bind1 attach1 close1" },
	{ "after_getdev", "add1 bind1 getdev1", true },
};

FIXTURE_VARIANTS(cdev_killed);

FIXTURE_SETUP(cdev_killed)
{
	REQUIRE_IOMMUFD(1);
	REQUIRE(no_cdev(1));
}

FIXTURE_TEARDOWN(cdev_killed)
{
}

/* Does the steps, tells what came of them, and waits for its end. */
static void victim(const char *steps, bool compat, int tell)
{
	struct world w;
	int ret = world_open(&w, compat, 1);
	struct outcome o;
	char word[16];
	struct op op;

	while (!ret && next_word(&steps, word, sizeof(word))) {
		ret = parse_op(&w, word, &op);
		if (!ret) {
			observe(&w, &op, &o);
			ret = o.result;
		}
	}
	if (write(tell, &ret, sizeof(ret)) == sizeof(ret))
		pause();
	_exit(1);
}

TEST_F(cdev_killed, everything_is_free)
{
	int told[2], ret = -1, status;
	struct world w;
	pid_t child;

	ASSERT_EQ(0, pipe(told));
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		victim(variant->steps, variant->compat, told[1]);
	ASSERT_EQ(sizeof(ret), (size_t)read(told[0], &ret, sizeof(ret)));
	EXPECT_EQ(0, ret);
	kill(child, SIGKILL);
	ASSERT_EQ(child, waitpid(child, &status, 0));

	ASSERT_EQ(0, world_open(&w, false, 1));
	FOLLOW(&w, "add1 bind1 attach1 del1", false);
	world_close(&w);
}

/* --- A device that is taken away from vfio-pci --- */

FIXTURE(cdev_unplug) {
	struct world world;
};

/* The last steps of each give the device back. */
FIXTURE_VARIANT(cdev_unplug) {
	const char *name;
	const char *before;
	const char *after;
	bool compat;
};

static const FIXTURE_VARIANT(cdev_unplug) cdev_unplug_variants[] = {
	{ "open", "add1", "del1 close1" },
	{ "bound", "add1 bind1", "attach1 detach1 del1 close1" },
	{ "attached", "add1 bind1 attach1", "Badd1 add1 detach1 attach1.2 close1 reset Breset" },
	{ "untracked", "bind1 attach1", "add1 detach1 del1 close1" },
	{ "kept_by_the_vm", "add1 bind1 attach1 close1", "reset" },
	{ "group", "add1 bind1 getdev1", "putdev1", true },
};

FIXTURE_VARIANTS(cdev_unplug);

FIXTURE_SETUP(cdev_unplug)
{
	REQUIRE_IOMMUFD(1);
	REQUIRE(no_cdev(1));
	ASSERT_EQ(0, world_open(&self->world, variant->compat, 1));
}

FIXTURE_TEARDOWN(cdev_unplug)
{
	world_close(&self->world);
	EXPECT_EQ(0, bind_vfio_pci(host.bdf[0]));
}

/* VFIO waits until the device is nobody's, and the VM is told all the while. */
TEST_F(cdev_unplug, waits_and_ends)
{
	struct unbinder u = { .bdf = host.bdf[0] };
	int i;

	FOLLOW(&self->world, variant->before, false);
	ASSERT_EQ(0, pthread_create(&u.thread, NULL, unbinder_main, &u));
	sleep_ms(300);
	EXPECT_FALSE(u.done);
	EXPECT_EQ(should_be_noncoherent(&self->world, 0), vm_noncoherent(&self->world.vm[0]));
	FOLLOW(&self->world, variant->after, false);
	for (i = 0; i < 500 && !u.done; i++)
		sleep_ms(10);
	EXPECT_TRUE(u.done);
	EXPECT_EQ(0, vm_noncoherent(&self->world.vm[0]));
	if (variant->compat)
		FOLLOW(&self->world, "add1 del1 close1", false);
	/* Else a device that is wrongly kept would keep this process, too. */
	world_close(&self->world);
	pthread_join(u.thread, NULL);
	EXPECT_EQ(0, u.ret);
	ASSERT_EQ(0, bind_vfio_pci(host.bdf[0]));
	ASSERT_EQ(0, world_open(&self->world, false, 1));
	FOLLOW(&self->world, "add1 bind1 attach1", false);
}

/* --- Everything at once --- */

#define STRESS_ROUNDS	200

FIXTURE(cdev_stress) {
	struct world world;
};

FIXTURE_SETUP(cdev_stress)
{
	REQUIRE_IOMMUFD(2);
	REQUIRE(no_cdev(2));
	ASSERT_EQ(0, world_open(&self->world, false, 2));
}

FIXTURE_TEARDOWN(cdev_stress)
{
	world_close(&self->world);
}

struct stress_job {
	pthread_t thread;
	struct world *world;
	int nr;			/* of the VM or of the file */
	uint32_t random;
	atomic_bool *stop;
	atomic_int *bad;	/* the last result that cannot be right */
};

/* RET may be 0 or one of the errors, the last of which is 0. */
static void allow(struct stress_job *job, int ret, const int *errors)
{
	while (*errors && ret != *errors)
		errors++;
	if (ret != *errors)
		*job->bad = ret;
}

/* A closed file's number may be anybody's when it is used: EBADF, EINVAL. */
static void *stress_track(void *arg)
{
	static const int add_errors[] = { -EEXIST, -EBADF, -EINVAL, 0 };
	static const int del_errors[] = { -ENOENT, -EBADF, 0 };
	struct stress_job *job = arg;
	struct vm *vm = &job->world->vm[job->nr];
	int i, fd;

	for (i = 0; i < STRESS_ROUNDS; i++) {
		fd = job->world->file[next_random(&job->random) % 2].fd;
		if (next_random(&job->random) % 2)
			allow(job, dev_add(vm->dev, fd), add_errors);
		else
			allow(job, dev_del(vm->dev, fd), del_errors);
		if (next_random(&job->random) % 16)
			continue;
		close_fd(&vm->dev);
		vm->dev = create_device(vm->fd, 0);
		if (vm->dev < 0)
			*job->bad = vm->dev;
	}
	return NULL;
}

/* EINVAL: not bound, as while a VM still holds the last, bound file. */
static void *stress_attach(void *arg)
{
	static const int errors[] = { -EINVAL, 0 };
	struct stress_job *job = arg;
	struct world *w = job->world;
	struct file *f = &w->file[job->nr];
	int i;

	for (i = 0; i < STRESS_ROUNDS; i++) {
		switch (next_random(&job->random) % 16) {
		case 0:
			close_fd(&f->fd);
			f->fd = cdev_open(job->nr);
			if (f->fd < 0)
				*job->bad = f->fd;
			break;
		case 1 ... 4:
			allow(job, cdev_bind(f->fd, w->iommufd), errors);
			break;
		case 5 ... 8:
			allow(job, cdev_detach(f->fd), errors);
			break;
		default:
			allow(job, cdev_attach(f->fd, w->ioas[i % 2]), errors);
		}
	}
	return NULL;
}

static void *stress_run(void *arg)
{
	struct stress_job *job = arg;

	while (!*job->stop)
		if (vm_wbinvd(&job->world->vm[job->nr]))
			*job->bad = -EPROTO;
	return NULL;
}

TEST_F_TIMEOUT(cdev_stress, ends_as_it_began, 240)
{
	void *(*main[])(void *) = {
		stress_track, stress_track, stress_attach, stress_attach, stress_run, stress_run,
	};
	struct world *w = &self->world;
	atomic_bool stop = false;
	atomic_int bad = 0;
	struct stress_job job[6];
	int i;

	for (i = 0; i < 6; i++) {
		job[i] = (struct stress_job){
			.world = w, .nr = i % 2, .random = i, .stop = &stop, .bad = &bad,
		};
		ASSERT_EQ(0, pthread_create(&job[i].thread, NULL, main[i], &job[i]));
	}
	for (i = 0; i < 6; i++) {
		if (i == 4)
			stop = true;
		pthread_join(job[i].thread, NULL);
	}
	EXPECT_EQ(0, bad);

	/* Nothing is left of it. */
	for (i = 0; i < 2; i++)
		close_fd(&w->vm[i].dev);
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, vm_noncoherent(&w->vm[i]));
		close_fd(&w->file[i].fd);
	}
	world_close(w);
	ASSERT_EQ(0, world_open(w, false, 2));
	FOLLOW(w, "add1 Badd2 bind1 bind2 attach1 attach2 reset Breset", false);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
