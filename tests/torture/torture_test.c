// SPDX-License-Identifier: GPL-2.0-only
/*
 * The whole interface at random, compared with a model after every step.
 *
 * Runs in the svm lab: with edu devices, that are all coherent or all not, behind the
 * emulated VT-d; or without its IOMMU, with vfio_testdev.ko, whose devices differ. Up to 8
 * VMs, two of them in processes of their own, and 32 files, with all that can be done to
 * them (torture.h). After every step these have to be as the model says:
 *
 *  - the result of the system call,
 *  - what each VM's device says of it; and of the VM that the step is about, and of those
 *    that it has changed, of each file, in fdinfo, and what debugfs says of it: the flag, and
 *    how many CPUs wrote back their caches for what. Of the others these come in turn.
 *  - who uses vfio.ko, when ADD or DEL returns,
 *  - how often each CPU did, which a kprobe in KVM counts,
 *  - each container's VFIO_DMA_CC_IOMMU.
 *
 * After every walk nothing may be left: references to modules, open groups, VMs that are
 * non-coherent. And from its begin to the end of all that it had each CPU has executed as many
 * WBINVDs as the model says, which the lab's plugin counts: tests/kit/wbinvd_compare.
 *
 * On a kernel with kcov walks that came to new places in it are kept, changed, and put
 * together to new ones. With fault injection each call of KVM's, but for KVM_CREATE_VM, and of
 * VFIO's is made to fail in every place; that, too, by a case of its own, with memory that is
 * mapped for DMA.
 *
 * A walk that fails is made shorter, by leaving out steps, and printed as what --replay
 * reads, and --faults; one case does that with a model that is wrong. On the stock modules
 * only results are compared, and, when a guest runs, whether its WBINVD reaches the CPU.
 *
 * Output: KTAP. Usage: torture_test [OPTIONS]
 *
 *	--seed N	of the first walk; each one after it has the next
 *	--steps N	of the case that compares all; others do part of that
 *	--length N	the steps in a walk
 *	--rounds N	the calls of each thread in the races
 *	--memtypes	VMs have memory types of their own, as with EPT (fixtures/memtypes.c)
 *	--only CASE	those that have it in their names
 *	--replay FILE	only the walk in this file
 *	--faults N	of a replay: its calls are made to fail from this step on
 *	--failures N	a case goes on after a walk that fails, without the kind of step
 *			that it failed in, until so many have failed
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "mark.h"
#include "torture.h"

struct options options = {
	.seed = 1, .steps = 20000, .length = 1000, .failures = 1, .rounds = 400,
	.only = "", .faults = NONE,
};

struct device devices[DEVICES];
struct group groups[GROUPS];
int nr_devices, nr_groups;
bool old_vfio;

/* ---- what the host has --------------------------------------------------- */

static int group_numbered(int number, bool emulated)
{
	int i;

	for (i = 0; i < nr_groups; i++)
		if (groups[i].number == number)
			return i;
	groups[nr_groups] = (struct group){ number, emulated };
	return nr_groups++;
}

static void find_edu_devices(void)
{
	const char *list = getenv("LAB_EDU"), *snoop = getenv("LAB_SNOOP");
	int count = 0, i;

	for (; list && *list; list += strcspn(list, " "), list += *list == ' ')
		count++;
	for (i = 0; i < count && nr_devices < DEVICES && nr_groups < GROUPS; i++) {
		struct device *device = &devices[nr_devices++];
		const char *path = edu_device(i);

		snprintf(device->name, sizeof(device->name), "%.31s", strrchr(path, '/') + 1);
		device->id = NONE;
		device->group = group_numbered(group_number_of(path), false);
		device->coherent_at_first = snoop && !strcmp(snoop, "on");
	}
}

/* Groups of one device and of two, of one kind and of both, and one of an emulated device */
static void make_testdevs(void)
{
	static const struct {
		const char *kind;
		int with;
	} kinds[] = {
		{ "coherent", NONE }, { "noncoherent", NONE }, { "coherent", NONE },
		{ "coherent", 2 }, { "coherent", NONE }, { "noncoherent", 4 },
		{ "noncoherent", NONE }, { "noncoherent", NONE }, { "emulated", NONE },
	};
	size_t i;

	load_testdev("");
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct device *device = &devices[nr_devices++];

		if (kinds[i].with == NONE)
			must_put(TESTDEV "create", "1 %s", kinds[i].kind);
		else
			must_put(TESTDEV "create", "1 %s %d", kinds[i].kind, kinds[i].with);
		snprintf(device->name, sizeof(device->name), "vfio_testdev.%zu", i);
		device->id = i;
		device->emulated = !strcmp(kinds[i].kind, "emulated");
		device->coherent_at_first = !strcmp(kinds[i].kind, "coherent");
		device->group = group_numbered(testdev_group_number(i), device->emulated);
	}
}

