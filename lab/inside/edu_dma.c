// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drive QEMU's edu device (1234:11e8) from a guest's user space, and check it.
 *
 * The device has a buffer of 4 KiB and a DMA engine that copies between it and
 * the memory of whoever owns the device. Each round fills a page, has the
 * device fetch it, has the device store it into another page, waits for the
 * interrupt which the device raises then, and compares the two pages.
 *
 * The device must be bound to uio_pci_generic, which passes INTx on: it masks
 * the interrupt in the device's command register, so each wait unmasks it.
 */
#include <endian.h>
#include <err.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/types.h>

/* Registers in BAR 0 and bits in them, from QEMU's docs/specs/edu.txt. */
#define EDU_IDENT		0x00
#define   EDU_IDENT_MASK	0x0000ffff
#define   EDU_IDENT_EDU		0x000000ed
#define EDU_IRQ_STATUS		0x24
#define   EDU_IRQ_DMA		0x100
#define EDU_IRQ_ACK		0x64
#define EDU_DMA_SRC		0x80
#define EDU_DMA_DST		0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_CMD		0x98
#define   EDU_DMA_RUN		0x1
#define   EDU_DMA_TO_MEMORY	0x2
#define   EDU_DMA_WITH_IRQ	0x4
#define EDU_BUFFER		0x40000
#define EDU_BAR_SIZE		0x100000

/* The device can address 28 bits. */
#define EDU_DMA_LIMIT		0x10000000

#define PCI_COMMAND			0x04
#define   PCI_COMMAND_MEMORY		0x2
#define   PCI_COMMAND_MASTER		0x4
#define   PCI_COMMAND_INTX_DISABLE	0x400

#define PAGE		4096
/* QEMU 7.2 aborts when a transfer includes the last byte of the buffer. */
#define LENGTH		(PAGE - 16)
#define ROUNDS		4
#define WAIT_SECONDS	30

struct edu {
	char *slot;
	__u8 *bar;
	int config;
	int uio;
};

/* Registers are read and written whole, once, and in this order. */
static __u32 edu_read(struct edu *edu, unsigned int reg)
{
	return __atomic_load_n((__u32 *)(edu->bar + reg), __ATOMIC_SEQ_CST);
}

static void edu_write(struct edu *edu, unsigned int reg, __u32 value)
{
	__atomic_store_n((__u32 *)(edu->bar + reg), value, __ATOMIC_RELEASE);
}

/* The DMA registers are 64 bits wide. */
static void edu_write64(struct edu *edu, unsigned int reg, __u64 value)
{
	__atomic_store_n((__u64 *)(edu->bar + reg), value, __ATOMIC_RELEASE);
}

static int open_sysfs(struct edu *edu, const char *name)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", edu->slot,
		 name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static int open_uio(struct edu *edu)
{
	char pattern[256], path[256];
	glob_t found;
	int fd;

	snprintf(pattern, sizeof(pattern), "/sys/bus/pci/devices/%s/uio/uio*",
		 edu->slot);
	if (glob(pattern, 0, NULL, &found) || found.gl_pathc != 1)
		errx(1, "%s is not bound to uio_pci_generic", edu->slot);
	snprintf(path, sizeof(path), "/dev/%s",
		 strrchr(found.gl_pathv[0], '/') + 1);
	globfree(&found);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

/* Let the device decode its BAR, do DMA, and raise INTx. */
static void edu_enable(struct edu *edu)
{
	__u16 command;

	if (pread(edu->config, &command, 2, PCI_COMMAND) != 2)
		errx(1, "cannot read the device's command register");
	command = htole16((le16toh(command) | PCI_COMMAND_MEMORY |
			   PCI_COMMAND_MASTER) & ~PCI_COMMAND_INTX_DISABLE);
	if (pwrite(edu->config, &command, 2, PCI_COMMAND) != 2)
		errx(1, "cannot write the device's command register");
}

static void wait_for_dma(struct edu *edu)
{
	int tries;

	for (tries = 0; tries < WAIT_SECONDS * 100; tries++) {
		if (!(edu_read(edu, EDU_DMA_CMD) & EDU_DMA_RUN))
			return;
		usleep(10 * 1000);
	}
	errx(1, "the DMA does not end");
}

static void edu_open(struct edu *edu, char *slot)
{
	int bar;

	edu->slot = slot;
	edu->config = open_sysfs(edu, "config");
	edu_enable(edu);

	bar = open_sysfs(edu, "resource0");
	edu->bar = mmap(NULL, EDU_BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			bar, 0);
	close(bar);
	if (edu->bar == MAP_FAILED)
		err(1, "cannot map the device's BAR 0");
	if ((edu_read(edu, EDU_IDENT) & EDU_IDENT_MASK) != EDU_IDENT_EDU)
		errx(1, "this is no edu device: it identifies itself as %#x",
		     edu_read(edu, EDU_IDENT));
	/* It may not have been reset since somebody else had it. */
	wait_for_dma(edu);
	edu_write(edu, EDU_IRQ_ACK, edu_read(edu, EDU_IRQ_STATUS));
	edu_enable(edu);
	edu->uio = open_uio(edu);
}

/* The physical address of a locked page, from /proc/self/pagemap. */
static __u64 physical(void *page)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	__u64 entry = 0, address;

	if (fd < 0 || pread(fd, &entry, sizeof(entry),
			    (uintptr_t)page / PAGE * sizeof(entry)) !=
	    sizeof(entry))
		err(1, "cannot read /proc/self/pagemap");
	close(fd);

	address = (entry & ((1ULL << 55) - 1)) * PAGE;
	if (!(entry >> 63) || !address)
		errx(1, "the kernel does not tell where a page is");
	if (address + PAGE > EDU_DMA_LIMIT)
		errx(1, "a page lies at %#jx, beyond what the device can address",
		     (uintmax_t)address);
	return address;
}

