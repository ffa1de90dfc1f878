# SPDX-License-Identifier: GPL-2.0-only
#
# Everything made goes under out/; `make help` shows what can be made.

# What the tools know of this machine and of each kernel is in hosts/ and bases/.
HOST := $(shell kit/get --host 2>&1)
BASES := $(shell kit/get --bases)
ifeq ($(filter hosts/%,$(firstword $(HOST))),)
$(error $(HOST))
endif
BASE ?= $(shell kit/get $(HOST) base)
O := out/$(BASE)

# A recipe that fails must not leave half a file that looks made.
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
export BASE
CC := $(shell kit/get $(HOST) compiler)

# The kernel's selftests of the device
SELFTESTS := $(basename $(notdir $(wildcard tools/testing/selftests/kvm/vfio_*_test.c)))

# The kernel's selftests of VFIO, and what of them is ours; nothing for a base without
LIBVFIO := $(filter true,$(shell kit/get bases/$(BASE) facts.libvfio))

PROGRAMS := out/lab/wbinvd_test out/lab/wbinvd.so out/lab/ept_test out/lab/bench \
	    out/lab/mixed_test out/lab/mtty_test out/lab/budget_test out/lab/torture_test out/lab/dma_test $(SELFTESTS:%=$(O)/%) $(O)/nested_test \
	    $(O)/vfio_testdev/vfio_testdev.ko out/lab/mixtures_test $(O)/mixtures $(O)/kselftest \
	    $(LIBVFIO:true=$(O)/libvfio)

.PHONY: help
help:
	@echo 'Products, for Linux BASE=$(BASE) (of $(BASES)):'
	@echo
	@echo '  make demo         a guest with an assigned device, in an emulated host'
	@echo '  make check        build, and run all tests ($(CHECK_BASES) unless BASE is given) that'
	@echo '                    something has changed for; AGAIN=1: whether it has or not'
	$(if $(QUICK_BASES),@echo '                    And the fast ones of $(QUICK_BASES)')
	@echo '  make quick        the fast ones of them, for BASE alone'
	@echo '  make check-debug  the tests under a kernel with KASAN, lockdep and kmemleak'
	@echo '  make check-races  those with several threads under a kernel with KCSAN, for data races'
	@echo '  make coverage     which lines of ours did they reach?'
	@echo '  make locks        were the locks taken in the documented order?'
	@echo '  make torture      the whole interface at random, compared with a model, and races: 200,000'
	@echo '                    steps on debug kernels, and as many on Debian'"'"'s ($(CHECK_BASES) unless BASE'
	@echo '                    is given); LONG=1: 2,000,000; SEED=N;'
	@echo '                    and all of the kernel'"'"'s own KVM selftests, beside stock'
	@echo '  make mutants      break the device in many ways: do the tests notice?'
	@echo '  make bench        what it costs, beside the stock modules, in instructions'
	@echo '  make modules      $(O)/modules/{kvm,kvm-amd,kvm-intel,vfio,vfio_iommu_type1}.ko for Debian'
	@echo '  make deb          out/deb/kvm-vfio-dkms_*.deb, the modules as a package for Debian, for all'
	@echo '                    kernels that are known here unless BASE is given'
	@echo '  make series       the patches, for git am and quilt ($(O)/series)'
	@echo '  make shell        a shell in the emulated host, VFIO devices ready'
	@echo
	@echo '  make setup        only install the Debian packages that all this needs'
	@echo '  make tree         only assemble the kernel source ($(O)/tree)'
	@echo '  make check-series only check that the patches have the form and the effect they should'
	@echo '  make bisect       only build after each patch, with W=1 (half an hour)'
	@echo '  make lint         all checks of a reviewer, bisect and cross included (an hour)'
	@echo '  make cross        only build for arm64, ppc64le, s390x, i386 and odd configurations'
	@echo '  make test-series  do bisect, cross and the build of the selftests notice faults?'
	@echo '  make distribution-kernel   a linux-image package with the series, booted in the lab'
	@echo '  make debian-source         the series in Debian'"'"'s own source package'
	@echo '  make check-install         install the package in systems of Debian'"'"'s, break that, undo it,'
	@echo '                             and boot them with it, and with VMs of libvirt (as root)'
	@echo '  make check-install-spoilt  break the package in many ways: does check-install notice?'
	@echo '  make check-abi    only compare symbol versions and layouts with Debian'
	@echo '  make clean        remove out/$(BASE) and out/lab; out/ itself is all else'
	@echo
	@echo 'Each does its own set-up. A second run does only what changed.'

