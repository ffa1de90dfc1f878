// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO pseudo device while what it deals with goes away, or all happens at
 * once.
 *
 *   killed
 *	a process is killed between any two steps
 *   unbind
 *	a device is taken away from vfio-pci
 *   stress
 *	everything at once
 *   module
 *	vfio.ko comes and goes: it is unloaded with all that uses it, and loaded
 *	again, but only if nothing else needs it; the last time while all else goes on
 *   host_after
 *	and the host is as the tests found it
 *
 * See vfio_dev_test.h for what these tests need, and how they know what they say.
 */
#define _GNU_SOURCE
#include <ftw.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "vfio_dev_test.h"

/* --- A process killed between any two steps --- */

enum step {
	STEP_VM,
	STEP_OPEN,
	STEP_ADD,
	STEP_JOIN,
	STEP_IOMMU,
	STEP_RUN,
	STEP_DEVICE,
	STEP_CLOSE_GROUP,
};

FIXTURE(killed) {
};

FIXTURE_VARIANT(killed) {
	const char *name;
	enum step last;
};

static const FIXTURE_VARIANT(killed) killed_variants[] = {
	{ "after_create", STEP_VM },
	{ "after_open", STEP_OPEN },
	{ "after_add", STEP_ADD },
	{ "after_set_container", STEP_JOIN },
	{ "after_set_iommu", STEP_IOMMU },
	{ "after_run", STEP_RUN },
	{ "after_device_open", STEP_DEVICE },
	{ "after_group_close", STEP_CLOSE_GROUP },
};

FIXTURE_VARIANTS(killed);

FIXTURE_SETUP(killed)
{
	REQUIRE(no_groups(1));
	if (variant->last >= STEP_RUN)
		REQUIRE(no_guest);
	if (variant->last >= STEP_DEVICE)
		REQUIRE(no_pci(0));
}

FIXTURE_TEARDOWN(killed)
{
}

/* 0, or what went wrong in the step. */
static int do_step(enum step step, struct vm *vm, int *group, int *container)
{
	int ret;

	switch (step) {
	case STEP_VM:
		return vm_open(vm);
	case STEP_OPEN:
		*group = group_open_soon(0);
		return *group < 0 ? *group : 0;
	case STEP_ADD:
		return dev_add(vm->dev, *group);
	case STEP_JOIN:
		*container = container_open();
		return group_join(*group, *container);
	case STEP_IOMMU:
		return set_iommu(*container);
	case STEP_RUN:
		ret = vm_add_vcpu(vm, guest_wbinvd_once, sizeof(guest_wbinvd_once));
		return ret ? ret : vm_wbinvd(vm);
	case STEP_DEVICE:
		ret = group_get_device(*group, 0);
		return ret < 0 ? ret : 0;
	default:
		return call(close(*group));
	}
}

static void victim(enum step last, int tell)
{
	int group = -1, container = -1, ret = 0, step;
	struct vm vm = NO_VM;

	for (step = STEP_VM; step <= (int)last && !ret; step++)
		ret = do_step(step, &vm, &group, &container);
	if (write(tell, &ret, sizeof(ret)) == sizeof(ret))
		pause();
	_exit(1);
}

TEST_F(killed, everything_is_free)
{
	int told[2], ret = -1, group, status;
	struct vm vm;
	pid_t child;

	ASSERT_EQ(0, pipe(told));
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		victim(variant->last, told[1]);
	ASSERT_EQ(sizeof(ret), (size_t)read(told[0], &ret, sizeof(ret)));
	EXPECT_EQ(0, ret);
	kill(child, SIGKILL);
	ASSERT_EQ(child, waitpid(child, &status, 0));

	group = group_open_soon(0);
	ASSERT_LE(0, group);
	ASSERT_EQ(0, vm_open(&vm));
	EXPECT_EQ(0, dev_add(vm.dev, group));
	EXPECT_EQ(0, group_attach(group));
	EXPECT_EQ(0, dev_del(vm.dev, group));
}

/* --- A device that is taken away from vfio-pci --- */

enum unbound { UNBIND_TRACKED, UNBIND_UNTRACKED, UNBIND_ATTACHED, UNBIND_OPEN };

FIXTURE(unbind) {
	struct vm vm;
	int fd;
	int device;
};

FIXTURE_VARIANT(unbind) {
	const char *name;
	enum unbound state;
};

