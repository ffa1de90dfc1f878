# SPDX-License-Identifier: GPL-2.0-only
#
# Builds the kernel's KVM selftests. To be run in the tree's tools/testing/selftests/kvm, by
# tests/kselftest/kselftest_build: the Makefile there knows which there are and how each is to be
# compiled.
include Makefile

.DELETE_ON_ERROR:

# Static, for the lab may have an older libc than the root that this is built in, and none at all;
# without what only a debugger reads.
LDFLAGS += -static -s

# Stable 6.1 has a test with a newer name of this macro (dirty_log_test.c), and not the macro.
CFLAGS += $(if $(shell grep -rw 'define TEST_ASSERT_EQ' include),,-DTEST_ASSERT_EQ=ASSERT_EQ)
# And one that takes asm/kvm.h first, which relies on this (steal_time.c).
CFLAGS += -include linux/stddef.h

# Of libvfio, which newer ones come with, and of what that links with, only irq_test uses anything,
# and it would want a device; and ours have runs of their own.
LIBKVM_OBJS := $(filter-out $(LIBVFIO_O),$(LIBKVM_OBJS))
LDLIBS := $(filter-out -luuid,$(LDLIBS))
PROGRAMS := $(filter-out $(OUTPUT)/vfio_% $(if $(LIBVFIO_O),$(OUTPUT)/irq_test),$(TEST_GEN_PROGS) $(TEST_GEN_PROGS_EXTENDED))

.PHONY: programs
programs: $(PROGRAMS)
	mkdir -p $(FOLDER)
	cp $(PROGRAMS) $(TEST_PROGS) $(FOLDER)
