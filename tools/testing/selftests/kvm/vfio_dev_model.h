/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A model to compare the KVM-VFIO pseudo device with: two VMs, A and B, and two
 * VFIO files. Every operation is done for real and in the model; its result and,
 * after it, the flag of both VMs and what the device says of them and of the files
 * must be the model's, and caches must have been written back during it exactly if
 * a VM became non-coherent.
 *
 * What the files are, and which operations there are beside those of the device, is
 * the program's: groups and containers, or files of devices and an iommufd.
 */
#ifndef SELFTEST_KVM_VFIO_DEV_MODEL_H
#define SELFTEST_KVM_VFIO_DEV_MODEL_H

#include "vfio_dev_test.h"

struct world;
struct op;

struct op_kind {
	const char *name;
	/* Returns what the system call did, and in EXPECTED what it had to do. */
	int (*run)(struct world *w, const struct op *op, int *expected);
	bool of_vm;		/* a VM does it, and */
	bool of_place;		/* its number is not that of a file, but of its place. */
};

struct op {
	const struct op_kind *kind;
	int vm;			/* 0 is A, 1 is B */
	int file;
	int place;		/* the container or IOAS */
};

/* Of a device or a group */
struct file {
	int fd;			/* -1: closed */
	int device;		/* that the group gave; -1: closed */
	/* The model: */
	unsigned int owners;	/* the VMs that track it, a bit each */
	bool attached;		/* to an IOMMU domain */
	int container;		/* that the group is in, or -1 */
	bool bound;		/* it was given the iommufd */
};

struct world {
	const struct op_kind *kinds;	/* The last one has no name. */
	/* A descriptor is closed, or a VM has let go: is it the last? */
	void (*put)(struct world *w, struct file *f);
	struct vm vm[2];
	struct file file[2];
	/* Of VFIO's type 1: */
	int container[2];
	bool iommu[2];		/* VFIO_SET_IOMMU was done in the container */
	/* Of an iommufd: */
	bool compat;		/* it is the container of groups */
	int iommufd;
	uint32_t ioas[3];	/* the third has no room for a device */
};

/* The VMs, and nothing else yet. */
static inline int world_init(struct world *w, const struct op_kind *kinds,
			     void (*put)(struct world *w, struct file *f))
{
	int i, ret = 0;

	memset(w, 0, sizeof(*w));
	w->kinds = kinds;
	w->put = put;
	w->iommufd = -1;
	for (i = 0; i < 2; i++) {
		w->vm[i] = NO_VM;
		w->file[i] = (struct file){ .fd = -1, .device = -1, .container = -1 };
		w->container[i] = -1;
	}
	for (i = 0; i < 2 && !ret; i++)
		ret = vm_open_guest(&w->vm[i]);
	return ret;
}

static inline void world_close(struct world *w)
{
	int i;

	for (i = 0; i < 2; i++) {
		close_fd(&w->file[i].device);
		close_fd(&w->file[i].fd);
		close_fd(&w->container[i]);
		vm_close(&w->vm[i]);
	}
	close_fd(&w->iommufd);
}

static inline bool tracks(const struct file *f, int vm)
{
	return f->owners & (1u << vm);
}

/* The rule that everything here is about. */
static inline bool should_be_noncoherent(const struct world *w, int vm)
{
	int i;

	for (i = 0; i < 2; i++)
		if (tracks(&w->file[i], vm) && w->file[i].attached)
			return host.noncoherent;
	return false;
}

/* --- Operations --- */

static inline int run_add(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (f->fd < 0)
		*expected = -EBADF;
	else if (tracks(f, op->vm))
		*expected = -EEXIST;
	else
		f->owners |= 1u << op->vm;
	return dev_add(w->vm[op->vm].dev, f->fd);
}

static inline int run_del(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	if (f->fd < 0)
		*expected = -EBADF;
	else if (!tracks(f, op->vm))
		*expected = -ENOENT;
	else
		f->owners &= ~(1u << op->vm);
	return dev_del(w->vm[op->vm].dev, f->fd);
}