static const FIXTURE_VARIANT(unbind) unbind_variants[] = {
	{ "untracked", UNBIND_UNTRACKED },
	{ "tracked", UNBIND_TRACKED },
	{ "attached", UNBIND_ATTACHED },
	{ "device_open", UNBIND_OPEN },
};

FIXTURE_VARIANTS(unbind);

FIXTURE_SETUP(unbind)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(1));
	REQUIRE(no_pci(0));
	ASSERT_EQ(0, vm_open_guest(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	self->device = -1;
	if (variant->state >= UNBIND_ATTACHED)
		ASSERT_EQ(0, group_attach(self->fd));
	if (variant->state == UNBIND_OPEN) {
		self->device = group_get_device(self->fd, 0);
		ASSERT_LE(0, self->device);
	}
}

FIXTURE_TEARDOWN(unbind)
{
	vm_close(&self->vm);
	close_fd(&self->device);
	close_fd(&self->fd);
	EXPECT_EQ(0, bind_vfio_pci(host.bdf[0]));
}

/* The unbinding of an open device ends when it is closed, of another at once. */
TEST_F(unbind, races_with_add_and_del)
{
	struct unbinder u = { .bdf = host.bdf[0] };
	int i, ret;

	if (variant->state != UNBIND_UNTRACKED)
		ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, pthread_create(&u.thread, NULL, unbinder_main, &u));
	for (i = 0; i < 1000 && (i < 50 || !u.done); i++) {
		/* The file is VFIO's, whatever became of its device. */
		ret = dev_add(self->vm.dev, self->fd);
		EXPECT_TRUE(ret == 0 || ret == -EEXIST)
			TH_LOG("ADD gave %d", ret);
		EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
		if (i == 50)
			close_fd(&self->device);
	}
	/* A hang is ended by the harness. */
	pthread_join(u.thread, NULL);
	EXPECT_EQ(0, u.ret);
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
}

/* Its group has left the container with it: no DMA any more. */
TEST_F(unbind, ends_noncoherence)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	close_fd(&self->device);
	EXPECT_EQ(variant->state >= UNBIND_ATTACHED && host.noncoherent,
		  vm_noncoherent(&self->vm));
	ASSERT_EQ(0, unbind_vfio_pci(host.bdf[0]));
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
}

TEST_F(unbind, then_all_as_before)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	close_fd(&self->device);
	ASSERT_EQ(0, unbind_vfio_pci(host.bdf[0]));
	close_fd(&self->vm.dev);
	close_fd(&self->fd);
	ASSERT_EQ(0, bind_vfio_pci(host.bdf[0]));
	self->fd = group_open(0);
	ASSERT_LE(0, self->fd);
	self->vm.dev = create_device(self->vm.fd, 0);
	EXPECT_EQ(0, group_attach(self->fd));
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->vm));
}

/* --- Everything at once --- */

#define STRESS_ROUNDS	400

/* What the threads share. */
struct stress {
	atomic_int group[2];
	int container;
	atomic_bool stop;
	atomic_int bad;		/* the last result that cannot be right */
};

FIXTURE(stress) {
	struct vm a;
	struct vm b;
	struct stress shared;
};

FIXTURE_SETUP(stress)
{
	int i;

	REQUIRE(host.no_probe);
	REQUIRE(no_groups(2));
	self->b = NO_VM;
	ASSERT_EQ(0, vm_open_guest(&self->a));
	ASSERT_EQ(0, vm_open_guest(&self->b));
	for (i = 0; i < 2; i++) {
		self->shared.group[i] = need_group(i);
		ASSERT_LE(0, self->shared.group[i]);
	}
	self->shared.container = container_open();
	ASSERT_LE(0, self->shared.container);
}

FIXTURE_TEARDOWN(stress)
{
	vm_close(&self->a);
	vm_close(&self->b);
}

struct stress_job {
	pthread_t thread;
	struct stress *shared;
	struct vm *vm;
	int group;
	uint32_t random;
};

/* RET may be 0 or one of the errors, the last of which is 0. */
static void allow(struct stress_job *job, int ret, const int *errors)
{
	while (*errors && ret != *errors)
		errors++;
	if (ret != *errors)
		job->shared->bad = ret;
}

