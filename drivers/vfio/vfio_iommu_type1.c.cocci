// SPDX-License-Identifier: GPL-2.0-only
// expect: header 1
// expect: domain_added 1
// expect: domain_gone 1
// expect: begin 1
// expect: map 1
// expect: synced 1
// expect: slow 1
// expect: replay_begin 1
// expect: replay_map 1
// expect: replay_unwind 1

@header@
@@
+#include "noncoherent.h"
 #include "vfio.h"

@domain_added@
identifier iommu, domain;
@@
 vfio_iommu_type1_attach_group(...)
 {
 <+...
 	list_add(&domain->next, &iommu->domain_list);
+	iommu->noncoherent_domains += !domain->enforce_cache_coherency;
 ...+>
 }

@domain_gone@
identifier domain;
symbol iommu;
@@
 vfio_iommu_type1_detach_group(...)
 {
 <+...
 	iommu_domain_free(domain->domain);
 	list_del(&domain->next);
+	iommu->noncoherent_domains -= !domain->enforce_cache_coherency;
 ...+>
 }

// The list of domains does not change while iommu->lock is held.
@begin@
identifier iommu, dma, batch;
@@
 vfio_pin_map_dma(struct vfio_iommu *iommu, struct vfio_dma *dma, ...)
 {
 ...
 	vfio_batch_init(&batch);
+	lockdep_assert_held(&iommu->lock);
+	dma->noncoherent = iommu->noncoherent_domains;
 ...
 }

@map@
identifier iommu, dma;
expression iova, pfn, npage, ret;
@@
 vfio_pin_map_dma(struct vfio_iommu *iommu, struct vfio_dma *dma, ...)
 {
 <+...
-	ret = vfio_iommu_map(iommu, iova, pfn, npage, dma->prot);
+	ret = vfio_flush_map(iommu, dma, iova, pfn, npage);
 ...+>
 }

// After iommu_iotlb_sync()
@synced@
identifier dma, entry;
expression unlocked;
@@
 vfio_sync_unpin(struct vfio_dma *dma, ...)
 {
 <+...
+	vfio_flush_unmapped(dma, entry->phys, entry->len);
 	unlocked += vfio_unpin_pages_remote(dma, entry->iova, ...);
 ...+>
 }

// After iommu_unmap(), which syncs
@slow@
identifier dma, phys, unmapped;
expression unlocked;
@@
 unmap_unpin_slow(..., struct vfio_dma *dma, ..., phys_addr_t phys, ...)
 {
 <+...
+	vfio_flush_unmapped(dma, phys, unmapped);
 	unlocked += vfio_unpin_pages_remote(dma, ..., phys >> PAGE_SHIFT,
					     unmapped >> PAGE_SHIFT, false);
 ...+>
 }

@replay_begin@
identifier domain, dma, n;
@@
 vfio_iommu_replay(..., struct vfio_domain *domain)
 {
 <+...
 	dma = rb_entry(n, struct vfio_dma, node);
+	/* It stays so for as long as it is pinned, even if this fails. */
+	dma->noncoherent &= dma->iommu_mapped;
+	dma->noncoherent |= !domain->enforce_cache_coherency;
 ...+>
 }

@replay_map@
identifier domain, iova, phys, size, ret;
symbol dma;
expression list how;
@@
 vfio_iommu_replay(..., struct vfio_domain *domain)
 {
 <+...
-	ret = iommu_map(domain->domain, iova, phys, size, how);
+	ret = vfio_flush_to_map(!domain->enforce_cache_coherency, phys, size);
+	if (!ret) {
+		ret = iommu_map(domain->domain, iova, phys, size, how);
+		if (ret)
+			vfio_flush_unmapped(dma, phys, size);
+	}
 ...+>
 }

@replay_unwind@
identifier domain, dma, iova, phys, size;
@@
 vfio_iommu_replay(..., struct vfio_domain *domain)
 {
 <+...
 	iommu_unmap(domain->domain, iova, size);
+	vfio_flush_unmapped(dma, phys, size);
 	vfio_unpin_pages_remote(dma, iova, phys >> PAGE_SHIFT, ...);
 ...+>
 }
