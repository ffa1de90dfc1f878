/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the scenarios of dma_test share: dma_kit.c has this, dma_test.c the scenarios of
 * mappings, dma_kill.c those in which they fail or their owner is killed, dma_refuse.c
 * those of vfio.noncoherent=refuse, dma_iommufd.c those of iommufd, dma_calls.c those of calls
 * that end after the last group has left, dma_pci.c those of PCI devices.
 */
#ifndef LAB_DMA_H
#define LAB_DMA_H

#include "pages.h"
#include "wbinvd_phase.h"

#define PAGE		4096ul
#define HUGE_PAGE	(2ul << 20)
/* Cache lines of a page, each flushed by one instruction */
#define LINES		64
#define HUGE_LINES	(512l * LINES)

/* Events of mark.ko: what is called, for how many CLFLUSHs came before it */
enum { MAPPED = 1, UNMAPPED, SYNCED, UNPINNED };

/* vfio_testdev.ko's devices, each in a group of its own */
enum { COHERENT, COHERENT_2, NONCOHERENT, NONCOHERENT_2, DEVICES };

/* Type 1 maps two pages of its own for a moment when it makes a new domain. */
#define TEST_PAGES	(kernel_before(7, 3) ? 2 : 0)

/* The group's file; a scenario before this one has closed it. */
int group_of(int device);
int new_device(const char *kind);

/* ---- memory -------------------------------------------------------------- */

/* @n pages, each another one, and as far as the kernel likes from the one before it */
char *other_pages(int n);
/* @n pages, each another one, of which none continues the one before it */
char *scattered_pages(int n);
/* Of 2 MiB, there are HUGE_PAGES of them */
#define HUGE_PAGES	512
char *huge_pages(int n);
/* Some page of a PCI device's registers */
char *mmio_page(void *at);

long free_huge_pages(void);

/*
 * Of flushed.ko: forget what was flushed, and see that since then all of the @n pages of
 * @memory were, each once, and nothing else
 */
void forget_flushed(void);
void must_be_flushed(const char *memory, int n, const char *when);

/* A call that flushes, from a physical address on: 0 if that is of no memory */
struct flush {
	uint64_t at;
	unsigned int size;
};

/* What flushed.ko has room for */
#define MAX_FLUSHES	8192

/* The calls that there were, at most @max of them; how many it were */
int flushes(struct flush *calls, int max);
/* The page frames that are mapped there, as the process's page tables say */
void page_frames(const char *memory, uint64_t *pages, int n);

/* ---- containers ---------------------------------------------------------- */

/* As group_attach(), in a phase: what that flushes is nothing else. */
int attach_phase(int group, bool coherent);
/* @group joins; @lines are flushed, and those of the test's pages. */
void join_phase(int group, int container, long lines, bool new_noncoherent_domain);
void leave_phase(int group, long lines);
/*
 * Both must work, and flush each of @runs runs, @lines in all, before it is mapped, and
 * before it is unpinned. If @lines is 0 there must be none.
 */
void map_phase(int container, void *memory, uint64_t iova, size_t size, int runs, long lines);
void unmap_phase(int container, uint64_t iova, size_t size, int runs, long lines);

/* ---- iommufd ------------------------------------------------------------- */

/* Fails.  The last put of a file that the scenario before had may be still to come. */
void must_bind(int file, int iommufd);

/* ---- who is held while it flushes ---------------------------------------- */

/* A process that calls @prepare now, and @flush, on another CPU, when start_flusher() lets it */
pid_t fork_flusher(void (*prepare)(void), void (*flush)(void));
/* It is to stop in its flush of 2 MiB that comes after @skip others: before the phase. */
void hold_flusher(int skip);
/* Let it go on, to there; false: it came not so far. Unload hold.ko after the phase. */
bool start_flusher(void);
/* Let it go on, until @flush returns. */
void end_flusher(void);
/* Start it, and kill it there. */
bool kill_flusher(pid_t pid);

extern const struct scenario kill_scenarios[], refuse_scenarios[], noiommu_scenarios[],
	iommufd_scenarios[], file_scenarios[], call_scenarios[], pci_scenarios[];
extern const int kill_count, refuse_count, noiommu_count, iommufd_count, file_count, call_count,
	pci_count;

/* ---- vfio.noncoherent ---------------------------------------------------- */

#define PERMITTED	"/sys/module/vfio/parameters/noncoherent"

/* Have non-coherent DMA: "allow" or "refuse" */
void may(const char *what);
/* What a call returned, which is to be EPERM */
void must_be_refused(int ret, const char *what);
/* The kernel's messages from now on */
int open_log(void);
/* Those since @log was opened or read last that say that @device is refused */
int refusals_logged(int log, int device);
/* A scenario: however one ends, the next one finds it allowed. */
void allowed_again(void);

/* The fixture's page tables have room for so many more pages; -1: for any number */
#define ROOM	"/sys/module/vfio_testdev/parameters/room"

/* So many calls unmap memory, and the next one does nothing; -1: all do */
#define UNMAPS_LEFT	"/sys/module/vfio_testdev/parameters/unmaps_left"

/* Of kernels that can do without an IOMMU; Debian's cannot. */
#define NOIOMMU		"/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"

#endif