/* A closed group's number may be anybody's when it is used: EBADF, EINVAL. */
static void *stress_track(void *arg)
{
	static const int add_errors[] = { -EEXIST, -EBADF, -EINVAL, 0 };
	static const int del_errors[] = { -ENOENT, -EBADF, 0 };
	struct stress_job *job = arg;
	int i, fd;

	for (i = 0; i < STRESS_ROUNDS; i++) {
		fd = job->shared->group[next_random(&job->random) % 2];
		if (next_random(&job->random) % 2)
			allow(job, dev_add(job->vm->dev, fd), add_errors);
		else
			allow(job, dev_del(job->vm->dev, fd), del_errors);
		if (next_random(&job->random) % 16)
			continue;
		close_fd(&job->vm->dev);
		job->vm->dev = create_device(job->vm->fd, 0);
		if (job->vm->dev < 0)
			job->shared->bad = job->vm->dev;
	}
	return NULL;
}

/* Each group is moved by one thread, but SET_IOMMU may be either's. */
static void *stress_attach(void *arg)
{
	static const int open_errors[] = { -EBUSY, 0 };
	static const int errors[] = { -EINVAL, 0 };
	struct stress_job *job = arg;
	int i, fd;

	for (i = 0; i < STRESS_ROUNDS; i++) {
		fd = job->shared->group[job->group];
		if (fd < 0) {
			fd = group_open(job->group);
			allow(job, fd < 0 ? fd : 0, open_errors);
			job->shared->group[job->group] = fd < 0 ? -1 : fd;
			continue;
		}
		switch (next_random(&job->random) % 8) {
		case 0:
		case 1:
		case 2:
			allow(job, group_join(fd, job->shared->container), errors);
			break;
		case 3:
		case 4:
			allow(job, set_iommu(job->shared->container), errors);
			break;
		case 5:
		case 6:
			allow(job, group_leave(fd), errors);
			break;
		default:
			job->shared->group[job->group] = -1;
			close(fd);
		}
	}
	return NULL;
}

static void *stress_run(void *arg)
{
	struct stress_job *job = arg;

	while (!job->shared->stop)
		if (vm_wbinvd(job->vm))
			job->shared->bad = -EPROTO;
	return NULL;
}

TEST_F_TIMEOUT(stress, ends_as_it_began, 120)
{
	struct stress_job job[] = {
		{ .vm = &self->a }, { .vm = &self->b },
		{ .group = 0 }, { .group = 1 },
		{ .vm = &self->a }, { .vm = &self->b },
	};
	void *(*main[])(void *) = {
		stress_track, stress_track, stress_attach, stress_attach, stress_run, stress_run,
	};
	int i;

	for (i = 0; i < 6; i++) {
		job[i].shared = &self->shared;
		job[i].random = i;
		ASSERT_EQ(0, pthread_create(&job[i].thread, NULL, main[i], &job[i]));
	}
	for (i = 0; i < 6; i++) {
		if (i == 4)
			self->shared.stop = true;
		pthread_join(job[i].thread, NULL);
	}
	EXPECT_EQ(0, self->shared.bad);

	/* Nothing is left of it. */
	close_fd(&self->a.dev);
	close_fd(&self->b.dev);
	EXPECT_EQ(0, vm_noncoherent(&self->a));
	EXPECT_EQ(0, vm_noncoherent(&self->b));
	self->a.dev = create_device(self->a.fd, 0);
	for (i = 0; i < 2; i++) {
		if (self->shared.group[i] >= 0)
			close(self->shared.group[i]);
		self->shared.group[i] = group_open(i);
		ASSERT_LE(0, self->shared.group[i]);
		EXPECT_EQ(0, group_attach(self->shared.group[i]));
		EXPECT_EQ(0, dev_add(self->a.dev, self->shared.group[i]));
	}
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->a));
	EXPECT_EQ(0, vm_noncoherent(&self->b));
}

/* --- vfio.ko comes and goes --- */

/* What was unloaded, and the devices that lost their driver by that. */
static struct {
	char module[16][64];
	int nr_modules;
	char bdf[MAX_BOUND][32];
	int nr_bound;
} unloaded;

static int unload(const char *module)
{
	int ret = call(syscall(SYS_delete_module, module, O_NONBLOCK));

	if (!ret && unloaded.nr_modules < (int)ARRAY_SIZE(unloaded.module))
		snprintf(unloaded.module[unloaded.nr_modules++], 64, "%s", module);
	return ret;
}

