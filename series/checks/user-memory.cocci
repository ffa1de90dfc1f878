// SPDX-License-Identifier: GPL-2.0-only
/// user memory is not touched, and no file looked up, under a lock of ours
///
// A page fault takes mmap_lock, and VFIO takes mmap_lock under its own locks.
// look in: own
virtual report

@locked exists@
expression E;
identifier f =~ "^(_*(get|put)_user|_*copy_(from|to)_user|clear_user|strndup_user|memdup_user|fault_in_.*)$";
position p;
@@
(
 mutex_lock(&E);
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
identifier f =~ "^(_*(get|put)_user|_*copy_(from|to)_user|clear_user|strndup_user|memdup_user|fault_in_.*)$";
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
