// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO pseudo device: its tracepoints.
 *
 * See vfio_dev_test.h for what these tests need, and how they know what they say.
 */
#define _GNU_SOURCE
#include <sys/stat.h>
#include <sys/wait.h>

#include "vfio_dev_test.h"

/* --- What trace-cmd, perf and bpftrace see --- */

#define TRACEFS		"/sys/kernel/tracing"
#define TRACE_INSTANCE	TRACEFS "/instances/vfio_dev_test"

FIXTURE(trace) {
	struct vm vm;
	int fd;
	FILE *pipe;
};

static int trace_write(const char *file, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), TRACE_INSTANCE "/%s", file);
	return write_file(path, text);
}

/* An instance of our own, which shows events in their order and without context. */
static int trace_open(FILE **pipe)
{
	int ret, fd;

	/* Of a test that was killed */
	rmdir(TRACE_INSTANCE);
	ret = call(mkdir(TRACE_INSTANCE, 0700));
	if (!ret)
		ret = trace_write("trace_clock", "counter");
	if (!ret)
		ret = trace_write("trace_options", "nocontext-info");
	if (!ret)
		ret = trace_write("events/kvm_vfio/enable", "1");
	if (ret)
		return ret;
	fd = call(open(TRACE_INSTANCE "/trace_pipe", O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	if (fd < 0)
		return fd;
	*pipe = fdopen(fd, "r");
	return *pipe ? 0 : -ENOMEM;
}

FIXTURE_SETUP(trace)
{
	self->pipe = NULL;
	self->fd = -1;
	REQUIRE(no_groups(1));
	if (access(TRACEFS "/instances", F_OK))
		REQUIRE("tracefs is not mounted");
	ASSERT_EQ(0, vm_open(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	/* Where they are missing, that is what fails. */
	ASSERT_EQ(0, access(TRACEFS "/events/kvm_vfio", F_OK));
	ASSERT_EQ(0, trace_open(&self->pipe));
}

FIXTURE_TEARDOWN(trace)
{
	pin(-1);
	vm_close(&self->vm);
	fclose(self->pipe);
	EXPECT_EQ(0, rmdir(TRACE_INSTANCE));
}

/* The oldest event that was not asked for yet, or "" */
static const char *next_event(FILE *pipe)
{
	static char line[256];

	clearerr(pipe);
	if (!fgets(line, sizeof(line), pipe))
		return "";
	line[strcspn(line, "\n")] = 0;
	return line;
}

/* What such an event is to look like */
static const char *file_event(pid_t vm, const char *what, int fd, const char *file, int ret,
			      bool noncoherent)
{
	static char text[256];

	snprintf(text, sizeof(text), "kvm_vfio_file: vm %d %s fd %d file %s ret %d, vm %s", vm,
		 what, fd, file, ret, noncoherent ? "non-coherent" : "coherent");
	return text;
}

static const char *coherency_event(pid_t vm, const char *file, int coherency,
				   int noncoherent_files)
{
	static const char * const words[] = { "not-attached", "enforced", "not-enforced" };
	static char text[256];

	snprintf(text, sizeof(text),
		 "kvm_vfio_coherency: vm %d file %s %s, vm %s (%d non-coherent files)", vm, file,
		 words[coherency], noncoherent_files ? "non-coherent" : "coherent",
		 noncoherent_files);
	return text;
}

static const char *wbinvd_event(pid_t vm, int cpus)
{
	static char text[256];

	snprintf(text, sizeof(text), "kvm_wbinvd: vm %d vcpu 0 %s (%d CPUs)", vm,
		 cpus ? "executed" : "skipped", cpus);
	return text;
}

/* As an event names the file of a group */
static const char *group_name(int i)
{
	static char name[2][32];

	snprintf(name[i], sizeof(name[i]), "vfio/%d", host.group[i]);
	return name[i];
}

TEST_F(trace, add_and_del)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, group_name(0), 0, false),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_STREQ(file_event(getpid(), "del", self->fd, group_name(0), 0, false),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* The reason comes before what it led to. */
TEST_F(trace, add_and_del_of_attached)
{
	ASSERT_EQ(0, group_attach(self->fd));
	EXPECT_STREQ("", next_event(self->pipe));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), attached_state(), host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, group_name(0), 0, host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), KVM_VFIO_FILE_NOT_ATTACHED, 0),
		     next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "del", self->fd, group_name(0), 0, false),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

TEST_F(trace, attach_and_detach)
{
	int container = container_open(), i;

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	next_event(self->pipe);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, group_join(self->fd, container));
		EXPECT_STREQ("", next_event(self->pipe));
		ASSERT_EQ(0, set_iommu(container));
		EXPECT_STREQ(coherency_event(getpid(), group_name(0), attached_state(),
					     host.noncoherent),
			     next_event(self->pipe));
		EXPECT_STREQ("", next_event(self->pipe));
		ASSERT_EQ(0, group_leave(self->fd));
		EXPECT_STREQ(coherency_event(getpid(), group_name(0),
					     KVM_VFIO_FILE_NOT_ATTACHED, 0),
			     next_event(self->pipe));
		EXPECT_STREQ("", next_event(self->pipe));
	}
}

