// SPDX-License-Identifier: GPL-2.0-only
/* Old roots: another process makes the change, or is killed meanwhile */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "roots.h"

/* ---- a process that is killed -------------------------------------------- */

struct child child = { 0, -1, -1 };

void child_waits(int from, int to)
{
	char byte;

	must(write(to, "", 1));
	if (must(read(from, &byte, 1)) != 1)
		_exit(1);
}

void start_child(void (*run)(int from, int to))
{
	int to[2], from[2];

	must(pipe2(to, O_CLOEXEC));
	must(pipe2(from, O_CLOEXEC));
	child.pid = must(fork());
	if (!child.pid) {
		close(to[1]);
		close(from[0]);
		if (!setjmp(test_end))
			run(to[0], from[1]);
		_exit(1);
	}
	close(to[0]);
	close(from[1]);
	child.to = to[1];
	child.from = from[0];
}

void child_is_ready(void)
{
	char byte;

	if (read(child.from, &byte, 1) != 1)
		fail("the other process has come to an early end");
}

static void tell_child(void)
{
	must(write(child.to, "", 1));
}

bool child_is_dead(void)
{
	int status;

	if (!child.pid)
		return true;
	if (must(waitpid(child.pid, &status, WNOHANG)) != child.pid)
		return false;
	child.pid = 0;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail("the other process has ended by itself");
	return true;
}

void kill_child(void)
{
	must(kill(child.pid, SIGKILL));
}

static void __attribute__((noreturn)) child_adds(int from, int to)
{
	set_up_vfio();
	make_vm();
	make_device();
	attach(NONCOHERENT, 0);
	run_on(0);
	guest_touches(HUGE + 2 * MIB);
	start_spinning();
	child_waits(from, to);
	add(NONCOHERENT);
	child_waits(from, to);
	_exit(1);
}

void group_is_free(void)
{
	set_up();
	attach(NONCOHERENT, 0);
	guest_touches(SMALL);
	add(NONCOHERENT);
	goes_on(true);
}

/* A process with a running VM makes it non-coherent, and is killed at FUNCTION. */
static void killed_at(const char *function, const char *options)
{
	must_tear_down_later();
	tear_down();
	count_before();
	start_child(child_adds);
	run_on(1);
	child_is_ready();
	hold_at(function, options);
	tell_child();
	wait_until(somebody_is_held, "the other process is held");
	kill_child();
	let_go();
	wait_until(child_is_dead, "the other process dies");
	expect_end_of_vm();
	unload("hold");
	group_is_free();
}

static void test_killed_in_change(void)		{ killed_at("kvm_mmu_leave_sptes", "at_return=1"); }
static void test_killed_before(void)		{ killed_at(BEFORE_TEARDOWN, ""); }
static void test_killed_meanwhile(void)		{ killed_at(IN_TEARDOWN, ""); }

static void __attribute__((noreturn)) child_with_slots_busy(int from, int to)
{
	set_up_vfio();
	make_vm();
	make_device();
	change_with_slots_busy();
	child_waits(from, to);
	_exit(1);
}

static void test_killed_with_slots_busy(void)
{
	must_tear_down_later();
	tear_down();
	count_before();
	start_child(child_with_slots_busy);
	child_is_ready();
	kill_child();
	wait_until(child_is_dead, "the other process dies");
	expect_end_of_vm();
	group_is_free();
}

/* ---- another process than the VM's --------------------------------------- */

static int files_of_child[2];		/* container, group */

static void send_files(int socket, const int *files, int count)
{
	char byte = 0, control[CMSG_SPACE(2 * sizeof(int))] = { 0 };
	struct iovec vector = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = CMSG_SPACE(count * sizeof(int)),
	};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(head), files, count * sizeof(int));
	must(sendmsg(socket, &message, 0));
}

static void receive_files(int socket, int *files, int count)
{
	char byte, control[CMSG_SPACE(2 * sizeof(int))];
	struct iovec vector = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof(control),
	};

	must(recvmsg(socket, &message, MSG_CMSG_CLOEXEC));
	if (!CMSG_FIRSTHDR(&message))
		_exit(1);
	memcpy(files, CMSG_DATA(CMSG_FIRSTHDR(&message)), count * sizeof(int));
}