/* Unload what uses the module, and what uses that. */
static int unload_holders(const char *module)
{
	char path[192];
	struct dirent *entry;
	int ret = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/module/%.64s/holders", module);
	dir = opendir(path);
	while (dir && !ret && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		ret = unload_holders(entry->d_name);
		if (!ret)
			ret = unload(entry->d_name);
		/* A holder of two of ours is gone when its turn comes. */
		if (ret == -ENOENT)
			ret = 0;
	}
	if (dir)
		closedir(dir);
	return ret;
}

static void remember_bound(void)
{
	DIR *dir = opendir("/sys/bus/pci/drivers/vfio-pci");
	struct dirent *entry;

	while (dir && (entry = readdir(dir)) && unloaded.nr_bound < MAX_BOUND)
		if (strchr(entry->d_name, ':'))
			snprintf(unloaded.bdf[unloaded.nr_bound++], 32, "%.31s",
				 entry->d_name);
	if (dir)
		closedir(dir);
}

static const char *module_wanted;
static char module_found[PATH_MAX];

/* "vfio_pci" is vfio-pci.ko or vfio_pci.ko. */
static int is_wanted(const char *path, const struct stat *s, int type, struct FTW *ftw)
{
	const char *name = path + ftw->base, *want = module_wanted;

	while (*want && (*name == *want || (*name == '-' && *want == '_'))) {
		name++;
		want++;
	}
	if (*want || strcmp(name, ".ko"))
		return 0;
	snprintf(module_found, sizeof(module_found), "%s", path);
	return 1;
}

/* modprobe knows best; where there is none, the module's file will do. */
static int load(const char *module)
{
	char text[128];
	struct utsname u;
	int fd, ret;

	snprintf(text, sizeof(text), "/sys/module/%.64s", module);
	if (!access(text, F_OK))
		return 0;
	snprintf(text, sizeof(text), "modprobe %.64s >/dev/null 2>&1", module);
	if (!system(text))
		return 0;
	uname(&u);
	snprintf(text, sizeof(text), "/lib/modules/%.64s", u.release);
	module_wanted = module;
	if (nftw(text, is_wanted, 16, FTW_PHYS) != 1)
		return -ENOENT;
	fd = open(module_found, O_RDONLY | O_CLOEXEC);
	ret = call(syscall(SYS_finit_module, fd, "", 0));
	close(fd);
	return ret;
}

static int load_all_again(void)
{
	int i, ret = 0;

	for (i = unloaded.nr_modules - 1; i >= 0 && !ret; i--)
		ret = load(unloaded.module[i]);
	for (i = 0; i < unloaded.nr_bound && !ret; i++)
		ret = bind_vfio_pci(unloaded.bdf[i]);
	unloaded.nr_modules = 0;
	return ret;
}

FIXTURE(module) {
	struct vm vm;
	int fd;
};

FIXTURE_SETUP(module)
{
	self->vm = NO_VM;
	self->fd = -1;
	REQUIRE(no_groups(1));
	REQUIRE(no_pci(0));
	if (access("/sys/module/vfio/holders", F_OK) ||
	    access("/sys/module/vfio/refcnt", F_OK))
		REQUIRE("vfio is not a module");
	ASSERT_EQ(0, vm_open(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	remember_bound();
}

FIXTURE_TEARDOWN(module)
{
	vm_close(&self->vm);
	close_fd(&self->fd);
	EXPECT_EQ(0, load_all_again())
		TH_LOG("vfio could not be loaded again, load it by hand");
}

/* Its last user is the KVM device, which holds a file that nobody else has. */
TEST_F(module, tracked_file_keeps_vfio)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	close_fd(&self->fd);
	ASSERT_EQ(0, unload_holders("vfio"));
	EXPECT_EQ(-EWOULDBLOCK, unload("vfio"));
	EXPECT_EQ(-EWOULDBLOCK, unload("vfio"));
	close_fd(&self->vm.dev);
	EXPECT_EQ(0, unload("vfio"));
}

TEST_F(module, deleted_file_does_not)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, unload_holders("vfio"));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	/* It is still open here. */
	EXPECT_EQ(-EWOULDBLOCK, unload("vfio"));
	close_fd(&self->fd);
	/* The KVM device is not. */
	EXPECT_EQ(0, unload("vfio"));
}

TEST_F(module, failed_calls_do_not)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EINVAL, dev_add(self->vm.dev, self->vm.fd));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, self->vm.fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, self->fd));
	close_fd(&self->fd);
	ASSERT_EQ(0, unload_holders("vfio"));
	EXPECT_EQ(0, unload("vfio"));
}

