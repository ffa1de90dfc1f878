# SPDX-License-Identifier: GPL-2.0-only
#
# Builds lab/nested_test with the kernel's own KVM selftest library. To be run
# in the tree's tools/testing/selftests/kvm, by lab/nested_build: the Makefile
# there knows the library's files and how each is to be compiled.
include Makefile

.DELETE_ON_ERROR:

SOURCES := nested_test.c wbinvd_phase.c

$(PROGRAM): $(SOURCES:%=$(LAB)/%) $(LAB)/wbinvd_phase.h $(LAB)/nested.mk $(LIBKVM_OBJS)
	$(CC) $(filter-out -MD -MP,$(CFLAGS)) $(LDFLAGS) -o $@ \
		$(SOURCES:%=$(LAB)/%) $(LIBKVM_OBJS) $(LDLIBS)
