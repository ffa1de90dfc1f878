// SPDX-License-Identifier: GPL-2.0-only
// expect: to_map_all 1

// Memory is added, for all domains; none has this batch yet.
@to_map_all@
identifier area, pages, done_all_end_index, pfns;
symbol index, rc;
@@
 iopt_area_fill_domains(struct iopt_area *area, struct iopt_pages *pages)
 {
 <+...
 	done_all_end_index = pfns.batch_start_index;
+	if (area->iopt->noncoherent_domains) {
+		index = 0;
+		rc = batch_flush_to_map(&pfns.batch, pages);
+		if (rc)
+			goto out_unmap;
+	}
 ...+>
 }
