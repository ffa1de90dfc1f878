/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The part of QEMU's TCG plugin interface that the plugins here use, declared
 * from its documentation: no package of Debian 12 has the header.  PLUGIN_API is
 * the version that this machine's QEMU is to be asked for, see hosts/: 1 for the
 * 7.2 of Debian 12; 3, which 9.0 to 10 offer, changed one of these functions.
 *
 * A plugin defines qemu_plugin_version as that, and QEMU refuses to load it when
 * that is not a version it offers; so these declarations cannot silently fall
 * behind it.
 */
#ifndef LAB_QEMU_PLUGIN_H
#define LAB_QEMU_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;

extern __attribute__((visibility("default"))) int qemu_plugin_version;

/* What QEMU tells a plugin about itself; valid during installation only. */
struct qemu_plugin_info {
	const char *target_name;
	int version_min;
	int version_current;
	bool system_emulation;
	/* The rest is there for system emulation only. */
	int smp_vcpus;
	int max_vcpus;
};

/* Said to QEMU about each callback; plugins cannot see registers anyway. */
enum qemu_plugin_cb_flags {
	QEMU_PLUGIN_CB_NO_REGS,
};

struct qemu_plugin_tb;
struct qemu_plugin_insn;

typedef void (*qemu_plugin_udata_cb_t)(qemu_plugin_id_t id, void *data);
typedef void (*qemu_plugin_vcpu_udata_cb_t)(unsigned int vcpu, void *data);
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t id,
					       struct qemu_plugin_tb *tb);

/* Called for each block of code QEMU translates: where to instrument it. */
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
					   qemu_plugin_vcpu_tb_trans_cb_t cb);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb,
						 size_t index);

/* An instruction: its bytes, its virtual address, and where QEMU keeps it. */
#if PLUGIN_API >= 3
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *to, size_t size);
#else
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
#endif
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);

/* No instruction is longer. */
#define INSN_MAX	15

/* Its bytes, at most INSN_MAX, are in CODE then; returns how many. */
static inline size_t insn_code(const struct qemu_plugin_insn *insn, uint8_t *code)
{
	size_t size = qemu_plugin_insn_size(insn);

	if (size > INSN_MAX)
		size = INSN_MAX;
#if PLUGIN_API >= 3
	return qemu_plugin_insn_data(insn, code, size);
#else
	memcpy(code, qemu_plugin_insn_data(insn), size);
	return size;
#endif
}

/* Called each time, and before, the instruction is executed. */
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
					    qemu_plugin_vcpu_udata_cb_t cb,
					    enum qemu_plugin_cb_flags flags,
					    void *data);

void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id,
				    qemu_plugin_udata_cb_t cb, void *data);

/* What a plugin itself defines. Anything but 0 makes QEMU refuse to start. */
int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_plugin_info *info,
			int argc, char **argv);

#endif