/* The KVM device is closed, and a new one made. */
static inline int run_reset(struct world *w, const struct op *op, int *expected)
{
	struct vm *vm = &w->vm[op->vm];
	int i;

	close_fd(&vm->dev);
	for (i = 0; i < 2; i++) {
		w->file[i].owners &= ~(1u << op->vm);
		w->put(w, &w->file[i]);
	}
	vm->dev = create_device(vm->fd, 0);
	return vm->dev < 0 ? vm->dev : 0;
}

/* The file's descriptor. */
static inline int run_close(struct world *w, const struct op *op, int *expected)
{
	struct file *f = &w->file[op->file];

	close_fd(&f->fd);
	w->put(w, f);
	return 0;
}

/*
 * "add1" file 1 for VM A, "Bdel2" file 2 for VM B, "reset" and "Breset" their KVM
 * devices, "join2.1" or "attach2.1" file 2 to place 1 ("join2" is "join2.1"),
 * "iommu2" place 2.
 */
static inline int parse_op(const struct world *w, const char *word, struct op *op)
{
	const struct op_kind *kind;
	size_t size;

	memset(op, 0, sizeof(*op));
	if (*word == 'B') {
		op->vm = 1;
		word++;
	}
	for (kind = w->kinds; kind->name; kind++) {
		size = strlen(kind->name);
		if (strncmp(word, kind->name, size))
			continue;
		op->kind = kind;
		if (word[size])
			op->file = word[size] - '1';
		if (kind->of_place)
			op->place = op->file;
		else if (word[size] && word[size + 1] == '.')
			op->place = word[size + 2] - '1';
		return 0;
	}
	return -EINVAL;
}

static inline void print_op(const struct op *op, char *text, size_t size)
{
	snprintf(text, size, "%s%s%d.%d", op->kind->of_vm && op->vm ? "B" : "", op->kind->name,
		 (op->kind->of_place ? op->place : op->file) + 1, op->place + 1);
}

/* One of the NAMES, with a VM, a file and a place of its own. */
static inline void random_op(const struct world *w, const char * const *names, size_t nr,
			     uint32_t *state, struct op *op)
{
	parse_op(w, names[next_random(state) % nr], op);
	op->vm = next_random(state) % 2;
	op->file = next_random(state) % 2;
	op->place = next_random(state) % 2;
}

/* --- What came of one --- */

/* What an operation did to the VMs, and what it had to do. */
struct outcome {
	int result, expected_result;
	int flag[2], expected_flag[2];
	bool flushed, flush_owed;
};

/* What the device says of a VM and of both files agrees with the model. */
static inline bool state_agrees(const struct world *w, int vm)
{
	int i, files = 0, noncoherent = 0, expected;

	for (i = 0; i < 2; i++) {
		const struct file *f = &w->file[i];

		files += tracks(f, vm);
		if (!tracks(f, vm))
			expected = -ENOENT;
		else
			expected = f->attached ? attached_state() : KVM_VFIO_FILE_NOT_ATTACHED;
		noncoherent += expected == KVM_VFIO_FILE_NOT_ENFORCED;
		if (f->fd >= 0 && !file_state_is(&w->vm[vm], f->fd, expected))
			return false;
	}
	return vm_state_is(&w->vm[vm], files, noncoherent);
}

/* Without a look at the VMs, whose guests do not run. */
static inline void run_op(struct world *w, const struct op *op, struct outcome *o)
{
	memset(o, 0, sizeof(*o));
	o->result = op->kind->run(w, op, &o->expected_result);
}

/* A VM of which the device says anything else has that instead of a flag. */
#define STATE_DISAGREES	(-EUCLEAN)

/*
 * Both guests run before the operation, so that a VM which becomes non-coherent
 * owes them what their WBINVDs so far did not do.
 */