TEST_F(module, not_loaded)
{
	int file = open("/proc/self/exe", O_RDONLY);

	close_fd(&self->fd);
	ASSERT_EQ(0, unload_holders("vfio"));
	ASSERT_EQ(0, unload("vfio"));
	EXPECT_EQ(-EINVAL, dev_add(self->vm.dev, file));
	EXPECT_EQ(-EINVAL, dev_add(self->vm.dev, self->vm.fd));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, file));
	EXPECT_EQ(-EBADF, dev_add(self->vm.dev, -1));
	EXPECT_EQ(-EFAULT, set_attr(self->vm.dev, KVM_DEV_VFIO_FILE,
				    KVM_DEV_VFIO_FILE_ADD, NULL));
	EXPECT_EQ(0, has_attr(self->vm.dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD));
	EXPECT_TRUE(vm_state_is(&self->vm, 0, 0));
	EXPECT_TRUE(file_state_is(&self->vm, file, -ENOENT));
	EXPECT_TRUE(file_state_is(&self->vm, -1, -EBADF));
	close_fd(&self->vm.dev);
	self->vm.dev = create_device(self->vm.fd, 0);
	EXPECT_LE(0, self->vm.dev);
	EXPECT_TRUE(vm_state_is(&self->vm, 0, 0));
	EXPECT_NE(0, access("/sys/module/vfio", F_OK));
}

/* A device that is older than the vfio it works with. */
TEST_F(module, loaded_again)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	close_fd(&self->fd);
	ASSERT_EQ(0, unload_holders("vfio"));
	ASSERT_EQ(0, unload("vfio"));
	ASSERT_EQ(0, load_all_again());
	self->fd = group_open_soon(0);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, group_attach(self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
}

/* Visitors call VMs of their own, and one that they share, while vfio.ko comes and goes. */
#define VISITORS	3
#define ABSENCES	6

struct visited {
	/*
	 * The kernel's symbol_get() has a BUG_ON() that it runs into if what it has found
	 * is of a module that is freed right now. That is no matter of this device, so who
	 * has nothing open that keeps vfio.ko does not let KVM look for it just then.
	 */
	pthread_rwlock_t freeing;
	struct vm *vm;
	bool readable;			/* the device says what it knows */
	int foreign;			/* a file that is not VFIO's */
	atomic_int group[VISITORS];	/* what each has open, or had a moment ago */
	atomic_int adds;		/* of groups' files */
	atomic_bool absent;
	atomic_bool stop;
	atomic_bool failed;
	const char *what;		/* the first call whose result cannot be right */
	int result;
};

struct visitor {
	pthread_t thread;
	struct visited *shared;
	struct vm vm;
	int number;
	uint32_t random;
	atomic_int in_absence;		/* rounds that vfio.ko was not there in */
};

/* It is the test's own thread that says it. */
static void judge(struct visitor *v, bool right, const char *what, int ret)
{
	if (right || atomic_exchange(&v->shared->failed, true))
		return;
	v->shared->what = what;
	v->shared->result = ret;
}

/* How many files the VM tracks is known of a visitor's own alone: -1 is any number. */
static void visit_state(struct visitor *v, int dev, int files)
{
	struct kvm_vfio_vm_state state;
	long shown = fdinfo_number(dev, "files");
	int ret;

	if (!v->shared->readable)
		return;
	judge(v, files < 0 ? shown >= 0 && shown <= VISITORS : shown == files, "fdinfo", shown);
	ret = get_vm_state(dev, &state);
	judge(v, !ret, "STATE_VM", ret);
	if (ret)
		return;
	judge(v, files < 0 ? state.files <= VISITORS : state.files == (uint32_t)files,
	      "the files of STATE_VM", state.files);
	judge(v, state.noncoherent_files <= state.files && !state.pad &&
	      state.noncoherent == !!state.noncoherent_files,
	      "the flag of STATE_VM", state.noncoherent);
}

