// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where do the instructions go that a program in the lab counted?
 *
 * A QEMU TCG plugin for bench/bench.c, which takes the TSC before and after what it
 * measures. Two RDTSCs of a user-space program enclose a window; of the windows
 * with exactly as many instructions as asked for, this counts how often each
 * instruction was executed. The program itself is not changed by being profiled,
 * so its counts are the same.
 *
 * Output: "windows N", and a line "ADDRESS COUNT" for each instruction. bench/profile
 * makes a list of functions of it.
 *
 * Build:	gcc -O2 -Wall -shared -fPIC -DPLUGIN_API=1 -o profile.so profile.c
 * Use:		qemu-system-x86_64 -accel tcg -icount shift=0 -smp 1
 *			-plugin profile.so,out=PATH,count=INSTRUCTIONS ...
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu-plugin.h"

#define KERNEL_HALF	0xffff800000000000ULL
#define WINDOW_MAX	100000
#define HASH_SIZE	(1u << 20)

int qemu_plugin_version = PLUGIN_API;

static uint64_t wanted;
static const char *path;

/* What was executed since the last RDTSC; more than fits is no window. */
static uint64_t window[WINDOW_MAX];
static unsigned int length;

static struct { uint64_t address, count; } seen[HASH_SIZE];
static unsigned int n_seen, windows;

static void count(uint64_t address)
{
	unsigned int i = address * 0x9e3779b97f4a7c15ULL >> 44;

	while (seen[i].count && seen[i].address != address)
		i = (i + 1) % HASH_SIZE;
	if (!seen[i].count && n_seen++ > HASH_SIZE / 2)
		return;
	seen[i].address = address;
	seen[i].count++;
}

static void on_insn(unsigned int cpu, void *address)
{
	if (length < WINDOW_MAX)
		window[length++] = (uintptr_t)address;
}

static void on_rdtsc(unsigned int cpu, void *address)
{
	unsigned int i;

	if (length < WINDOW_MAX && length == wanted) {
		for (i = 0; i < length; i++)
			count(window[i]);
		windows++;
	}
	length = 0;
	on_insn(cpu, address);
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t i, n = qemu_plugin_tb_n_insns(tb);

	for (i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t address = qemu_plugin_insn_vaddr(insn);
		uint8_t code[INSN_MAX];
		bool rdtsc = insn_code(insn, code) == 2 && address < KERNEL_HALF &&
			     !memcmp(code, "\x0f\x31", 2);

		qemu_plugin_register_vcpu_insn_exec_cb(insn, rdtsc ? on_rdtsc : on_insn,
						       QEMU_PLUGIN_CB_NO_REGS,
						       (void *)(uintptr_t)address);
	}
}

static void at_exit(qemu_plugin_id_t id, void *unused)
{
	FILE *out = fopen(path, "w");
	unsigned int i;

	if (!out) {
		fprintf(stderr, "profile plugin: cannot write \"%s\": %m\n", path);
		return;
	}
	fprintf(out, "windows %u\n", windows);
	for (i = 0; i < HASH_SIZE; i++)
		if (seen[i].count)
			fprintf(out, "%llx %llu\n", (unsigned long long)seen[i].address,
				(unsigned long long)seen[i].count);
	fclose(out);
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_plugin_info *info,
			int argc, char **argv)
{
	int i;

	for (i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "out=", 4)) {
			path = strdup(argv[i] + 4);
		} else if (!strncmp(argv[i], "count=", 6)) {
			wanted = strtoull(argv[i] + 6, NULL, 0);
		} else {
			fprintf(stderr, "profile plugin: unknown argument \"%s\"\n", argv[i]);
			return -1;
		}
	}
	if (!path || !wanted || strcmp(info->target_name, "x86_64") || info->max_vcpus != 1) {
		fprintf(stderr, "profile plugin: needs out=PATH, count=INSTRUCTIONS, one x86 CPU\n");
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