int cdev_number(int device)
{
	struct dirent *entry;
	int number = -ENOENT;
	char path[100];
	DIR *folder;

	snprintf(path, sizeof(path), "%s%.31s/vfio-dev",
		 devices[device].id == NONE ? "/sys/bus/pci/devices/" : TESTDEV,
		 devices[device].name);
	folder = opendir(path);
	while (folder && number < 0 && (entry = readdir(folder)))
		if (sscanf(entry->d_name, "vfio%d", &number) != 1)
			number = -ENOENT;
	if (folder)
		closedir(folder);
	return number;
}

int open_cdev(int number)
{
	char path[60];

	snprintf(path, sizeof(path), "/dev/vfio/devices/vfio%d", number);
	return open(path, O_RDWR | O_CLOEXEC);
}

bool has_iommufd, has_pasids;

void find_devices(void)
{
	find_edu_devices();
	if (!nr_devices)
		make_testdevs();
	has_iommufd = !access("/dev/iommu", F_OK) && !access("/dev/vfio/devices", F_OK);
	/* The fixture has both from Linux 7.3 on. */
	has_pasids = has_iommufd && !access(LAX, F_OK);
	/* The fixture's IOMMU does not remap interrupts. */
	if (has_iommufd)
		must_put("/sys/module/iommufd/parameters/allow_unsafe_interrupts", "1");
}

bool has_noncoherent_devices(void)
{
	int i;

	for (i = 0; i < nr_devices; i++)
		if (!devices[i].coherent_at_first)
			return true;
	return false;
}

int device_like(bool emulated, bool coherent)
{
	int i;

	for (i = 0; i < nr_devices; i++)
		if (devices[i].emulated == emulated &&
		    (emulated || devices[i].coherent_at_first == coherent))
			return i;
	return NONE;
}

#define VFIO_PCI	"/sys/bus/pci/drivers/vfio-pci/"
#define TESTDEV_DRIVER	"/sys/bus/platform/drivers/vfio_testdev/"

int bind_device(int device, bool bind)
{
	const struct device *d = &devices[device];

	if (d->id != NONE)
		return bind ? bind_testdev(d->id) : unbind_testdev(d->id);
	return put(bind ? VFIO_PCI "bind" : VFIO_PCI "unbind", "%s", d->name);
}

/* What VFIO knows of groups is as new as well. */
void renew_devices(void)
{
	int i;

	for (i = 0; i < nr_devices; i++)
		if (!devices[i].emulated)
			bind_device(i, false);
	restore_devices();
}

void restore_devices(void)
{
	char path[160];
	int i;

	if (sysconf(_SC_NPROCESSORS_ONLN) < CPUS)
		must_put(CPU1, "1");
	for (i = 0; i < nr_devices; i++) {
		const struct device *device = &devices[i];

		snprintf(path, sizeof(path), "%s%.31s",
			 device->id == NONE ? VFIO_PCI : TESTDEV_DRIVER, device->name);
		if (access(path, F_OK) && bind_device(i, true))
			fail("%s cannot be bound again", device->name);
		if (device->id == NONE || device->emulated)
			continue;
		snprintf(path, sizeof(path), TESTDEV "%.31s/coherent", device->name);
		must_put(path, "%d", device->coherent_at_first);
	}
}

/* ---- references ---------------------------------------------------------- */

const char * const modules[MODULES] = {
	"kvm", "kvm_amd", "vfio", "vfio_iommu_type1", "vfio_pci", "vfio_pci_core", "vfio_testdev",
	"iommufd",
};
static long references_before[MODULES];

void get_references(long *references)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(modules); i++)
		references[i] = module_references(modules[i]);
}

void remember_references(void)
{
	restore_devices();
	get_references(references_before);
}

static const char *something_left(void)
{
	static char text[120];
	long is;
	size_t i;
	int fd, g;

	for (g = 0; g < nr_groups; g++) {
		fd = open_group_number(groups[g].number);
		snprintf(text, sizeof(text), "the group %d is not free: %s", groups[g].number,
			 strerror(-fd));
		if (fd < 0)
			return text;
		close(fd);
	}
	for (i = 0; i < ARRAY_SIZE(modules); i++) {
		is = module_references(modules[i]);
		snprintf(text, sizeof(text), "%s has %ld references instead of %ld",
			 modules[i], is, references_before[i]);
		if (is != references_before[i])
			return text;
	}
	is = stock ? 0 : get_number(DEBUGFS "kvm/noncoherent_dma");
	snprintf(text, sizeof(text), "%ld VMs are non-coherent", is);
	return is ? text : NULL;
}

