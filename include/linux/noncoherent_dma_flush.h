/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * CPU cache flushes for memory that devices access past the caches
 *
 * An IOMMU domain that does not enforce cache coherency lets a device's DMA pass by
 * the CPU caches.  What user space maps into such a domain has to be flushed twice,
 * whoever the user trusts, because of what the memory was before and will be after:
 *
 *  - before it is mapped: the zeroes that the host cleared a page with may still be
 *    in a cache only, and a read that does not snoop fetches what DRAM has instead,
 *    the data of the page's former owner;
 *
 *  - after it is unmapped, the IOTLB included, and before it is unpinned: caches may
 *    hold lines that are clean and older than what the device has written to DRAM.
 *    The next owner would see the one or the other, as lines come and go.
 *
 * KVM's emulation of WBINVD covers neither: it is the guest that decides on that.
 */
#ifndef _LINUX_NONCOHERENT_DMA_FLUSH_H
#define _LINUX_NONCOHERENT_DMA_FLUSH_H

#include <linux/types.h>

#ifdef CONFIG_X86

#include <linux/align.h>
#include <linux/build_bug.h>
#include <linux/cacheflush.h>
#include <linux/highmem.h>
#include <linux/memremap.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>

/* Flushed in one go.  A naturally aligned one has a memory map, or none, as a whole. */
#define NONCOHERENT_DMA_FLUSH_CHUNK	(SZ_2M / PAGE_SIZE)

#ifdef CONFIG_SPARSEMEM_VMEMMAP
static_assert(PAGES_PER_SUBSECTION % NONCOHERENT_DMA_FLUSH_CHUNK == 0);
#endif

/*
 * Of a page that is poisoned, or is in a compound one whose head is.
 *
 * Of a hugetlb page the head is poisoned, and most of it is as good as ever: what the
 * kernel can still access.  Of any other one just the bad page is, which loses its
 * mapping later than that, and nobody gets it any more: its data can stay where it is.
 */
static inline bool noncoherent_dma_is_usable(struct page *page)
{
	unsigned int level;
	pte_t *pte;

	if (!PageHuge(page))
		return !PageHWPoison(page);
	if (PageHighMem(page))
		return true;
	pte = lookup_address((unsigned long)page_address(page), &level);
	return pte && pte_present(*pte);
}

/*
 * MMIO must not be flushed: CLFLUSH of some ranges raises machine checks.  It has no
 * struct page or one that is reserved, as the zero page is, too, and as the pages of
 * memory are that a driver manages (device DAX).
 */
static inline bool noncoherent_dma_flushable(unsigned long pfn)
{
	struct page *page;

	/* The only model whose map may end within a chunk */
	if (IS_ENABLED(CONFIG_FLATMEM) && !pfn_valid(pfn))
		return false;
	page = pfn_to_page(pfn);
	if (unlikely(PageReserved(page)))
		return is_zero_pfn(pfn) ||
		       (is_zone_device_page(page) && !is_pci_p2pdma_page(page) &&
			!is_device_private_page(page));
	if (unlikely(PageHWPoison(page) || PageHWPoison(compound_head(page))))
		return noncoherent_dma_is_usable(page);
	return true;
}

static inline void noncoherent_dma_flush_run(unsigned long pfn, unsigned long end)
{
	if (!IS_ENABLED(CONFIG_HIGHMEM)) {
		clflush_cache_range(__va(PFN_PHYS(pfn)), (end - pfn) * PAGE_SIZE);
		return;
	}
	for (; pfn < end; pfn++) {
		void *page = kmap_local_page(pfn_to_page(pfn));

		clflush_cache_range(page, PAGE_SIZE);
		kunmap_local(page);
	}
}

static inline void noncoherent_dma_flush_chunk(unsigned long pfn, unsigned long end)
{
	unsigned long begin;

	if (!pfn_valid(pfn) && !IS_ENABLED(CONFIG_FLATMEM))
		return;
	while (pfn < end) {
		for (begin = pfn; pfn < end && noncoherent_dma_flushable(pfn); pfn++)
			;
		if (pfn > begin)
			noncoherent_dma_flush_run(begin, pfn);
		else
			pfn++;
	}
}

static inline int __noncoherent_dma_flush(unsigned long pfn, unsigned long npage,
					  bool killable)
{
	unsigned long end = pfn + npage, next;

	for (; pfn < end; pfn = next) {
		next = min(end, ALIGN(pfn + 1, NONCOHERENT_DMA_FLUSH_CHUNK));
		noncoherent_dma_flush_chunk(pfn, next);
		cond_resched();
		if (killable && fatal_signal_pending(current))
			return -EINTR;
	}
	return 0;
}

#else

static inline int __noncoherent_dma_flush(unsigned long pfn, unsigned long npage,
					  bool killable)
{
	return 0;
}

#endif /* CONFIG_X86 */

/**
 * noncoherent_dma_flush - flush pages from all CPU caches
 * @pfn: the first page frame.  It and those that follow it may be anything that user
 *	space can map for DMA; what is not memory is left alone.
 * @npage: how many they are
 *
 * Write the pages' dirty lines back to DRAM, and drop all lines.  To be called when
 * the pages are mapped into no domain any more, and while they are still pinned.
 *
 * Does nothing where only x86 lets devices choose not to snoop.  May sleep.
 */
static inline void noncoherent_dma_flush(unsigned long pfn, unsigned long npage)
{
	__noncoherent_dma_flush(pfn, npage, false);
}

/**
 * noncoherent_dma_flush_killable - flush pages that are going to be mapped
 * @pfn: the first page frame
 * @npage: how many they are
 *
 * As noncoherent_dma_flush(), but gives up, within 2 MiB, when current is killed.
 *
 * Return: 0, or -EINTR, and then the pages must not be mapped.
 */
static inline int __must_check
noncoherent_dma_flush_killable(unsigned long pfn, unsigned long npage)
{
	return __noncoherent_dma_flush(pfn, npage, true);
}

#endif /* _LINUX_NONCOHERENT_DMA_FLUSH_H */
