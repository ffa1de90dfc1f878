// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO pseudo device: what it says of itself, and that it says the truth.
 *
 *   state
 *	KVM_DEV_VFIO_STATE and /proc/PID/fdinfo
 *   stats
 *	the statistics of VM and vCPU
 *
 * See vfio_dev_test.h for what these tests need, and how they know what they say.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/sched.h>

#include "vfio_dev_test.h"

/* --- What the device says of itself --- */

FIXTURE(state) {
	struct vm vm;
	int fd;
};

FIXTURE_SETUP(state)
{
	REQUIRE(host.no_kvm);
	REQUIRE(no_groups(1));
	ASSERT_EQ(0, vm_open(&self->vm));
	REQUIRE(no_state(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(state)
{
	vm_close(&self->vm);
}

TEST_F(state, has)
{
	EXPECT_EQ(0, has_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM));
	EXPECT_EQ(0, has_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_FILE));
}

TEST_F(state, unknown_is_enxio)
{
	static const uint64_t unknown[] = {
		0, 3, ~0ULL, 1ULL << 32 | KVM_DEV_VFIO_STATE_VM,
		1ULL << 32 | KVM_DEV_VFIO_STATE_FILE,
	};
	uint64_t buf[4] = { 0 };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(unknown); i++) {
		EXPECT_EQ(-ENXIO, has_attr(self->vm.dev, KVM_DEV_VFIO_STATE, unknown[i]));
		EXPECT_EQ(-ENXIO, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, unknown[i], buf));
		EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, KVM_DEV_VFIO_STATE, unknown[i], buf));
	}
	EXPECT_EQ(-ENXIO, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE + 1,
				   KVM_DEV_VFIO_STATE_VM, buf));
	EXPECT_EQ(0, buf[0] | buf[1] | buf[2] | buf[3]);
}

TEST_F(state, read_only)
{
	struct kvm_vfio_file_state file = { .fd = self->fd };
	struct kvm_vfio_vm_state vm = { .noncoherent = 1, .files = 1 };

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, KVM_DEV_VFIO_STATE,
				   KVM_DEV_VFIO_STATE_VM, &vm));
	EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, KVM_DEV_VFIO_STATE,
				   KVM_DEV_VFIO_STATE_FILE, &file));
	EXPECT_EQ(0, get_vm_state(self->vm.dev, &vm));
	EXPECT_EQ(0, vm.noncoherent);
	EXPECT_EQ(1, vm.files);
}

/* All that is written has been set, and nothing beyond it is. */
TEST_F(state, writes_its_size)
{
	struct { struct kvm_vfio_vm_state state; uint32_t after; } vm;
	struct { struct kvm_vfio_file_state state; uint32_t after; } file;

	ASSERT_EQ(16, sizeof(vm.state));
	ASSERT_EQ(8, sizeof(file.state));
	memset(&vm, 0xff, sizeof(vm));
	memset(&file, 0xff, sizeof(file));
	file.state.fd = self->fd;

	EXPECT_EQ(0, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM, &vm));
	EXPECT_EQ(0, vm.state.noncoherent);
	EXPECT_EQ(0, vm.state.files);
	EXPECT_EQ(0, vm.state.noncoherent_files);
	EXPECT_EQ(0, vm.state.pad);
	EXPECT_EQ(0xffffffff, vm.after);

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_FILE,
			      &file));
	EXPECT_EQ(self->fd, file.state.fd);
	EXPECT_EQ(KVM_VFIO_FILE_NOT_ATTACHED, file.state.coherency);
	EXPECT_EQ(0xffffffff, file.after);
}