static int sockets[2] = { -1, -1 };

/* It has nothing of the VM but the files that it is sent, and makes both changes. */
static void __attribute__((noreturn)) child_attaches(int from, int to)
{
	close(kvm);
	run_on(0);
	receive_files(sockets[1], files_of_child, 2);
	child_waits(from, to);
	must(container_set_iommu(files_of_child[0]));
	child_waits(from, to);
	must(group_leave(files_of_child[1]));
	child_waits(from, to);
	_exit(1);
}

/* Before there is a VM, whose memory it would share, and copy on write */
static void start_child_that_attaches(void)
{
	int files[2];

	tear_down();
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets));
	start_child(child_attaches);
	set_up();
	join(NONCOHERENT, 0);
	add(NONCOHERENT);
	files[0] = container[0];
	files[1] = group[NONCOHERENT];
	send_files(sockets[0], files, 2);
	child_is_ready();
}

/* The next change, by the other process; complete when it says that it has returned */
static void child_changes(void)
{
	tell_child();
	child_is_ready();
}

static void test_other_process(void)
{
	must_tear_down_later();
	start_child_that_attaches();
	changes_by_worker(child_changes, true);
	changes_by_worker(child_changes, false);
}

/* It is held before it marks the roots: a worker that looks by then finds none. */
static void test_other_process_held(void)
{
	must_tear_down_later();
	start_child_that_attaches();
	run_on(1);
	guest_touches(HUGE);
	run_workers_on("2");
	hold_at("kvm_mmu_leave_sptes", "");
	tell_child();
	wait_until(somebody_is_held, "the other process is held in its change");
	usleep(200000);
	let_go();
	child_is_ready();
	wait_until(idle_page_is_unmapped, "a worker tears the old root down");
	goes_on(true);
}

/* It is killed when it has made the change: it is a worker that tears the roots down. */
static void test_other_process_killed(void)
{
	must_tear_down_later();
	start_child_that_attaches();
	run_on(1);
	guest_touches(HUGE);
	run_workers_on("1");
	hold_at(BY_WORKER, "");
	tell_child();
	wait_until(somebody_is_held, "a worker is to tear the roots down");
	kill_child();
	if (idle_page_is_unmapped())
		fail("the old root is torn down before the test lets it");
	let_go();
	wait_until(child_is_dead, "the other process dies");
	wait_until(idle_page_is_unmapped, "the worker tears the old root down");
	goes_on(true);
}

/* ---- a dying process makes the change ------------------------------------- */

static void __attribute__((noreturn)) child_has_files(int from, int to)
{
	child_waits(from, to);
	_exit(1);
}

/* The KVM device's last file is that of a process which dies; the VM lives on. */
static void test_closed_by_death(void)
{
	attach(NONCOHERENT, 0);
	add(NONCOHERENT);
	start_child(child_has_files);	/* which unmaps all, for copy-on-write */
	child_is_ready();
	guest_touches(SMALL);
	guest_touches(HUGE);
	close_fd(&vm.device);
	if (idle_page_is_unmapped())
		fail("the device is closed although a process has it");
	kill_child();
	wait_until(child_is_dead, "the other process dies");
	wait_until(idle_page_is_unmapped, "the old root is torn down");
	goes_on(false);
}

void tear_down_processes(void)
{
	if (child.pid > 0)
		must_die(child.pid, "another process that is killed");
	child.pid = 0;
	close_fd(&child.to);
	close_fd(&child.from);
	close_fd(&sockets[0]);
	close_fd(&sockets[1]);
}

static const struct test tests[] = {
	{ "a dying process makes the change", test_closed_by_death },
	{ "another process than the VM's makes the changes", test_other_process },
	{ "another process makes a change, slowly", test_other_process_held },
	{ "another process is killed before its teardown", test_other_process_killed },
	{ "killed at the end of the change", test_killed_in_change },
	{ "killed before the teardown", test_killed_before },
	{ "killed during the teardown", test_killed_meanwhile },
	{ "killed while slots_lock is taken", test_killed_with_slots_busy },
};

const struct suite roots_process_suite = SUITE(tests);