static void wait_for_interrupt(struct edu *edu)
{
	struct pollfd ready = { .fd = edu->uio, .events = POLLIN };
	__u32 count, status;

	if (poll(&ready, 1, WAIT_SECONDS * 1000) != 1)
		errx(1, "no interrupt came, %d seconds after the DMA started",
		     WAIT_SECONDS);
	if (read(edu->uio, &count, sizeof(count)) != sizeof(count))
		err(1, "cannot read the interrupt count");

	status = edu_read(edu, EDU_IRQ_STATUS);
	if (!(status & EDU_IRQ_DMA))
		errx(1, "an interrupt came, but not for DMA (status %#x)", status);
	edu_write(edu, EDU_IRQ_ACK, status);
	edu_enable(edu);
}

static void edu_dma(struct edu *edu, __u64 src, __u64 dst, __u32 flags)
{
	edu_write64(edu, EDU_DMA_SRC, src);
	edu_write64(edu, EDU_DMA_DST, dst);
	edu_write64(edu, EDU_DMA_COUNT, LENGTH);
	edu_write64(edu, EDU_DMA_CMD, EDU_DMA_RUN | flags);
}

/* A pattern that no other round and no other offset shares. */
static void fill(__u8 *page, unsigned int round)
{
	__u32 state = round * 2654435761u + 1;
	unsigned int i;

	for (i = 0; i < LENGTH; i++) {
		state = state * 1664525u + 1013904223u;
		page[i] = state >> 24;
	}
}

static void check(const __u8 *want, const __u8 *got, unsigned int round)
{
	unsigned int i;

	for (i = 0; i < LENGTH; i++)
		if (got[i] != want[i])
			errx(1, "round %u, byte %u came back as %02x instead of %02x",
			     round, i, got[i], want[i]);
}

static void run_round(struct edu *edu, __u8 *out, __u8 *in,
		      unsigned int round)
{
	fill(out, round);
	memset(in, 0, PAGE);

	edu_dma(edu, physical(out), EDU_BUFFER, 0);
	wait_for_dma(edu);
	edu_dma(edu, EDU_BUFFER, physical(in),
		EDU_DMA_TO_MEMORY | EDU_DMA_WITH_IRQ);
	wait_for_interrupt(edu);
	check(out, in, round);
}

int main(int argc, char **argv)
{
	struct edu edu;
	unsigned int round;
	__u8 *pages;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc != 2)
		errx(1, "usage: edu_dma PCI-ADDRESS");
	edu_open(&edu, argv[1]);

	pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
	if (pages == MAP_FAILED)
		err(1, "no memory for DMA");

	for (round = 1; round <= ROUNDS; round++)
		run_round(&edu, pages, pages + PAGE, round);

	printf("the device fetched %d bytes from memory and stored them back: all equal\n",
	       ROUNDS * LENGTH);
	printf("the device's interrupt arrived %d times\n", ROUNDS);
	return 0;
}