/* The ABI as numbers, whatever a header calls them */
TEST_F(state, words_have_their_places)
{
	uint32_t vm[4], file[2] = { self->fd, 0xffffffff };
	int other;

	EXPECT_EQ(0, offsetof(struct kvm_vfio_vm_state, noncoherent));
	EXPECT_EQ(4, offsetof(struct kvm_vfio_vm_state, files));
	EXPECT_EQ(8, offsetof(struct kvm_vfio_vm_state, noncoherent_files));
	EXPECT_EQ(12, offsetof(struct kvm_vfio_vm_state, pad));
	EXPECT_EQ(0, offsetof(struct kvm_vfio_file_state, fd));
	EXPECT_EQ(4, offsetof(struct kvm_vfio_file_state, coherency));

	REQUIRE(no_groups(2));
	other = need_group(1);
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	ASSERT_EQ(0, group_attach(self->fd));
	EXPECT_EQ(0, get_attr(self->vm.dev, 0x1000, 2, file));
	EXPECT_EQ(self->fd, file[0]);
	EXPECT_EQ(1 + host.noncoherent, file[1]);
	EXPECT_EQ(0, get_attr(self->vm.dev, 0x1000, 1, vm));
	EXPECT_EQ(host.noncoherent, vm[0]);
	EXPECT_EQ(2, vm[1]);
	EXPECT_EQ(host.noncoherent, vm[2]);
	EXPECT_EQ(0, vm[3]);

	ASSERT_EQ(0, group_attach(other));
	EXPECT_EQ(0, get_attr(self->vm.dev, 0x1000, 1, vm));
	EXPECT_EQ(host.noncoherent, vm[0]);
	EXPECT_EQ(2 * host.noncoherent, vm[2]);
}

TEST_F(state, bad_address_is_efault)
{
	static const uint64_t attrs[] = { KVM_DEV_VFIO_STATE_VM, KVM_DEV_VFIO_STATE_FILE };
	size_t i;
	char *page;

	page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)page);
	ASSERT_EQ(0, munmap(page + 4096, 4096));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < ARRAY_SIZE(attrs); i++) {
		EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, attrs[i], NULL));
		EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, attrs[i],
					    (void *)0xffffffff81000000UL));
		EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, attrs[i],
					    page + 4096));
		/* Its first half is there. */
		EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, attrs[i],
					    page + 4096 - 4));
	}
}

/* Readable, so the descriptor is found, but the answer cannot be written. */
TEST_F(state, read_only_address_is_efault)
{
	struct kvm_vfio_file_state *state;

	state = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)state);
	state->fd = self->fd;
	state->coherency = 0xffffffff;
	ASSERT_EQ(0, mprotect(state, 4096, PROT_READ));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_FILE,
				    state));
	EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM,
				    state));
	EXPECT_EQ(0xffffffff, state->coherency);
}

TEST_F(state, file_errors)
{
	struct kvm_vfio_file_state state = { .fd = self->fd, .coherency = 0xffffffff };
	struct vm other;

	EXPECT_EQ(-EBADF, get_file_state(self->vm.dev, -1));
	EXPECT_EQ(-ENOENT, get_file_state(self->vm.dev, self->vm.fd));
	EXPECT_EQ(-ENOENT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE,
				    KVM_DEV_VFIO_STATE_FILE, &state));
	EXPECT_EQ(0xffffffff, state.coherency);

	ASSERT_EQ(0, vm_open(&other));
	ASSERT_EQ(0, dev_add(other.dev, self->fd));
	EXPECT_EQ(-ENOENT, get_file_state(self->vm.dev, self->fd));
	EXPECT_EQ(KVM_VFIO_FILE_NOT_ATTACHED, get_file_state(other.dev, self->fd));
	vm_close(&other);
}

TEST_F(state, by_copy_of_the_descriptor)
{
	int copy = dup(self->fd);

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(KVM_VFIO_FILE_NOT_ATTACHED, get_file_state(self->vm.dev, copy));
	close(copy);
}

TEST_F(state, other_process_gets_eio)
{
	struct kvm_vfio_vm_state state;
	int status;
	pid_t child = fork();

	if (!child)
		_exit(get_vm_state(self->vm.dev, &state) != -EIO);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
}

/* Many ask while the state changes: each answer is one that there was. */
struct asker {
	pthread_t thread;
	int dev;
	int fd;
	atomic_bool stop;
	int wrong;
};

