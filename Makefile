# SPDX-License-Identifier: GPL-2.0-only
#
# Everything made goes under out/; `make help` shows what can be made.

BASE ?= 6.1
O := out/$(BASE)

# A recipe that fails must not leave half a file that looks made.
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
export BASE
CC := gcc-12

PROGRAMS := out/lab/wbinvd_test out/lab/wbinvd.so out/lab/ept_test out/lab/bench \
	    out/lab/mixed_test out/lab/mtty_test $(O)/vfio_dev_test $(O)/vfio_cdev_test $(O)/nested_test \
	    $(O)/vfio_testdev/vfio_testdev.ko out/lab/mixtures_test $(O)/mixtures

.PHONY: help
help:
	@echo 'Products, for Linux BASE=$(BASE) (6.1 or 6.12):'
	@echo
	@echo '  make demo         a guest with an assigned device, in an emulated host'
	@echo '  make check        build, and run all tests (both bases unless BASE is given) that'
	@echo '                    something has changed for; AGAIN=1: whether it has or not'
	@echo '  make check-debug  the tests under a kernel with KASAN, lockdep and kmemleak'
	@echo '  make mutants      break the device in many ways: do the tests notice?'
	@echo '  make bench        what it costs, beside the stock modules, in instructions'
	@echo '  make modules      $(O)/modules/{kvm,kvm-amd,kvm-intel,vfio,vfio_iommu_type1}.ko for Debian'
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
	@echo '  make check-abi    only compare symbol versions and layouts with Debian'
	@echo '  make clean        remove out/$(BASE) and out/lab; out/ itself is all else'
	@echo
	@echo 'Each does its own set-up. A second run does only what changed.'

.PHONY: setup
setup:
	@series/setup build lab vmx

.PHONY: tree
tree: setup
	@series/assemble $(BASE)

.PHONY: modules
modules: setup
	@series/modules $(BASE)

.PHONY: series
series:
	@series/setup build series
	@series/export $(BASE)

.PHONY: check-series
check-series: series
	@series/check-series $(BASE)

# Does every patch build, with no warning that its parent has not?
.PHONY: bisect
bisect: series
	@series/bisect $(BASE)

# All of them; `make check` has the fast ones.
.PHONY: lint
lint: setup
	@series/lint $(BASE)

.PHONY: cross
cross: setup
	@series/cross $(BASE)

# Too slow for `make check`: it builds.
.PHONY: test-series
test-series: setup
	@series/build_test $(BASE)

# Nothing but what is in the package: no drop-in module.
.PHONY: distribution-kernel
distribution-kernel: setup $(O)/vfio_dev_test
	@series/distribution-kernel $(BASE)
	@set -e; for snoop in on off; do \
		lab/run --base $(BASE) --kernel distribution --edu 2 --smp 2 --snoop $$snoop \
			--timeout 900 --skips 'no fault injection' \
			--name distribution-$$snoop-$(BASE) -- $(O)/vfio_dev_test; \
	done

# VERSION: another one of Debian's than that of linux-source-$(BASE)
.PHONY: debian-source
debian-source: series
	@series/debian-source $(BASE) $(VERSION)

.PHONY: check-abi
check-abi: modules
	@series/check-abi $(BASE)

.PHONY: debug-kernel
debug-kernel: setup
	@series/debug-kernel $(BASE)

.PHONY: programs
programs: $(PROGRAMS)

# Set-up first: the compiler may not be there yet.
$(PROGRAMS): | setup

out/lab/wbinvd_test: lab/wbinvd_test.c lab/wbinvd_phase.c lab/wbinvd_phase.h
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -static -pthread -o $@ $(filter %.c,$^)

out/lab/ept_test: lab/ept_test.c lab/ept_roots.c lab/ept.h lab/testdev.h
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -static -pthread -o $@ $(filter %.c,$^)

out/lab/mixed_test out/lab/mtty_test out/lab/mixtures_test: out/lab/%: lab/%.c lab/testdev.h
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -static -pthread -o $@ $<

out/lab/bench: bench/bench.c lab/testdev.h
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -static -o $@ $<

# The fixture fits Debian's kernel, stock modules and ours alike. It knows by itself whether
# anything changed, the tree's headers included.
.PHONY: $(O)/vfio_testdev/vfio_testdev.ko
$(O)/vfio_testdev/vfio_testdev.ko: | tree
	@lab/vfio_testdev/build $(BASE)

# Always made anew: they are copied from modules that may be others.
.PHONY: $(O)/mixtures
$(O)/mixtures: modules
	@lab/mixtures_build $(BASE)

out/lab/wbinvd.so: lab/plugin/wbinvd.c lab/plugin/qemu-plugin-v1.h
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -shared -fPIC -o $@ $<

# It knows by itself whether anything changed, the library in the tree included.
.PHONY: $(O)/nested_test
$(O)/nested_test: | tree
	@lab/nested_build $(BASE)

$(O)/vfio_dev_test $(O)/vfio_cdev_test: $(O)/%: \
		tools/testing/selftests/kvm/%.c tools/testing/selftests/kvm/vfio_dev_test.h | tree
	$(CC) -O2 -Wall -static -pthread -I $(O)/tree/tools/testing/selftests -o $@ $<

# Both bases, unless one is asked for.
CHECK_BASES := $(if $(filter command line environment,$(origin BASE)),$(BASE),6.1 6.12)
empty :=
comma := ,

.PHONY: check-build
check-build: setup
	@series/setup series lint tools
	@lab/fetch-qemu trixie-backports
	@set -e; for base in $(CHECK_BASES); do $(MAKE) BASE=$$base modules programs; done

# The last line counts, whatever happens. AGAIN=1: also what has passed, unchanged
.PHONY: check
check:
	@$(MAKE) check-build CHECK_BASES="$(CHECK_BASES)" || { echo '0 passed, 1 failed, 0 skipped'; exit 1; }
	@lab/check --base $(subst $(empty) $(empty),$(comma),$(CHECK_BASES)) $(if $(AGAIN),--again)

.PHONY: check-debug
check-debug: debug-kernel programs
	@lab/vfio_testdev/build $(BASE) debug
	@lab/check --base $(BASE) --kernel debug

# Breaks the device in many ways, one at a time; about a minute each.
.PHONY: mutants
mutants: modules
	@lab/mutants --base $(BASE)

# Costs of the stock modules and of ours; make bench PUBLISH=1 puts them into README.
.PHONY: bench
bench:
	@BASE=$(firstword $(CHECK_BASES)) series/setup build lab vmx bench
	@set -e; for base in $(CHECK_BASES); do \
		$(MAKE) BASE=$$base modules out/lab/bench out/$$base/vfio_testdev/vfio_testdev.ko; done
	@bench/run --base $(subst $(empty) $(empty),$(comma),$(CHECK_BASES))
	@bench/report $(if $(PUBLISH),--publish) $(CHECK_BASES)

.PHONY: demo
demo: modules
	@lab/demo --base $(BASE)

.PHONY: shell
shell: modules
	@series/setup tools
	@lab/shell --base $(BASE)

.PHONY: clean
clean:
	rm -rf $(O) out/lab