/* One event for each, with how many non-coherent files there are after it */
TEST_F(trace, two_files)
{
	int container = container_open(), other, i, first;
	char event[256];

	REQUIRE(no_groups(2));
	other = need_group(1);
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	next_event(self->pipe);
	next_event(self->pipe);
	ASSERT_EQ(0, group_join(self->fd, container));
	ASSERT_EQ(0, group_join(other, container));
	ASSERT_EQ(0, set_iommu(container));
	/* Which of them comes first is VFIO's business. */
	snprintf(event, sizeof(event), "%s", next_event(self->pipe));
	first = !strcmp(event, coherency_event(getpid(), group_name(1), attached_state(),
					       host.noncoherent));
	for (i = 0; i < 2; i++) {
		EXPECT_STREQ(coherency_event(getpid(), group_name(i ^ first), attached_state(),
					     host.noncoherent * (i + 1)), event);
		snprintf(event, sizeof(event), "%s", next_event(self->pipe));
	}
	EXPECT_STREQ("", event);

	ASSERT_EQ(0, group_leave(other));
	EXPECT_STREQ(coherency_event(getpid(), group_name(1), KVM_VFIO_FILE_NOT_ATTACHED,
				     host.noncoherent), next_event(self->pipe));
	ASSERT_EQ(0, group_join(other, container));
	EXPECT_STREQ(coherency_event(getpid(), group_name(1), attached_state(),
				     host.noncoherent * 2), next_event(self->pipe));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), KVM_VFIO_FILE_NOT_ATTACHED,
				     host.noncoherent), next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "del", self->fd, group_name(0), 0, host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* VFIO's groups are closed by now, and their names still known. */
TEST_F(trace, closed_device)
{
	int other;

	REQUIRE(no_groups(2));
	other = need_group(1);
	ASSERT_EQ(0, group_attach(other));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	close_fd(&self->fd);
	close_fd(&other);
	while (*next_event(self->pipe))
		;
	close_fd(&self->vm.dev);
	EXPECT_STREQ(file_event(getpid(), "del", -1, group_name(0), 0, host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ(coherency_event(getpid(), group_name(1), KVM_VFIO_FILE_NOT_ATTACHED, 0),
		     next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "del", -1, group_name(1), 0, false),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* What refused a file, and which; without a file there is nothing to tell of. */
TEST_F(trace, failed_calls)
{
	int container = container_open();
	struct creator other = { .open = vm_open };

	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	next_event(self->pipe);
	next_event(self->pipe);
	ASSERT_EQ(0, create_in_thread(&other));

	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, group_name(0), -EEXIST,
				host.noncoherent), next_event(self->pipe));
	EXPECT_EQ(-ENOENT, dev_del(other.vm.dev, self->fd));
	EXPECT_STREQ(file_event(other.tid, "del", self->fd, group_name(0), -ENOENT, false),
		     next_event(self->pipe));
	EXPECT_EQ(-EINVAL, dev_add(self->vm.dev, container));
	EXPECT_STREQ(file_event(getpid(), "add", container, "vfio/vfio", -EINVAL,
				host.noncoherent), next_event(self->pipe));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, container));
	EXPECT_STREQ(file_event(getpid(), "del", container, "vfio/vfio", -ENOENT,
				host.noncoherent), next_event(self->pipe));

	EXPECT_EQ(-EBADF, dev_add(self->vm.dev, -1));
	EXPECT_EQ(-EFAULT, set_attr(self->vm.dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_DEL,
				    NULL));
	EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, KVM_DEV_VFIO_FILE, 0, &container));
	EXPECT_STREQ("", next_event(self->pipe));
	vm_close(&other.vm);
}