static void *asker_main(void *arg)
{
	struct kvm_vfio_vm_state state;
	struct asker *a = arg;
	char text[256];
	int ret;

	while (!a->stop) {
		ret = get_vm_state(a->dev, &state);
		if (ret || state.noncoherent != state.noncoherent_files || state.files > 1 ||
		    state.noncoherent > state.files)
			a->wrong++;
		ret = get_file_state(a->dev, a->fd);
		if (ret != -ENOENT && (ret < 0 || ret > KVM_VFIO_FILE_NOT_ENFORCED))
			a->wrong++;
		ret = fdinfo(a->dev, "files", 0, text, sizeof(text));
		if (ret || atoi(text) > 1)
			a->wrong++;
	}
	return NULL;
}

TEST_F(state, is_one_that_there_was)
{
	struct asker a = { .dev = self->vm.dev, .fd = self->fd };
	int i;

	ASSERT_EQ(0, pthread_create(&a.thread, NULL, asker_main, &a));
	for (i = 0; i < 100; i++) {
		EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
		EXPECT_EQ(0, group_attach(self->fd));
		EXPECT_EQ(0, i % 2 ? dev_del(self->vm.dev, self->fd) : group_leave(self->fd));
		EXPECT_EQ(0, i % 2 ? group_leave(self->fd) : dev_del(self->vm.dev, self->fd));
	}
	a.stop = true;
	pthread_join(a.thread, NULL);
	EXPECT_EQ(0, a.wrong);
}

#ifdef __x86_64__
/* ioctl(2) as a 32-bit program calls it; all its pointers are below 4 GiB. */
static int ioctl_32(int fd, unsigned int request, void *arg)
{
	long ret;

	asm volatile("int $0x80" : "=a"(ret) :
		     "a"(54L), "b"((long)fd), "c"((long)request), "d"(arg) :
		     "memory", "r8", "r9", "r10", "r11");
	return (int)ret;
}

struct low {
	struct kvm_device_attr attr;
	union {
		struct kvm_vfio_vm_state vm;
		struct kvm_vfio_file_state file;
	};
};

/* Without that, the instruction is a fault. */
static const char *no_32_bit(void)
{
	int status;
	pid_t child = fork();

	if (!child) {
		ioctl_32(-1, 0, NULL);
		_exit(0);
	}
	waitpid(child, &status, 0);
	return status ? "the kernel runs no 32-bit programs" : "";
}

TEST_F(state, of_a_32_bit_program)
{
	struct low *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	REQUIRE(no_32_bit());
	ASSERT_NE(MAP_FAILED, (void *)low);
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, group_attach(self->fd));
	low->attr.group = KVM_DEV_VFIO_STATE;
	low->attr.attr = KVM_DEV_VFIO_STATE_VM;
	low->attr.addr = (uintptr_t)&low->vm;
	ASSERT_EQ(0, ioctl_32(self->vm.dev, KVM_GET_DEVICE_ATTR, &low->attr));
	EXPECT_EQ(host.noncoherent, low->vm.noncoherent);
	EXPECT_EQ(1, low->vm.files);
	EXPECT_EQ(host.noncoherent, low->vm.noncoherent_files);
	EXPECT_EQ(0, low->vm.pad);

	low->attr.attr = KVM_DEV_VFIO_STATE_FILE;
	low->file.fd = self->fd;
	ASSERT_EQ(0, ioctl_32(self->vm.dev, KVM_GET_DEVICE_ATTR, &low->attr));
	EXPECT_EQ(host.noncoherent ? KVM_VFIO_FILE_NOT_ENFORCED : KVM_VFIO_FILE_ENFORCED,
		  low->file.coherency);
}
#endif

TEST_F(state, fdinfo)
{
	char value[256], expected[256];

	EXPECT_EQ(0, fdinfo_number(self->vm.dev, "noncoherent"));
	EXPECT_EQ(0, fdinfo_number(self->vm.dev, "files"));
	EXPECT_EQ(0, fdinfo_number(self->vm.dev, "noncoherent_files"));
	EXPECT_EQ(-ENOENT, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	snprintf(expected, sizeof(expected), "/dev/vfio/%d not-attached", host.group[0]);
	EXPECT_EQ(0, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));
	EXPECT_STREQ(expected, value);
	EXPECT_EQ(1, fdinfo_number(self->vm.dev, "files"));

	ASSERT_EQ(0, group_attach(self->fd));
	snprintf(expected, sizeof(expected), "/dev/vfio/%d %s", host.group[0],
		 host.noncoherent ? "not-enforced" : "enforced");
	EXPECT_EQ(0, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));
	EXPECT_STREQ(expected, value);
	EXPECT_EQ(-ENOENT, fdinfo(self->vm.dev, "file", 1, value, sizeof(value)));
	EXPECT_EQ(host.noncoherent, fdinfo_number(self->vm.dev, "noncoherent"));
	EXPECT_EQ(host.noncoherent, fdinfo_number(self->vm.dev, "noncoherent_files"));
}

