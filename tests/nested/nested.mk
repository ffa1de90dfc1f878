# SPDX-License-Identifier: GPL-2.0-only
#
# Builds the nested test with the kernel's own KVM selftest library. To be run
# in the tree's tools/testing/selftests/kvm, by tests/nested/nested_build: the Makefile
# there knows the library's files and how each is to be compiled.
include Makefile

.DELETE_ON_ERROR:

# Newer libraries have other names, see the test.
NAMES := $(if $(shell grep -w gva_t include/kvm_util.h),-DHAVE_GVA_T) \
	$(if $(shell grep -sw vm_init_descriptor_tables include/x86*/processor.h),-DHAVE_DESCRIPTOR_TABLES)
SOURCES := $(TESTS)/nested/nested_test.c \
	$(addprefix $(TESTS)/kit/,wbinvd_phase.c mark.c lab.c files.c hold.c vfio.c vm.c)

# Of libvfio, which newer ones come with, and of what that links with, the test uses nothing.
OBJECTS := $(filter-out $(LIBVFIO_O),$(LIBKVM_OBJS))
LDLIBS := $(filter-out -luuid,$(LDLIBS))

# Static, for the lab may have an older libc than the root that this is built in.
$(PROGRAM): $(SOURCES) $(wildcard $(TESTS)/kit/*.h) $(TESTS)/nested/nested.mk $(OBJECTS)
	$(CC) $(filter-out -MD -MP,$(CFLAGS)) $(NAMES) -I$(TESTS)/kit $(LDFLAGS) -static -o $@ \
		$(SOURCES) $(OBJECTS) $(LDLIBS)
