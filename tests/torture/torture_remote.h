/* SPDX-License-Identifier: GPL-2.0-only */
/* VMs of torture_test that are of processes of their own, and forked ones that hold all */
#ifndef LAB_TORTURE_REMOTE_H
#define LAB_TORTURE_REMOTE_H

#include "torture.h"

/* 0, or an error of the process's own calls */
int remote_begin(int v);
void remote_end(int v);
int remote_device(int v);
void remote_device_close(int v);
/* FD, or a bad one for NONE, is sent through a socket. */
int remote_add(int v, int fd);
int remote_del(int v, int fd);
int remote_vcpu(int v, int vcpu);
int remote_run(int v, int vcpu, int cpu);
int remote_state(int v, struct kvm_vfio_vm_state *state);
int remote_file(int v, struct kvm_vfio_file_state *state);

int holder_begin(int h);
void holder_end(int h);
/* What the KVM-VFIO device says to it */
int holder_adds(int h, int v, int f);

/* A descriptor with a message */
int send_fd(int socket, const void *message, size_t size, int fd);
/* How much was read, and the descriptor or NONE */
int receive_fd(int socket, void *message, size_t size, int *fd);

/* In this process or in one of a VM's own: vCPU, or -errno; its memory is that of a guest */
int make_vcpu(int vm, int number, struct kvm_run **run, size_t *run_size);
void *make_memory(int vm);
/* It executes WBINVD once, after a look at the page that may be missing: 0 or -errno */
int run_guest(int vcpu, struct kvm_run *run, bool look);

#define MISSING_PAGE	0x8000

#endif