/* Of what is no such device, as it was before */
TEST_F(state, fdinfo_of_a_vcpu_or_vm)
{
	static const char * const keys[] = {
		"vm", "noncoherent", "files", "noncoherent_files", "file",
	};
	char value[256];
	size_t i;

	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < ARRAY_SIZE(keys); i++) {
		EXPECT_EQ(0, fdinfo(self->vm.dev, keys[i], 0, value, sizeof(value)));
		EXPECT_EQ(-ENOENT, fdinfo(self->vm.fd, keys[i], 0, value, sizeof(value)));
		EXPECT_EQ(-ENOENT, fdinfo(self->vm.vcpu, keys[i], 0, value, sizeof(value)));
	}
}

/* By that, an administrator finds the VM's directory in debugfs. */
TEST_F(state, fdinfo_names_the_vm)
{
	struct creator c = { .open = vm_open };
	char path[64];

	if (access("/sys/kernel/debug/kvm", F_OK))
		REQUIRE("debugfs is not mounted");
	EXPECT_EQ(getpid(), fdinfo_number(self->vm.dev, "vm"));
	ASSERT_EQ(0, create_in_thread(&c));
	EXPECT_NE(getpid(), c.tid);
	EXPECT_EQ(c.tid, fdinfo_number(c.vm.dev, "vm"));
	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%ld-%d",
		 fdinfo_number(c.vm.dev, "vm"), c.vm.fd);
	EXPECT_EQ(0, access(path, F_OK));
	vm_close(&c.vm);
}

/*
 * A child that is the first process of its PID namespace, and number @pid in ours
 * if that is not 0.  It shares our file descriptors, and has a mount namespace of its own.
 */
static pid_t fork_namespace(pid_t pid)
{
	pid_t numbers[] = { 1, pid };
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_FILES,
		.exit_signal = SIGCHLD,
		.set_tid = pid ? (uintptr_t)numbers : 0,
		.set_tid_size = pid ? ARRAY_SIZE(numbers) : 0,
	};

	return call(syscall(SYS_clone3, &args, sizeof(args)));
}

/* What fdinfo calls the VM of a device, for a process of another PID namespace */
struct said {
	long by_our_proc;
	long by_own_proc;
	long to_child;
	int dev;
};

static void *shared_memory(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void ask_for_vm(struct said *said)
{
	said->by_our_proc = fdinfo_number(said->dev, "vm");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("proc", "/proc", "proc", 0, NULL))
		said->by_own_proc = -errno;
	else
		said->by_own_proc = fdinfo_number(said->dev, "vm");
}

/* A number that means nothing, or another process, where it is read is not told. */
TEST_F(state, fdinfo_names_no_vm_of_another_namespace)
{
	struct said *said = shared_memory(sizeof(*said));
	int status;
	pid_t child;

	ASSERT_NE(MAP_FAILED, (void *)said);
	said->dev = self->vm.dev;
	child = fork_namespace(0);
	if (!child) {
		ask_for_vm(said);
		_exit(0);
	}
	ASSERT_LT(0, child);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, said->by_our_proc);
	EXPECT_EQ(0, said->by_own_proc);
	EXPECT_EQ(getpid(), fdinfo_number(self->vm.dev, "vm"));
}