/* It is none of VFIO's, whether VFIO is there or not. */
static void visit_with_foreign(struct visitor *v, int dev)
{
	int ret;

	pthread_rwlock_rdlock(&v->shared->freeing);
	ret = dev_add(dev, v->shared->foreign);
	pthread_rwlock_unlock(&v->shared->freeing);
	judge(v, ret == -EINVAL, "ADD of a foreign file", ret);
	ret = dev_del(dev, v->shared->foreign);
	judge(v, ret == -ENOENT, "DEL of a foreign file", ret);
	if (!v->shared->readable)
		return;
	ret = get_file_state(dev, v->shared->foreign);
	judge(v, ret == -ENOENT, "STATE_FILE of a foreign file", ret);
}

/* Another visitor's file, which may be closed by now, and its number be anybody's */
static void visit_with_others(struct visitor *v)
{
	int fd = v->shared->group[next_random(&v->random) % VISITORS];
	int dev = v->shared->vm->dev, ret;

	if (v->shared->readable) {
		ret = get_file_state(dev, fd);
		judge(v, ret >= 0 || ret == -ENOENT || ret == -EBADF,
		      "STATE_FILE of another one's file", ret);
	}
	ret = dev_del(dev, fd);
	judge(v, ret == 0 || ret == -ENOENT || ret == -EBADF, "DEL of another one's file", ret);
}

/* A process that is being started to load a module has copies of all files for a moment. */
static int create_device_soon(int vm)
{
	int tries, dev = -EBUSY;

	for (tries = 0; tries < 2000 && dev == -EBUSY; tries++) {
		if (tries)
			sleep_ms(1);
		dev = create_device(vm, 0);
	}
	return dev;
}

/*
 * The file is VFIO's, whatever becomes of its devices, and vfio.ko is there as long as it
 * is open. Others may delete it from the shared VM, but nobody else adds it.
 */
static void visit_with_group(struct visitor *v, int fd)
{
	int shared = v->shared->vm->dev, ret;

	ret = dev_add(v->vm.dev, fd);
	judge(v, ret == 0, "ADD", ret);
	ret = dev_add(v->vm.dev, fd);
	judge(v, ret == -EEXIST, "ADD for a second time", ret);
	ret = dev_add(shared, fd);
	judge(v, ret == 0, "ADD to the shared VM", ret);
	v->shared->group[v->number] = fd;
	v->shared->adds++;
	/* Nor does it matter whether that succeeds. */
	if (next_random(&v->random) % 4 == 0)
		group_attach(fd);
	visit_state(v, v->vm.dev, 1);
	visit_state(v, shared, -1);
	if (v->shared->readable) {
		ret = get_file_state(v->vm.dev, fd);
		judge(v, ret >= 0 && ret <= KVM_VFIO_FILE_NOT_ENFORCED, "STATE_FILE", ret);
	}
	ret = dev_del(shared, fd);
	judge(v, ret == 0 || ret == -ENOENT, "DEL from the shared VM", ret);
	if (next_random(&v->random) % 4) {
		ret = dev_del(v->vm.dev, fd);
		judge(v, ret == 0, "DEL", ret);
		return;
	}
	close_fd(&v->vm.dev);
	v->vm.dev = create_device_soon(v->vm.fd);
	judge(v, v->vm.dev >= 0, "KVM_CREATE_DEVICE", v->vm.dev);
}

static void *visitor_main(void *arg)
{
	struct visitor *v = arg;
	bool absent;
	int fd;

	while (!v->shared->stop) {
		absent = v->shared->absent;
		/* One that somebody has, or that is gone, does not open. */
		fd = group_open(next_random(&v->random) % host.nr_groups);
		if (fd >= 0) {
			visit_with_group(v, fd);
			close(fd);
		}
		visit_with_foreign(v, v->vm.dev);
		visit_with_foreign(v, v->shared->vm->dev);
		visit_with_others(v);
		visit_state(v, v->vm.dev, 0);
		visit_state(v, v->shared->vm->dev, -1);
		if (absent && v->shared->absent)
			v->in_absence++;
	}
	return NULL;
}

/* As long as somebody has a group or a container open, it is in use. */
static int unload_vfio_soon(struct visited *shared)
{
	int tries, ret = -EWOULDBLOCK;

	for (tries = 0; tries < 1000 && ret == -EWOULDBLOCK; tries++) {
		if (tries)
			sleep_ms(1);
		ret = unload_holders("vfio");
		if (ret)
			continue;
		pthread_rwlock_wrlock(&shared->freeing);
		ret = unload("vfio");
		pthread_rwlock_unlock(&shared->freeing);
	}
	return ret;
}

