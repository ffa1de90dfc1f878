// SPDX-License-Identifier: GPL-2.0-only
/// user memory is not touched, and no file looked up, under a lock of ours
///
// A page fault takes mmap_lock, and VFIO takes mmap_lock under its own locks.  A
// file is looked up before, so that it is put after, with nothing locked; that the
// sPAPR code looks up a table's under files_lock is its own, and KVM's.
// look in: own
virtual report

@locked exists@
expression E;
identifier f =~ "^(_*(get|put)_user|_*copy_(from|to)_user|clear_user|strndup_user|memdup_user|fault_in_.*|fget(_raw)?|fdget(_raw|_pos)?|sockfd_lookup)$";
statement S;
position p;
@@
(
 mutex_lock(&E);
|
 if (mutex_lock_killable(&E)) S
|
 lockdep_assert_held(&E);
)
 ... when != mutex_unlock(&E)
     when any
 f@p(...)

@script:python depends on report@
p << locked.p;
f << locked.f;
E << locked.E;
@@
coccilib.report.print_report(p[0], "%s() under %s" % (f, E))

@guarded exists@
expression E;
identifier f =~ "^(_*(get|put)_user|_*copy_(from|to)_user|clear_user|strndup_user|memdup_user|fault_in_.*|fget(_raw)?|fdget(_raw|_pos)?|sockfd_lookup)$";
position p;
@@
 guard(mutex)(E);
 ...
 f@p(...)

@script:python depends on report@
p << guarded.p;
f << guarded.f;
E << guarded.E;
@@
coccilib.report.print_report(p[0], "%s() under %s" % (f, E))