/* In its own namespace the creator has another number than in ours. */
TEST_F(state, fdinfo_names_the_vm_in_each_namespace)
{
	struct said *said = shared_memory(sizeof(*said));
	struct vm vm;
	int status;
	pid_t child;

	ASSERT_NE(MAP_FAILED, (void *)said);
	child = fork_namespace(0);
	if (!child) {
		if (vm_open(&vm))
			_exit(1);
		said->dev = vm.dev;
		ask_for_vm(said);
		child = fork();
		if (!child) {
			said->to_child = fdinfo_number(vm.dev, "vm");
			_exit(0);
		}
		_exit(waitpid(child, &status, 0) != child || status);
	}
	ASSERT_LT(0, child);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(1, said->by_our_proc);
	EXPECT_EQ(1, said->by_own_proc);
	EXPECT_EQ(1, said->to_child);
	EXPECT_EQ(child, fdinfo_number(said->dev, "vm"));
}

/*
 * The thread that created the VM has ended before there was a device, and another
 * process, which is somebody else in its own namespace, has got its number.
 */
TEST_F(state, fdinfo_names_no_other_process)
{
	struct said *said = shared_memory(sizeof(*said));
	struct creator c = { .open = vm_open_without_device };
	int status, go[2], tries = 1000;
	pid_t child;

	ASSERT_NE(MAP_FAILED, (void *)said);
	ASSERT_EQ(0, pipe(go));
	ASSERT_EQ(0, create_in_thread(&c));
	/* A thread that has been joined may yet have to give its number free. */
	while ((child = fork_namespace(c.tid)) == -EEXIST && tries--)
		sleep_ms(10);
	if (!child) {
		if (read(go[0], &said->dev, sizeof(said->dev)) != sizeof(said->dev))
			_exit(1);
		ask_for_vm(said);
		_exit(0);
	}
	ASSERT_EQ(c.tid, child);
	c.vm.dev = create_device(c.vm.fd, 0);
	EXPECT_LE(0, c.vm.dev);
	EXPECT_EQ(sizeof(c.vm.dev), write(go[1], &c.vm.dev, sizeof(c.vm.dev)));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, said->by_our_proc);
	EXPECT_EQ(0, said->by_own_proc);
	/* As the directory in debugfs */
	EXPECT_EQ(c.tid, fdinfo_number(c.vm.dev, "vm"));
	vm_close(&c.vm);
}

/* Is the Nth file listed that of a group? */
static bool fdinfo_has(int dev, int nth, int group)
{
	char value[256], path[64];
	int size = snprintf(path, sizeof(path), "/dev/vfio/%d ", host.group[group]);

	return !fdinfo(dev, "file", nth, value, sizeof(value)) && !strncmp(value, path, size);
}

TEST_F(state, fdinfo_in_order_of_add)
{
	int other;

	REQUIRE(no_groups(2));
	other = need_group(1);
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_TRUE(fdinfo_has(self->vm.dev, 0, 1));
	EXPECT_TRUE(fdinfo_has(self->vm.dev, 1, 0));
	/* Gone and back, it is the last one. */
	ASSERT_EQ(0, dev_del(self->vm.dev, other));
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	EXPECT_TRUE(fdinfo_has(self->vm.dev, 0, 0));
	EXPECT_TRUE(fdinfo_has(self->vm.dev, 1, 1));
}

/* Nor does a name break the line, or what a script makes of it. */
TEST_F(state, fdinfo_escapes_blanks)
{
	static const char dir[] = "/dev/vfio_dev_test a", name[] = "b\tc\nd\\e";
	char value[256];

	close_fd(&self->fd);
	self->fd = group_open_as(0, dir, name);
	if (self->fd < 0)
		group_unlink(dir, name);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));
	EXPECT_STREQ("/dev/vfio_dev_test\\040a/b\\011c\\012d\\134e not-attached", value);
	group_unlink(dir, name);
	EXPECT_EQ(0, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));
	EXPECT_STREQ("/dev/vfio_dev_test\\040a/b\\011c\\012d\\134e\\040(deleted) not-attached",
		     value);
}

/* --- Statistics --- */

FIXTURE(stats) {
	struct vm vm;
	int fd;
};

FIXTURE_SETUP(stats)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(1));
	ASSERT_EQ(0, vm_open_guest(&self->vm));
	REQUIRE(no_state(&self->vm));
	if (access("/sys/kernel/debug/kvm", F_OK))
		REQUIRE("debugfs is not mounted");
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(stats)
{
	pin(-1);
	vm_close(&self->vm);
}

