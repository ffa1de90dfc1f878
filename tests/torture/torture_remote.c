// SPDX-License-Identifier: GPL-2.0-only
/* Guests, and the processes beside the one that walks */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "torture_remote.h"

/* ---- guests -------------------------------------------------------------- */

#define ENTRY		0x1000
#define ENTRY_LOOK	0x1100

/* wbinvd; hlt; jmp to the start */
static const uint8_t code[] = { 0x0f, 0x09, 0xf4, 0xeb, 0xfb };
/* mov al,[MISSING_PAGE]; wbinvd; hlt; jmp to ENTRY */
static const uint8_t look_code[] = {
	0xa0, 0x00, 0x80, 0x0f, 0x09, 0xf4, 0xe9, 0xf7, 0xfe,
};

void *make_memory(int vm)
{
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = ENTRY, .memory_size = 4096,
	};
	uint8_t *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			       -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	memcpy(memory, code, sizeof(code));
	memcpy(memory + ENTRY_LOOK - ENTRY, look_code, sizeof(look_code));
	region.userspace_addr = (uintptr_t)memory;
	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) ? NULL : memory;
}

static int set_entry(int vcpu, uint64_t entry)
{
	struct kvm_regs regs = { .rip = entry, .rflags = 2 };

	return call(ioctl(vcpu, KVM_SET_REGS, &regs));
}

int make_vcpu(int vm, int number, struct kvm_run **run, size_t *run_size)
{
	struct kvm_sregs sregs;
	int vcpu = CALL(ioctl(vm, KVM_CREATE_VCPU, number)), kvm, ret;

	if (vcpu < 0)
		return vcpu;
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	*run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	close(kvm);
	*run = mmap(NULL, *run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	ret = call(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.ds.base = sregs.ds.selector = 0;
	if (!ret)
		ret = call(ioctl(vcpu, KVM_SET_SREGS, &sregs));
	if (!ret)
		ret = set_entry(vcpu, ENTRY);
	return ret || *run == MAP_FAILED ? -EIO : vcpu;
}

int run_guest(int vcpu, struct kvm_run *run, bool look)
{
	int ret = look ? set_entry(vcpu, ENTRY_LOOK) : 0;

	while (!ret) {
		ret = call(ioctl(vcpu, KVM_RUN, 0));
		if (ret != -EINTR)
			break;
		ret = 0;
	}
	if (!ret && run->exit_reason != KVM_EXIT_HLT)
		ret = -EPROTO;
	return ret;
}

/* ---- messages ------------------------------------------------------------ */

int send_fd(int socket, const void *message, size_t size, int fd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .head = {
		.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
	} };
	struct iovec data = { (void *)message, size };
	struct msghdr header = { .msg_iov = &data, .msg_iovlen = 1 };

	if (fd >= 0) {
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
		header.msg_control = &control;
		header.msg_controllen = sizeof(control.room);
	}
	return call(sendmsg(socket, &header, MSG_NOSIGNAL));
}

int receive_fd(int socket, void *message, size_t size, int *fd)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec data = { message, size };
	struct msghdr header = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof(control),
	};
	int ret = call(recvmsg(socket, &header, MSG_CMSG_CLOEXEC));
	struct cmsghdr *head = CMSG_FIRSTHDR(&header);

	*fd = NONE;
	if (ret > 0 && head && head->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(head), sizeof(*fd));
	return ret;
}

/* ---- a VM in a process of its own ---------------------------------------- */

enum { R_ADD, R_DEL, R_DEVICE, R_DEVICE_CLOSE, R_VCPU, R_RUN, R_STATE, R_FILE };

struct request {
	int what, a, b;
};

struct answer {
	int result;
	struct kvm_vfio_vm_state state;
	struct kvm_vfio_file_state file;
};

static struct {
	int vm, device, vcpu[VCPUS];
	struct kvm_run *run[VCPUS];
	size_t run_size;
} here;

static int run_here(int vcpu, int cpu)
{
	int ret;

	pin(0, cpu);
	ret = run_guest(here.vcpu[vcpu], here.run[vcpu], false);
	pin(0, 0);
	return ret;
}

static int create_here(void)
{
	here.device = call(kvm_vfio_create(here.vm));
	return here.device;
}

static int vcpu_here(int number)
{
	here.vcpu[number] = make_vcpu(here.vm, number, &here.run[number], &here.run_size);
	return here.vcpu[number];
}

static void answer(const struct request *request, int fd, struct answer *answer)
{
	switch (request->what) {
	case R_ADD:
		answer->result = call(kvm_vfio_add(here.device, fd));
		break;
	case R_DEL:
		answer->result = call(kvm_vfio_del(here.device, fd));
		break;
	case R_DEVICE:
		answer->result = create_here();
		break;
	case R_DEVICE_CLOSE:
		answer->result = call(close(here.device));
		break;
	case R_VCPU:
		answer->result = vcpu_here(request->a);
		break;
	case R_RUN:
		answer->result = run_here(request->a, request->b);
		break;
	case R_STATE:
		answer->result = call(kvm_vfio_attr(here.device, KVM_GET_DEVICE_ATTR,
						    KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM,
						    &answer->state));
		break;
	case R_FILE:
		answer->file.fd = fd;
		answer->result = call(kvm_vfio_attr(here.device, KVM_GET_DEVICE_ATTR,
						    KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_FILE,
						    &answer->file));
	}
}