/* Whoever attaches the group, it is the VM's creator that is named. */
TEST_F(trace, attached_by_another_process)
{
	int status;
	pid_t child;

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	next_event(self->pipe);
	child = fork();
	if (!child)
		_exit(-group_attach(self->fd));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), attached_state(), host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* Its directory and its name, as far as there is room */
TEST_F(trace, long_name)
{
	static const char dir[] = "/dev/vfio_dev_test", name[] = "0123456789abcdefghijklmnop";

	close_fd(&self->fd);
	self->fd = group_open_as(0, dir, name);
	group_unlink(dir, name);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, "vfio_dev_test/0123456789abcdefg", 0,
				false), next_event(self->pipe));
}

TEST_F(trace, wbinvd)
{
	REQUIRE(no_guest);
	REQUIRE(no_cpus(2));
	pin(0);
	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), 0), next_event(self->pipe));
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	next_event(self->pipe);
	next_event(self->pipe);
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), host.noncoherent), next_event(self->pipe));
	/* It has left lines behind on the CPU it comes from. */
	pin(1);
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), 2 * host.noncoherent), next_event(self->pipe));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), host.noncoherent), next_event(self->pipe));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	next_event(self->pipe);
	next_event(self->pipe);
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), 0), next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* Everything that could be recorded */
static int all_at_once(struct vm *vm, int fd)
{
	int ret = dev_add(vm->dev, fd);

	if (!ret)
		ret = group_attach(fd);
	if (!ret && vm->vcpu >= 0)
		ret = vm_wbinvd(vm);
	if (!ret)
		ret = group_leave(fd);
	return ret ? ret : dev_del(vm->dev, fd);
}

TEST_F(trace, disabled)
{
	static const char * const events[] = {
		"kvm_vfio_file", "kvm_vfio_coherency", "kvm_wbinvd",
	};
	char path[64];
	size_t i;

	if (!*no_guest)
		ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, trace_write("events/kvm_vfio/enable", "0"));
	EXPECT_EQ(0, all_at_once(&self->vm, self->fd));
	EXPECT_STREQ("", next_event(self->pipe));
	/* One is there without the others. */
	for (i = 0; i < ARRAY_SIZE(events) - !!*no_guest; i++) {
		snprintf(path, sizeof(path), "events/kvm_vfio/%s/enable", events[i]);
		ASSERT_EQ(0, trace_write(path, "1"));
		EXPECT_EQ(0, all_at_once(&self->vm, self->fd));
		EXPECT_EQ(0, strncmp(events[i], next_event(self->pipe), strlen(events[i])));
		while (*next_event(self->pipe))
			;
		ASSERT_EQ(0, trace_write(path, "0"));
		EXPECT_EQ(0, all_at_once(&self->vm, self->fd));
		EXPECT_STREQ("", next_event(self->pipe));
	}
}

/* By name and value, as filters and bpftrace use them, whatever the text says */
TEST_F(trace, fields)
{
	char filter[256];

	snprintf(filter, sizeof(filter),
		 "vm == %d && add == 1 && fd == %d && ret == 0 && noncoherent == %d && file == \"%s\"",
		 getpid(), self->fd, host.noncoherent, group_name(0));
	ASSERT_EQ(0, trace_write("events/kvm_vfio/kvm_vfio_file/filter", filter));
	snprintf(filter, sizeof(filter),
		 "vm == %d && coherency == %d && noncoherent_files == %d && noncoherent == %d && file == \"%s\"",
		 getpid(), attached_state(), host.noncoherent, host.noncoherent, group_name(0));
	ASSERT_EQ(0, trace_write("events/kvm_vfio/kvm_vfio_coherency/filter", filter));
	snprintf(filter, sizeof(filter), "vm == %d && vcpu_id == 0 && cpus == %d", getpid(),
		 host.noncoherent);
	if (!*no_guest)
		ASSERT_EQ(0, trace_write("events/kvm_vfio/kvm_wbinvd/filter", filter));

	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), attached_state(), host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, group_name(0), 0, host.noncoherent),
		     next_event(self->pipe));
	if (!*no_guest) {
		pin(0);
		ASSERT_EQ(0, add_guest(&self->vm));
		ASSERT_EQ(0, vm_wbinvd(&self->vm));
		EXPECT_STREQ(wbinvd_event(getpid(), host.noncoherent), next_event(self->pipe));
	}
	/* None of these passes. */
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_STREQ("", next_event(self->pipe));
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