TEST_F(stats, wbinvd_while_coherent)
{
	int i;

	for (i = 0; i < 7; i++)
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(7, binary_stat(self->vm.vcpu, "wbinvd_exits"));
	EXPECT_EQ(0, binary_stat(self->vm.vcpu, "wbinvd_flushes"));
	EXPECT_EQ(0, binary_stat(self->vm.vcpu, "wbinvd_ipis"));
	EXPECT_EQ(7, debugfs_stat(&self->vm, "wbinvd_exits"));
	/* The VM of find_kvm() has been here from the start. */
	EXPECT_LE(7, debugfs_stat(NULL, "wbinvd_exits"));
}

TEST_F(stats, wbinvd_while_attached)
{
	long before = hits();
	int i;

	pin(0);
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < 5; i++)
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(5, binary_stat(self->vm.vcpu, "wbinvd_exits"));
	EXPECT_EQ(host.noncoherent ? 5 : 0, binary_stat(self->vm.vcpu, "wbinvd_flushes"));
	EXPECT_EQ(host.noncoherent ? 5 : 0, debugfs_stat(&self->vm, "wbinvd_flushes"));
	/* On the CPU it runs on and was created on: nobody to interrupt */
	EXPECT_EQ(hits() - before - debugfs_stat(&self->vm, "noncoherent_dma_flushes"),
		  binary_stat(self->vm.vcpu, "wbinvd_flushes") +
		  binary_stat(self->vm.vcpu, "wbinvd_ipis"));
}

TEST_F(stats, ipis)
{
	long ipis;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	pin(0);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	ipis = binary_stat(self->vm.vcpu, "wbinvd_ipis");
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(ipis, binary_stat(self->vm.vcpu, "wbinvd_ipis"));
	pin(1);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(ipis + host.noncoherent, binary_stat(self->vm.vcpu, "wbinvd_ipis"));
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(ipis + host.noncoherent, binary_stat(self->vm.vcpu, "wbinvd_ipis"));
}

TEST_F(stats, changes)
{
	long vms = debugfs_stat(NULL, "noncoherent_dma");
	int i;

	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));
		EXPECT_EQ(vms, debugfs_stat(NULL, "noncoherent_dma"));
		EXPECT_EQ(host.noncoherent ? 2 * i : 0,
			  debugfs_stat(&self->vm, "noncoherent_dma_changes"));
		ASSERT_EQ(0, group_attach(self->fd));
		ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
		EXPECT_EQ(host.noncoherent, debugfs_stat(&self->vm, "noncoherent_dma"));
		EXPECT_EQ(vms + host.noncoherent, debugfs_stat(NULL, "noncoherent_dma"));
		EXPECT_EQ(host.noncoherent ? 2 * i + 1 : 0,
			  debugfs_stat(&self->vm, "noncoherent_dma_changes"));
		ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
		ASSERT_EQ(0, group_leave(self->fd));
	}
}

TEST_F(stats, owed_flushes)
{
	long before;

	REQUIRE(no_cpus(2));
	pin(0);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	pin(1);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	before = hits();
	ASSERT_EQ(0, group_attach(self->fd));
	EXPECT_EQ(hits() - before, debugfs_stat(&self->vm, "noncoherent_dma_flushes"));
	if (host.noncoherent)
		EXPECT_LE(2, hits() - before);
}

/* Only EPT has memory types that depend on it. */
TEST_F(stats, zaps)
{
	long zaps;

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, group_attach(self->fd));
	zaps = debugfs_stat(&self->vm, "noncoherent_dma_zaps");
	EXPECT_TRUE(!zaps || zaps == host.noncoherent)
		TH_LOG("%ld zaps", zaps);
	EXPECT_EQ(!zaps, !debugfs_stat(&self->vm, "noncoherent_dma_zap_ns"));
}

TEST_F(stats, are_read_only)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/noncoherent_dma", getpid(),
		 self->vm.fd);
	EXPECT_GT(0, write_file(path, "1"));
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