static void __attribute__((noreturn)) serve(int socket)
{
	struct request request;
	int fd;

	while (receive_fd(socket, &request, sizeof(request), &fd) == sizeof(request)) {
		struct answer to = {};

		answer(&request, fd, &to);
		if (fd >= 0)
			close(fd);
		if (write(socket, &to, sizeof(to)) != sizeof(to))
			break;
	}
	_exit(0);
}

/* It ends with who forked it. Returns 0 in the new process, with SOCKET in both. */
static pid_t fork_served(int *socket)
{
	int pair[2], ret;
	pid_t pid;

	ret = call(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
	if (ret)
		return ret;
	pid = fork();
	if (pid < 0)
		return -errno;
	*socket = pair[!pid];
	close(pair[!!pid]);
	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

static void __attribute__((noreturn)) be_vm(int socket)
{
	int null = open("/dev/null", O_RDWR), kvm;
	struct answer first = {};
	int v, i;

	/* Of all that was open it has the socket. */
	for (v = 0; v < LOCAL_VMS; v++)
		for (i = 0; i < VCPUS; i++)
			if (vms[v].run[i])
				munmap(vms[v].run[i], vms[v].run_size);
	faults = false;
	dup2(null, 0);
	dup2(socket, 3);
	syscall(SYS_close_range, 4, ~0u, 0);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	here.vm = call(ioctl(kvm, KVM_CREATE_VM, 0));
	close(kvm);
	here.device = -1;
	first.result = here.vm >= 0 && make_memory(here.vm) ? here.vm : -EIO;
	if (write(3, &first, sizeof(first)) != sizeof(first))
		_exit(1);
	serve(3);
}

static int ask(int v, int what, int a, int b, int fd, struct answer *answer)
{
	struct request request = { what, a, b };
	int ret = send_fd(vms[v].socket, &request, sizeof(request), fd);

	if (ret < 0)
		wrong(BROKEN, "VM %d's process is gone", v);
	if (read(vms[v].socket, answer, sizeof(*answer)) != sizeof(*answer))
		wrong(BROKEN, "VM %d's process does not answer", v);
	return answer->result;
}

int remote_begin(int v)
{
	struct vm *vm = &vms[v];
	struct answer first;
	int socket = -1;

	vm->process = fork_served(&socket);
	if (!vm->process)
		be_vm(socket);
	if (vm->process < 0)
		return vm->process;
	vm->socket = socket;
	if (read(socket, &first, sizeof(first)) != sizeof(first))
		return -EIO;
	vm->creator = vm->process;
	vm->number = first.result;
	return first.result < 0 ? first.result : 0;
}

void remote_end(int v)
{
	must_die(vms[v].process, "the process of a VM");
	close(vms[v].socket);
}

int remote_device(int v)
{
	struct answer answer;

	return ask(v, R_DEVICE, 0, 0, NONE, &answer);
}

void remote_device_close(int v)
{
	struct answer answer;

	expect("the close of a device", ask(v, R_DEVICE_CLOSE, 0, 0, NONE, &answer), 0);
}

int remote_add(int v, int fd)
{
	struct answer answer;

	return ask(v, R_ADD, 0, 0, fd, &answer);
}

int remote_del(int v, int fd)
{
	struct answer answer;

	return ask(v, R_DEL, 0, 0, fd, &answer);
}

int remote_vcpu(int v, int vcpu)
{
	struct answer answer;

	return ask(v, R_VCPU, vcpu, 0, NONE, &answer);
}

int remote_run(int v, int vcpu, int cpu)
{
	struct answer answer;

	return ask(v, R_RUN, vcpu, cpu, NONE, &answer);
}

int remote_state(int v, struct kvm_vfio_vm_state *state)
{
	struct answer answer;
	int ret = ask(v, R_STATE, 0, 0, NONE, &answer);

	*state = answer.state;
	return ret;
}

int remote_file(int v, struct kvm_vfio_file_state *state)
{
	struct answer answer;
	int ret = ask(v, R_FILE, 0, 0, state->fd, &answer);

	*state = answer.file;
	return ret;
}

/* ---- a process with a copy of everything --------------------------------- */

static void __attribute__((noreturn)) be_holder(int socket)
{
	struct request request;
	struct answer to = {};
	int fd;

	while (receive_fd(socket, &request, sizeof(request), &fd) == sizeof(request)) {
		to.result = call(kvm_vfio_add(vms[request.a].dev, files[request.b].fd));
		if (write(socket, &to, sizeof(to)) != sizeof(to))
			break;
	}
	_exit(0);
}

int holder_begin(int h)
{
	int socket = -1;
	pid_t pid = fork_served(&socket);

	if (!pid)
		be_holder(socket);
	if (pid < 0)
		return pid;
	holders[h] = (struct holder){ pid, socket };
	return 0;
}

void holder_end(int h)
{
	must_die(holders[h].pid, "a process that holds descriptors");
	close(holders[h].socket);
	holders[h].pid = 0;
}

int holder_adds(int h, int v, int f)
{
	struct request request = { 0, v, f };
	struct answer answer;

	if (send_fd(holders[h].socket, &request, sizeof(request), NONE) < 0 ||
	    read(holders[h].socket, &answer, sizeof(answer)) != sizeof(answer))
		wrong(BROKEN, "holder %d does not answer", h);
	return answer.result;
}

void end_processes(void)
{
	int i;

	for (i = LOCAL_VMS; i < VMS; i++)
		if (vms[i].process > 0)
			kill(vms[i].process, SIGKILL);
	for (i = 0; i < HOLDERS; i++)
		if (holders[i].pid > 0)
			kill(holders[i].pid, SIGKILL);
}