static inline void observe(struct world *w, const struct op *op, struct outcome *o)
{
	long before;
	int i;

	memset(o, 0, sizeof(*o));
	for (i = 0; i < 2; i++) {
		o->expected_flag[i] = should_be_noncoherent(w, i);
		vm_wbinvd(&w->vm[i]);
	}
	before = hits();
	o->result = op->kind->run(w, op, &o->expected_result);
	o->flushed = hits() > before;
	for (i = 0; i < 2; i++) {
		bool expected = should_be_noncoherent(w, i);

		o->flush_owed |= expected && !o->expected_flag[i];
		o->expected_flag[i] = expected;
		o->flag[i] = vm_noncoherent(&w->vm[i]);
		if (!state_agrees(w, i))
			o->flag[i] = STATE_DISAGREES;
	}
}

/* The next word of a sequence, or NULL. */
static inline const char *next_word(const char **steps, char *word, size_t size)
{
	size_t n = strcspn(*steps, " ");

	if (!n)
		return NULL;
	snprintf(word, size, "%.*s", (int)n, *steps);
	*steps += n + ((*steps)[n] == ' ');
	return word;
}

/* Do what STEPS say. A macro, since the harness's EXPECT_ work inside of a test only. */
#define FOLLOW(place, steps, flush) do {					\
	const char *all = (steps), *rest = all;					\
	struct world *here = (place);						\
	struct outcome o;							\
	char word[16];								\
	struct op op;								\
										\
	while (next_word(&rest, word, sizeof(word))) {				\
		ASSERT_EQ(0, parse_op(here, word, &op));			\
		observe(here, &op, &o);						\
		if (flush) {							\
			EXPECT_EQ(o.flush_owed, o.flushed)			\
				TH_LOG("during %s in \"%s\"", word, all);	\
			continue;						\
		}								\
		EXPECT_EQ(o.expected_result, o.result)				\
			TH_LOG("result of %s in \"%s\"", word, all);		\
		EXPECT_EQ(o.expected_flag[0], o.flag[0])			\
			TH_LOG("VM A after %s in \"%s\"", word, all);		\
		EXPECT_EQ(o.expected_flag[1], o.flag[1])			\
			TH_LOG("VM B after %s in \"%s\"", word, all);		\
	}									\
} while (0)

/* What a walk compares with the model after each step: results and flags, flushes, or states. */
#define WALK_RESULTS	1
#define WALK_FLUSHES	2
#define WALK_STATES	4

/* NR_STEPS of the NAMES, chosen by VFIO_DEV_TEST_SEED, else by SEED. A macro as FOLLOW() is. */
#define WALK(place, names, nr_steps, seed, checks) do {				\
	const char *told = getenv("VFIO_DEV_TEST_SEED");			\
	uint32_t state = told ? atoi(told) : (seed);				\
	const unsigned int compared = (checks);					\
	struct world *here = (place);						\
	struct outcome o;							\
	char text[32];								\
	struct op op;								\
	int nr;									\
										\
	for (nr = 0; nr < (nr_steps); nr++) {					\
		random_op(here, names, ARRAY_SIZE(names), &state, &op);		\
		print_op(&op, text, sizeof(text));				\
		if (compared & (WALK_RESULTS | WALK_FLUSHES))			\
			observe(here, &op, &o);					\
		else								\
			run_op(here, &op, &o);					\
		ASSERT_EQ(o.expected_result, o.result)				\
			TH_LOG("result of step %d, %s", nr, text);		\
		if (compared & WALK_RESULTS) {					\
			ASSERT_EQ(o.expected_flag[0], o.flag[0])		\
				TH_LOG("VM A after step %d, %s", nr, text);	\
			ASSERT_EQ(o.expected_flag[1], o.flag[1])		\
				TH_LOG("VM B after step %d, %s", nr, text);	\
		}								\
		if (compared & WALK_FLUSHES)					\
			ASSERT_EQ(o.flush_owed, o.flushed)			\
				TH_LOG("during step %d, %s", nr, text);		\
		if (compared & WALK_STATES)					\
			ASSERT_TRUE(state_agrees(here, 0) && state_agrees(here, 1)) \
				TH_LOG("after step %d, %s", nr, text);		\
	}									\
} while (0)

#endif /* SELFTEST_KVM_VFIO_DEV_MODEL_H */