/* Until each of them has been there some times */
static void await_visits(struct visitor *visitors)
{
	int before[VISITORS], i, ms;

	for (i = 0; i < VISITORS; i++)
		before[i] = visitors[i].in_absence;
	for (i = 0, ms = 0; i < VISITORS && ms < 5000; ms++) {
		if (visitors[i].in_absence >= before[i] + 5)
			i++;
		else
			sleep_ms(1);
	}
}

/* Until one of them has had a group, which is bound again */
static void await_adds(struct visited *shared)
{
	int before = shared->adds, ms;

	for (ms = 0; ms < 5000 && shared->adds < before + 5; ms++)
		sleep_ms(1);
}

/* 0, or the first error: nobody keeps vfio.ko for long, and it can be loaded again. */
static int come_and_go(struct visited *shared, struct visitor *visitors)
{
	int i, ret = 0;

	for (i = 0; i < ABSENCES && !ret && !shared->failed; i++) {
		await_adds(shared);
		ret = unload_vfio_soon(shared);
		shared->absent = !ret;
		if (!ret)
			await_visits(visitors);
		shared->absent = false;
		if (!ret)
			ret = load_all_again();
	}
	return ret;
}

static long vfio_references(void)
{
	char text[32];
	int ret = read_file("/sys/module/vfio/refcnt", text, sizeof(text));

	return ret ? ret : atol(text);
}

/* The last one may be put a moment after its owner has gone. */
static long vfio_references_soon(long expected)
{
	int tries;

	for (tries = 0; tries < 200 && vfio_references() != expected; tries++)
		sleep_ms(10);
	return vfio_references();
}

TEST_F_TIMEOUT(module, comes_and_goes, 120)
{
	struct visited shared = {
		.freeing = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP,
		.vm = &self->vm,
		.readable = !*no_state(&self->vm),
		.foreign = open("/proc/self/exe", O_RDONLY | O_CLOEXEC),
		.group = { -1, -1, -1 },
	};
	struct visitor visitors[VISITORS] = {};
	long references;
	int i, ret;

	close_fd(&self->fd);
	references = vfio_references();
	for (i = 0; i < VISITORS; i++) {
		visitors[i].shared = &shared;
		visitors[i].number = i;
		visitors[i].random = i;
		ASSERT_EQ(0, vm_open(&visitors[i].vm));
	}
	for (i = 0; i < VISITORS; i++)
		ASSERT_EQ(0, pthread_create(&visitors[i].thread, NULL, visitor_main,
					    &visitors[i]));
	ret = come_and_go(&shared, visitors);
	shared.stop = true;
	for (i = 0; i < VISITORS; i++)
		pthread_join(visitors[i].thread, NULL);
	EXPECT_EQ(0, ret);
	EXPECT_FALSE(shared.failed)
		TH_LOG("%s gave %d", shared.what, shared.result);
	for (i = 0; i < VISITORS; i++)
		EXPECT_LE(ABSENCES, visitors[i].in_absence);

	/* Nothing is left of it, and all goes on. */
	ASSERT_EQ(0, load_all_again());
	EXPECT_EQ(references, vfio_references_soon(references));
	self->fd = group_open_soon(0);
	ASSERT_LE(0, self->fd);
	EXPECT_TRUE(vm_state_is(&self->vm, 0, 0));
	for (i = 0; i < VISITORS; i++) {
		EXPECT_TRUE(vm_state_is(&visitors[i].vm, 0, 0));
		EXPECT_EQ(0, dev_add(visitors[i].vm.dev, self->fd));
		EXPECT_EQ(0, dev_del(visitors[i].vm.dev, self->fd));
	}
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	close_fd(&self->fd);
	/* The devices are open, and do not keep it. */
	ASSERT_EQ(0, unload_holders("vfio"));
	EXPECT_EQ(0, unload("vfio"));
	for (i = 0; i < VISITORS; i++)
		vm_close(&visitors[i].vm);
	close(shared.foreign);
}

/* --- And the host is as the tests found it --- */

FIXTURE(host_after) {
};

FIXTURE_SETUP(host_after)
{
	REQUIRE(no_groups(1));
}

FIXTURE_TEARDOWN(host_after)
{
}

TEST_F(host_after, every_group_opens)
{
	int i, fd;

	for (i = 0; i < host.nr_groups; i++) {
		fd = group_open_soon(i);
		EXPECT_LE(0, fd);
		close(fd);
	}
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
