// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO pseudo device: files that more than one VM tracks.
 *
 *   two_vms, shared
 *	each VM has the file for itself, and hears what happens to it
 *   live_update
 *	a VM is replaced by that of another process, and its device goes on
 *
 * See vfio_dev_test.h for what these tests need, and how they know what they say.
 */
#define _GNU_SOURCE
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "vfio_dev_test.h"

/* --- Two VMs --- */

FIXTURE(two_vms) {
	struct vm a;
	struct vm b;
	int fd;
};

FIXTURE_SETUP(two_vms)
{
	REQUIRE(no_groups(1));
	self->b = NO_VM;
	ASSERT_EQ(0, vm_open(&self->a));
	ASSERT_EQ(0, vm_open(&self->b));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, dev_add(self->a.dev, self->fd));
}

FIXTURE_TEARDOWN(two_vms)
{
	vm_close(&self->a);
	vm_close(&self->b);
}

TEST_F(two_vms, both_track_it)
{
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->a.dev, self->fd));
}

TEST_F(two_vms, first_lets_go_first)
{
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->fd));
}

TEST_F(two_vms, last_lets_go_first)
{
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->a.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, self->fd));
}

/* A copy of the descriptor is the same file, for each of them. */
TEST_F(two_vms, copy_is_the_same)
{
	int copy = dup(self->fd);

	ASSERT_LE(0, copy);
	EXPECT_EQ(0, dev_add(self->b.dev, copy));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, copy));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, copy));
	EXPECT_EQ(0, dev_del(self->b.dev, self->fd));
}

/* The group stays open until the last of them has let go. */
TEST_F(two_vms, each_holds_the_file)
{
	ASSERT_EQ(0, dev_add(self->b.dev, self->fd));
	close_fd(&self->fd);
	EXPECT_EQ(-EBUSY, group_open(0));
	close_fd(&self->a.dev);
	EXPECT_EQ(-EBUSY, group_open(0));
	close_fd(&self->b.dev);
	EXPECT_LE(0, group_open_soon(0));
}

TEST_F(two_vms, del_of_the_other_is_enoent)
{
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->a.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
}

TEST_F(two_vms, del_gives_it_free)
{
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_add(self->a.dev, self->fd));
}

TEST_F(two_vms, closed_device_gives_it_free)
{
	close_fd(&self->a.dev);
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
}

TEST_F(two_vms, closed_vm_gives_it_free)
{
	vm_close(&self->a);
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
}

TEST_F(two_vms, new_device_of_the_first_is_a_stranger)
{
	close_fd(&self->a.dev);
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	self->a.dev = create_device(self->a.fd, 0);
	ASSERT_LE(0, self->a.dev);
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(0, dev_add(self->a.dev, self->fd));
	close_fd(&self->a.dev);
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->fd));
}

/* QEMU resets a confidential VM so. */
TEST_F(two_vms, handed_over_and_back)
{
	int i;

	for (i = 0; i < 20; i++) {
		ASSERT_EQ(0, dev_del(self->a.dev, self->fd));
		ASSERT_EQ(0, dev_add(self->b.dev, self->fd));
		close_fd(&self->b.dev);
		ASSERT_EQ(0, dev_add(self->a.dev, self->fd));
		self->b.dev = create_device(self->b.fd, 0);
		ASSERT_LE(0, self->b.dev);
	}
}

TEST_F(two_vms, each_its_own_group)
{
	int other;

	REQUIRE(no_groups(2));
	other = need_group(1);
	EXPECT_EQ(0, dev_add(self->b.dev, other));
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, other));
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, other));
}

/* The VMs hear together what happens to their file, and end one by one. */
FIXTURE(shared) {
	struct vm vm[64];
	int fd;
};

FIXTURE_SETUP(shared)
{
	int i;

	REQUIRE(no_groups(1));
	for (i = 0; i < 64; i++)
		self->vm[i] = NO_VM;
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	for (i = 0; i < 64; i++) {
		ASSERT_EQ(0, vm_open(&self->vm[i]));
		ASSERT_EQ(0, dev_add(self->vm[i].dev, self->fd));
	}
}

FIXTURE_TEARDOWN(shared)
{
	int i;

	for (i = 0; i < 64; i++)
		vm_close(&self->vm[i]);
}

