/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The part of version 1 of QEMU's TCG plugin interface that the plugins here
 * use, declared from its documentation: Debian 12's QEMU 7.2 offers the
 * interface and exports its functions, but no package has the header.
 *
 * A plugin defines qemu_plugin_version as 1, and QEMU refuses to load it when
 * that is not a version it offers; so these declarations cannot silently fall
 * behind it.
 */
#ifndef LAB_QEMU_PLUGIN_V1_H
#define LAB_QEMU_PLUGIN_V1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);

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