.PHONY: setup
setup:
	@build/setup build lab vmx

# The emulated host with VMX does without it, and takes three times as long.
.PHONY: bochs
bochs: setup
	@build/bochs || echo 'going on with the Bochs of this distribution, which is slower' >&2

.PHONY: tree
tree: setup
	@series/assemble $(BASE)

.PHONY: modules
modules: setup
	@build/modules $(BASE)

# What --iommufd of lab/run takes, and the fixture for it; nothing for a base without
IOMMUFD := $(filter true,$(shell kit/get bases/$(BASE) facts.iommufd))
.PHONY: iommufd
iommufd: modules
	@$(IOMMUFD:%=tests/fixtures/build $(BASE) iommufd)

.PHONY: series
series:
	@build/setup build series
	@series/export $(BASE)

.PHONY: check-series
check-series: series
	@series/check-series $(BASE)

# Does every patch build, with no warning that its parent has not?
.PHONY: bisect
bisect: series
	@build/bisect $(BASE)

# All of them; `make check` has the fast ones.
.PHONY: lint
lint: setup
	@lint/lint $(BASE)

.PHONY: cross
cross: setup
	@build/cross $(BASE)

# Too slow for `make check`: it builds.
.PHONY: test-series
test-series: setup
	@build/selftest/build_test $(BASE)

# Nothing but what is in the package: no drop-in module.
DEVICE_TESTS := $(filter vfio_dev_%,$(SELFTESTS))
.PHONY: distribution-kernel
distribution-kernel: setup $(DEVICE_TESTS:%=$(O)/%)
	@build/distribution-kernel $(BASE)
	@set -e; for snoop in on off; do \
		lab/run --base $(BASE) --kernel distribution --edu 2 --smp 2 --snoop $$snoop \
			--timeout 900 --skips 'no fault injection|nobody asks KVM' \
			--name distribution-$$snoop-$(BASE) $(DEVICE_TESTS:%=--file $(O)/%) -- \
			tests/device/in_turn $(DEVICE_TESTS); \
	done

# VERSION: another one of Debian's than that of linux-source-$(BASE)
.PHONY: debian-source
debian-source: series
	@build/debian-source $(BASE) $(VERSION)

.PHONY: check-abi
check-abi: modules
	@build/check-abi $(BASE)

.PHONY: debug-kernel
debug-kernel: setup
	@build/debug-kernel $(BASE)

.PHONY: programs
programs: $(PROGRAMS)

# Set-up first: the compiler may not be there yet.
$(PROGRAMS): | setup