/* All VMs that are not GONE track the file, whose state is STATE. */
static bool shared_by(const struct vm *vm, const bool *gone, int fd, int state)
{
	int i, noncoherent = state == KVM_VFIO_FILE_NOT_ENFORCED;

	for (i = 0; i < 64; i++) {
		if (!gone[i] && (!vm_state_is(&vm[i], 1, noncoherent) ||
				 !file_state_is(&vm[i], fd, state)))
			return false;
		if (gone[i] && vm[i].dev >= 0 && (!vm_state_is(&vm[i], 0, 0) ||
						  !file_state_is(&vm[i], fd, -ENOENT)))
			return false;
	}
	return true;
}

/* Under a debug kernel that takes longer than the harness allows a test. */
TEST_F_TIMEOUT(shared, all_follow_and_let_go, 180)
{
	bool gone[64] = {};
	unsigned int random = 1;
	int i, j;

	EXPECT_TRUE(shared_by(self->vm, gone, self->fd, KVM_VFIO_FILE_NOT_ATTACHED));
	ASSERT_EQ(0, group_attach(self->fd));
	EXPECT_TRUE(shared_by(self->vm, gone, self->fd, attached_state()));
	ASSERT_EQ(0, group_leave(self->fd));
	EXPECT_TRUE(shared_by(self->vm, gone, self->fd, KVM_VFIO_FILE_NOT_ATTACHED));
	ASSERT_EQ(0, group_attach(self->fd));
	for (i = 0; i < 64; i++) {
		do
			j = next_random(&random) % 64;
		while (gone[j]);
		gone[j] = true;
		if (i % 2)
			close_fd(&self->vm[j].dev);
		else
			EXPECT_EQ(0, dev_del(self->vm[j].dev, self->fd));
		ASSERT_TRUE(shared_by(self->vm, gone, self->fd, attached_state()));
	}
}

/* The process that had it first is killed: the VM of another one goes on. */
TEST_F(shared, owner_is_killed)
{
	int ready[2], status, i;
	char byte;
	pid_t child;

	for (i = 1; i < 64; i++)
		vm_close(&self->vm[i]);
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, pipe(ready));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		struct vm vm;

		if (vm_open(&vm) || dev_add(vm.dev, self->fd) ||
		    !vm_state_is(&vm, 1, host.noncoherent) || write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	EXPECT_EQ(1, read(ready[0], &byte, 1));
	EXPECT_TRUE(vm_state_is(&self->vm[0], 1, host.noncoherent));
	kill(child, SIGKILL);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_TRUE(vm_state_is(&self->vm[0], 1, host.noncoherent));
	EXPECT_EQ(-EEXIST, dev_add(self->vm[0].dev, self->fd));
	ASSERT_EQ(0, group_leave(self->fd));
	EXPECT_TRUE(vm_state_is(&self->vm[0], 1, 0));
}

/* --- Live update: another process takes a VM's device over --- */

/*
 * The calls that QEMU's cpr-transfer makes in its two processes. The old one
 * sends its VFIO files. The new one adds the group to its VM while the old VM
 * tracks it still, and tells VFIO where the memory is now. Then one of them
 * ends: the old one, or the new one if the update fails.
 */
enum order {
	ORDER_CREATE,		/* a VM whose guest executes WBINVD */
	ORDER_ASSIGN,		/* open group and device, attach, map */
	ORDER_SEND,
	ORDER_RECEIVE,
	ORDER_ADD,
	ORDER_DEL,
	ORDER_TAKE_ADDRESS,	/* memory mapped for DMA loses its address, */
	ORDER_GIVE_ADDRESS,	/* and has that of this process */
	ORDER_NONCOHERENT,	/* vm_noncoherent() */
	ORDER_STATE,		/* is what the device says true? */
	ORDER_CLOSE,
};

#define DMA_SIZE	(16 * 4096)

/* What a process has that is a VM monitor */
struct monitor {
	struct vm vm;
	int file[3];		/* group, container, device */
	int memory;		/* of both processes */
	int peer;		/* the other one */
};