/* What a killed process had may be given back a moment after its end. */
const char *references_left(void)
{
	const char *left = NULL;
	int tries;

	restore_devices();
	for (tries = 0; tries < 200; tries++) {
		left = something_left();
		if (!left)
			return NULL;
		usleep(10000);
	}
	return left;
}

/* ---- putting it together ------------------------------------------------- */

static void set_cpu1(bool online)
{
	must_put(CPU1, "%d", online);
}

/*
 * The first VM, and the first vCPU, make KVM patch code that every CPU executes all the
 * time, which QEMU may not survive while another CPU runs (wbinvd_phase.c). So there are
 * always some.
 */
static void keep_vms(void)
{
	int i, vm;

	set_cpu1(false);
	for (i = 0; i < 2; i++) {
		vm = create_vm();
		if (i)
			must(ioctl(vm, KVM_CREATE_IRQCHIP, 0));
		must(ioctl(vm, KVM_CREATE_VCPU, 0));
	}
	count_flushes();
	set_cpu1(true);
}

static void prepare(void)
{
	int uffd;

	if (sysconf(_SC_NPROCESSORS_ONLN) != CPUS)
		fail("this test needs %d CPUs, run it with --smp %d", CPUS, CPUS);
	old_vfio = kernel_before(6, 2);
	stock = is_stock();
	uffd = open_userfaultfd(0);
	has_uffd = uffd >= 0;
	close_fd(&uffd);
	if (!has_uffd)
		printf("# this kernel has no userfaultfd: no vCPU is blocked\n");
	find_devices();
	keep_vms();
	/* Stock has no such function, and need not be the same in what is not compared. */
	if (options.memtypes && !stock)
		load("memtypes.ko", "");
	remember_references();
	make_marks(MOST_MARKS);
}

static void set_up(const struct test *test __attribute__((unused)))
{
}

static void tear_down(void)
{
	faults = fuzzing = results_only = misled = false;
	memset(without_step, 0, sizeof(without_step));
}

static const struct test tests[] = {
	{ "random calls return what they should", test_results },
	{ "a random walk is as the model says", test_walk },
	{ "a walk that fails is made shorter", test_shorter },
	{ "a walk with faults is as the model says", test_faults },
	{ "a flush without memory reaches all CPUs", test_flush_without_memory },
	{ "calls that fail in each place change nothing", test_places },
	{ "a walk to new places is as the model says", test_fuzz },
	{ "races leave nothing", test_races },
};
static const struct suite suite = SUITE(tests);

static const struct test replay_tests[] = {
	{ "a replay is as the model says", test_replay },
};
static const struct suite replay_suite = SUITE(replay_tests);

static void parse(int argc, char **argv)
{
	static const struct option known[] = {
		{ "seed", required_argument, NULL, 's' },
		{ "steps", required_argument, NULL, 'n' },
		{ "length", required_argument, NULL, 'l' },
		{ "failures", required_argument, NULL, 'k' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "only", required_argument, NULL, 'o' },
		{ "memtypes", no_argument, NULL, 'm' },
		{ "replay", required_argument, NULL, 'f' },
		{ "faults", required_argument, NULL, 'F' },
		{}
	};
	int is;

	while ((is = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (is) {
		case 's':
			options.seed = strtoul(optarg, NULL, 0);
			break;
		case 'n':
			options.steps = atol(optarg);
			break;
		case 'l':
			options.length = atoi(optarg);
			break;
		case 'k':
			options.failures = atoi(optarg);
			break;
		case 'r':
			options.rounds = atoi(optarg);
			break;
		case 'm':
			options.memtypes = true;
			break;
		case 'o':
			options.only = optarg;
			break;
		case 'f':
			options.replay = optarg;
			break;
		case 'F':
			options.faults = atoi(optarg);
			break;
		default:
			exit(2);
		}
	}
	if (options.length < 1 || options.length > 4000)
		options.length = 1000;
}

int main(int argc, char **argv)
{
	static const struct program program = { prepare, set_up, tear_down };
	static const struct suite *const suites[] = { &suite }, *const replay[] = { &replay_suite };
	int failed;

	parse(argc, argv);
	failed = run_tests(&program, options.replay ? replay : suites, 1, options.only);
	end_phases();
	return failed;
}