# What all of them share; those whose oracle counts WBINVDs have their phases as well.
KIT := $(addprefix tests/kit/,lab.c files.c pages.c hold.c vfio.c iommufd.c vm.c)
KIT_HEADERS := $(wildcard tests/kit/*.h tools/testing/selftests/kvm/*_uapi.h)

LAB_TESTS := $(addprefix out/lab/,wbinvd_test ept_test mixed_test mtty_test mixtures_test budget_test torture_test dma_test)
out/lab/wbinvd_test out/lab/budget_test out/lab/dma_test: tests/kit/wbinvd_phase.c tests/kit/mark.c
out/lab/torture_test: tests/kit/mark.c

.SECONDEXPANSION:
$(LAB_TESTS): out/lab/%_test: $$(wildcard tests/%/*.c tests/%/*.h) $(KIT) $(KIT_HEADERS)
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -Werror=implicit -static -pthread -I tests/kit -o $@ $(filter %.c,$^)

out/lab/bench: bench/bench.c $(KIT) $(KIT_HEADERS)
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -Werror=implicit -static -pthread -I tests/kit -o $@ $(filter %.c,$^)

# The fixture fits Debian's kernel, stock modules and ours alike. It knows by itself whether
# anything changed, the tree's headers included.
.PHONY: $(O)/vfio_testdev/vfio_testdev.ko
$(O)/vfio_testdev/vfio_testdev.ko: | tree
	@tests/fixtures/build $(BASE)

# Always made anew: they are copied from modules that may be others.
.PHONY: $(O)/mixtures
$(O)/mixtures: modules
	@tests/mixtures/mixtures_build $(BASE)

out/lab/wbinvd.so: lab/machines/plugin/wbinvd.c lab/machines/plugin/qemu-plugin.h $(HOST).toml
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -shared -fPIC -DPLUGIN_API=$(shell kit/get $(HOST) plugin_api) -o $@ $<

# It knows by itself whether anything changed, the library in the tree included.
.PHONY: $(O)/nested_test
$(O)/nested_test: | tree
	@tests/nested/nested_build $(BASE)

# The kernel's own tests of KVM, of the tree with our changes
.PHONY: $(O)/kselftest
$(O)/kselftest: | tree
	@tests/kselftest/kselftest_build $(BASE)

.PHONY: $(O)/libvfio
$(O)/libvfio: | tree
	@tests/libvfio/libvfio_build $(BASE)

$(SELFTESTS:%=$(O)/%): $(O)/%: tools/testing/selftests/kvm/%.c \
		$(wildcard tools/testing/selftests/kvm/vfio_*.h) | tree
	$(CC) -O2 -Wall -Werror=implicit -static -pthread -I $(O)/tree/tools/testing/selftests -o $@ $<

# Those whose files say `check = true`, unless one is asked for; then none has the quick group alone.
BASES_THAT_SAY = $(shell for base in $(BASES); do \
	[ "$$(kit/get bases/$$base check)" != $(1) ] || echo $$base; done)
BASE_ASKED_FOR := $(filter command line environment,$(origin BASE))
CHECK_BASES = $(if $(BASE_ASKED_FOR),$(BASE),$(call BASES_THAT_SAY,true))
QUICK_BASES = $(if $(BASE_ASKED_FOR),,$(call BASES_THAT_SAY,quick))
ALL_BASES = $(if $(BASE_ASKED_FOR),$(BASE),$(BASES))
empty :=
comma := ,

.PHONY: check-build
check-build: setup bochs
	@build/setup series lint tools
	@build/fetch-qemu trixie-backports || echo 'going on without it: runs that need it will fail' >&2
	@set -e; for base in $(CHECK_BASES); do $(MAKE) BASE=$$base modules programs iommufd; done
	@set -e; for base in $(QUICK_BASES); do $(MAKE) BASE=$$base modules programs; done

# Is this change sane? What takes seconds, and the runs that find most, on one base
.PHONY: quick
quick: modules programs
	@build/setup series lint tools
	@tests/check --base $(BASE) --group quick

# The last line counts, whatever happens. AGAIN=1: also what has passed, unchanged
.PHONY: check
check:
	@$(MAKE) check-build CHECK_BASES="$(CHECK_BASES)" QUICK_BASES="$(QUICK_BASES)" || \
		{ echo '0 passed, 1 failed, 0 skipped'; exit 1; }
	@tests/check --base $(subst $(empty) $(empty),$(comma),$(CHECK_BASES)) \
		--quick '$(subst $(empty) $(empty),$(comma),$(QUICK_BASES))' $(if $(AGAIN),--again)

.PHONY: check-debug
check-debug: debug-kernel programs bochs
	@tests/fixtures/build $(BASE) debug
	@tests/fixtures/selftest/plant_test $(BASE)
	@tests/check --base $(BASE) --kernel debug
	@tests/locks/locks $(BASE)

# Watched are the files that are ours alone.
.PHONY: check-races
check-races: setup
	@build/debug-kernel $(BASE) races
	@$(MAKE) programs
	@tests/fixtures/build $(BASE) races
	@tests/fixtures/selftest/plant_test $(BASE) races
	@tests/check --base $(BASE) --kernel races

# Both, whatever the first one says: a line that no run reached may be why.
.PHONY: coverage
coverage: setup bochs
	@build/debug-kernel $(BASE) coverage
	@$(MAKE) programs
	@tests/fixtures/build $(BASE) coverage
	@failed=0; tests/check --base $(BASE) --kernel coverage || failed=1; \
	tests/coverage/coverage $(BASE) || failed=1; exit $$failed

# Of the same runs; make check-debug ends with it.
.PHONY: locks
locks:
	@tests/locks/locks $(BASE)

# On debug kernels of all bases and on Debian's; then the order of locks, as far as these runs show it.
# All parts run, whatever the first one says.
.PHONY: torture
torture: setup
	@set -e; for base in $(ALL_BASES); do \
		$(MAKE) BASE=$$base modules iommufd out/lab/torture_test out/lab/wbinvd.so \
			out/$$base/vfio_testdev/vfio_testdev.ko out/$$base/kselftest; \
		build/debug-kernel $$base; tests/fixtures/build $$base debug; done
	@failed=0; bases=$(subst $(empty) $(empty),$(comma),$(ALL_BASES)); \
	tests/torture/torture --base $$bases --steps $(if $(LONG),2000000,200000) \
		$(if $(SEED),--seed $(SEED)) || failed=1; \
	tests/kselftest/kselftest --base $$bases || failed=1; \
	for base in $(ALL_BASES); do tests/locks/locks --some $$base || failed=1; done; \
	exit $$failed

# Breaks the device in many ways, one at a time; about a minute each.
.PHONY: mutants
mutants: modules bochs
	@tests/mutants/mutants --base $(BASE)

# Costs of the stock modules and of ours; make bench PUBLISH=1 puts them into bench/README.md.
.PHONY: bench
bench:
	@BASE=$(firstword $(ALL_BASES)) build/setup build lab vmx bench
	@set -e; for base in $(ALL_BASES); do \
		$(MAKE) BASE=$$base modules out/lab/bench out/$$base/vfio_testdev/vfio_testdev.ko; done
	@bench/run --base $(subst $(empty) $(empty),$(comma),$(ALL_BASES))
	@bench/report $(if $(PUBLISH),--publish) $(ALL_BASES)

# A set for each kernel, in one package
.PHONY: deb
deb:
	@set -e; for base in $(ALL_BASES); do BASE=$$base build/setup --no-root build packaging; done
	@packaging/deb $(ALL_BASES)

# Needs root: packages are installed, in chroots. These are booted in the lab, and so is what
# dkms built there.
.PHONY: check-install
check-install: deb
	@set -e; for base in $(ALL_BASES); do \
		$(MAKE) BASE=$$base modules out/lab/mixtures_test $(DEVICE_TESTS:%=out/$$base/%); done
	@packaging/check-install $(ALL_BASES)

# Breaks the package in many ways, one at a time: do the cases of check-install notice?
.PHONY: check-install-spoilt
check-install-spoilt: deb
	@packaging/check-install --spoilt $(ALL_BASES)

# Its last scene has a QEMU of today, and says so where that cannot be fetched.
.PHONY: demo
demo: modules
	@$(IOMMUFD:%=build/iommufd $(BASE) && { build/fetch-qemu trixie-backports || true; })
	@lab/demo --base $(BASE)

.PHONY: shell
shell: modules
	@build/setup tools
	@lab/shell --base $(BASE)

.PHONY: clean
clean:
	rm -rf $(O) out/lab