static int monitor_map(struct monitor *m, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .flags = flags };
	void *memory = mmap(NULL, DMA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, m->memory, 0);

	if (memory == MAP_FAILED)
		return -errno;
	map.vaddr = (uintptr_t)memory;
	map.size = DMA_SIZE;
	return call(ioctl(m->file[1], VFIO_IOMMU_MAP_DMA, &map));
}

static int monitor_assign(struct monitor *m)
{
	int ret;

	m->file[0] = group_open_soon(0);
	m->file[1] = container_open();
	ret = group_join(m->file[0], m->file[1]);
	if (!ret)
		ret = set_iommu(m->file[1]);
	if (!ret)
		ret = monitor_map(m, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
	if (ret)
		return ret;
	m->file[2] = group_get_device(m->file[0], 0);
	return m->file[2] < 0 ? m->file[2] : 0;
}

static int monitor_take_address(struct monitor *m)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.flags = VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_VADDR,
	};

	return call(ioctl(m->file[1], VFIO_IOMMU_UNMAP_DMA, &unmap));
}

/* The three files, from one process to the other */
static int monitor_transfer(struct monitor *m, bool send)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(m->file))];
	} control = {};
	char byte = 0;
	struct iovec data = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	if (send) {
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(sizeof(m->file));
		memcpy(CMSG_DATA(head), m->file, sizeof(m->file));
		return sendmsg(m->peer, &message, 0) == 1 ? 0 : -EIO;
	}
	if (recvmsg(m->peer, &message, MSG_CMSG_CLOEXEC) != 1 ||
	    head->cmsg_type != SCM_RIGHTS || head->cmsg_len != CMSG_LEN(sizeof(m->file)))
		return -EIO;
	memcpy(m->file, CMSG_DATA(head), sizeof(m->file));
	return 0;
}

static int monitor_close(struct monitor *m)
{
	int i;

	vm_close(&m->vm);
	for (i = 2; i >= 0; i--)
		close_fd(&m->file[i]);
	return 0;
}

static int monitor_obey(struct monitor *m, enum order order)
{
	switch (order) {
	case ORDER_CREATE:
		return vm_open_guest(&m->vm);
	case ORDER_ASSIGN:
		return monitor_assign(m);
	case ORDER_SEND:
	case ORDER_RECEIVE:
		return monitor_transfer(m, order == ORDER_SEND);
	case ORDER_ADD:
		return dev_add(m->vm.dev, m->file[0]);
	case ORDER_DEL:
		return dev_del(m->vm.dev, m->file[0]);
	case ORDER_TAKE_ADDRESS:
		return monitor_take_address(m);
	case ORDER_GIVE_ADDRESS:
		return monitor_map(m, VFIO_DMA_MAP_FLAG_VADDR);
	case ORDER_NONCOHERENT:
		return vm_noncoherent(&m->vm);
	case ORDER_STATE:
		return vm_state_is(&m->vm, 1, host.noncoherent) &&
			file_state_is(&m->vm, m->file[0], attached_state());
	case ORDER_CLOSE:
		return monitor_close(m);
	}
	return -EINVAL;
}

struct process {
	pid_t pid;
	int orders;
};

/* A process that has nothing of VFIO, and does what it is told */
static int process_start(struct process *p, int memory, int peer)
{
	struct monitor m = {
		.vm = NO_VM, .file = { -1, -1, -1 }, .memory = memory, .peer = peer,
	};
	int order, answer, pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		return -errno;
	p->orders = pair[0];
	p->pid = fork();
	if (p->pid) {
		close(pair[1]);
		return call(p->pid);
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(pair[1], &order, sizeof(order)) == sizeof(order)) {
		answer = monitor_obey(&m, order);
		if (write(pair[1], &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
	_exit(0);
}

static int process_do(struct process *p, int order)
{
	int answer;

	if (send(p->orders, &order, sizeof(order), MSG_NOSIGNAL) != sizeof(order) ||
	    read(p->orders, &answer, sizeof(answer)) != sizeof(answer))
		return -EPIPE;
	return answer;
}

/* All files it had are closed when it can be waited for. */
static void process_kill(struct process *p)
{
	if (p->pid > 0) {
		kill(p->pid, SIGKILL);
		waitpid(p->pid, NULL, 0);
	}
	close_fd(&p->orders);
	p->pid = 0;
}

/* Only a container with an IOMMU knows. */
static const char *no_new_address(void)
{
	int group = group_open_soon(0);
	int container = container_open();
	bool can = !group_join(group, container) && !set_iommu(container) &&
		ioctl(container, VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR) == 1 &&
		ioctl(container, VFIO_CHECK_EXTENSION, VFIO_UNMAP_ALL) == 1;

	close(container);
	close(group);
	return can ? "" : "VFIO does not take a new address for memory";
}

FIXTURE(live_update) {
	struct process old;
	struct process new;
};

FIXTURE_VARIANT(live_update) {
	const char *name;
	bool fails;		/* and so the new one ends */
	bool killed;
};

static const FIXTURE_VARIANT(live_update) live_update_variants[] = {
	{ "old_closes", false, false },
	{ "old_is_killed", false, true },
	{ "new_closes", true, false },
	{ "new_is_killed", true, true },
};

FIXTURE_VARIANTS(live_update);

FIXTURE_SETUP(live_update)
{
	int memory, peers[2];

	self->old.orders = -1;
	self->new.orders = -1;
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(1));
	REQUIRE(no_pci(0));
	REQUIRE(no_new_address());
	memory = memfd_create("memory", 0);
	ASSERT_LE(0, memory);
	ASSERT_EQ(0, ftruncate(memory, DMA_SIZE));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, peers));
	ASSERT_LT(0, process_start(&self->old, memory, peers[0]));
	ASSERT_LT(0, process_start(&self->new, memory, peers[1]));
}

FIXTURE_TEARDOWN(live_update)
{
	process_kill(&self->old);
	process_kill(&self->new);
}

#define EXPECT_NONCOHERENT(p) do {						\
	struct process *p_ = (p);						\
										\
	EXPECT_EQ(host.noncoherent, process_do(p_, ORDER_NONCOHERENT));		\
	EXPECT_EQ(1, process_do(p_, ORDER_STATE));				\
} while (0)

TEST_F(live_update, vm_stays_what_it_is)
{
	struct process *old = &self->old, *new = &self->new;
	struct process *left = variant->fails ? old : new;
	struct process *gone = variant->fails ? new : old;

	ASSERT_EQ(0, process_do(old, ORDER_CREATE));
	ASSERT_EQ(0, process_do(old, ORDER_ASSIGN));
	ASSERT_EQ(0, process_do(old, ORDER_ADD));
	EXPECT_NONCOHERENT(old);

	ASSERT_EQ(0, process_do(old, ORDER_SEND));
	ASSERT_EQ(0, process_do(new, ORDER_RECEIVE));
	ASSERT_EQ(0, process_do(new, ORDER_CREATE));
	EXPECT_EQ(0, process_do(new, ORDER_NONCOHERENT));
	ASSERT_EQ(0, process_do(new, ORDER_ADD));
	EXPECT_EQ(-EEXIST, process_do(new, ORDER_ADD));
	EXPECT_EQ(-EEXIST, process_do(old, ORDER_ADD));
	EXPECT_NONCOHERENT(old);
	EXPECT_NONCOHERENT(new);

	ASSERT_EQ(0, process_do(old, ORDER_TAKE_ADDRESS));
	EXPECT_NONCOHERENT(old);
	EXPECT_NONCOHERENT(new);
	ASSERT_EQ(0, process_do(left, ORDER_GIVE_ADDRESS));
	EXPECT_NONCOHERENT(old);
	EXPECT_NONCOHERENT(new);

	if (!variant->killed)
		EXPECT_EQ(0, process_do(gone, ORDER_CLOSE));
	process_kill(gone);
	EXPECT_NONCOHERENT(left);
	/* It has the group to itself, and lets go of it like any other. */
	EXPECT_EQ(-EBUSY, group_open(0));
	EXPECT_EQ(-EEXIST, process_do(left, ORDER_ADD));
	EXPECT_EQ(0, process_do(left, ORDER_DEL));
	EXPECT_EQ(0, process_do(left, ORDER_NONCOHERENT));
	EXPECT_EQ(0, process_do(left, ORDER_ADD));
	EXPECT_NONCOHERENT(left);
	process_kill(left);
	EXPECT_LE(0, group_open_soon(0));
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
