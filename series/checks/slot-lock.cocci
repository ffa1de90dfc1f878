// SPDX-License-Identifier: GPL-2.0-only
/// slots change, and their users are called, under the slot's lock only
///
// A user then hears of changes in their order, and of none after it has left.
// look in: own
// look in: drivers/vfio/*.c
virtual report

@changed exists@
identifier f;
identifier m =~ "^(user|coherency)$";
struct vfio_external_slot *slot;
expression V;
position p;
@@
 f(...)
 {
 ... when != mutex_lock(&slot->lock)
     when != mutex_init(&slot->lock)
     when != lockdep_assert_held(&slot->lock)
     when any
 slot->m@p = V
 ... when any
 }

@script:python depends on report@
p << changed.p;
m << changed.m;
@@
coccilib.report.print_report(p[0], "slot->%s is changed without slot->lock" % m)

@changed_later exists@
identifier m =~ "^(user|coherency)$";
struct vfio_external_slot *slot;
expression V;
position p;
@@
 mutex_unlock(&slot->lock);
 ... when != mutex_lock(&slot->lock)
     when any
 slot->m@p = V

@script:python depends on report@
p << changed_later.p;
m << changed_later.m;
@@
coccilib.report.print_report(p[0], "slot->%s is changed when slot->lock has been dropped" % m)

@called exists@
identifier f;
expression E;
position p;
@@
 f(...)
 {
 ... when != mutex_lock(...)
     when != lockdep_assert_held(...)
     when any
 E->coherency_changed@p(...)
 ... when any
 }

@script:python depends on report@
p << called.p;
@@
coccilib.report.print_report(p[0], "coherency_changed() is called without slot->lock")

@called_later exists@
expression E, slot;
position p;
@@
 mutex_unlock(&slot->lock);
 ... when != mutex_lock(&slot->lock)
     when any
 E->coherency_changed@p(...)

@script:python depends on report@
p << called_later.p;
@@
coccilib.report.print_report(p[0], "coherency_changed() is called when slot->lock has been dropped")

// The user must be able to take no lock twice.
@again exists@
expression slot;
position p;
@@
 mutex_lock(&slot->lock);
 ... when != mutex_unlock(&slot->lock)
(
 vfio_external_slot_update@p(...)
|
 vfio_external_user_find@p(...)
|
 vfio_file_set_kvm@p(...)
|
 fput@p(...)
)

@script:python depends on report@
p << again.p;
@@
coccilib.report.print_report(p[0], "this may take slot->lock, or a lock outside of it, again")

@told exists@
identifier f;
expression E, E1, E2;
position p;
@@
 f(...)
 {
 ... when != mutex_lock(&E->lock)
     when any
 vfio_external_slot_tell@p(E, E1, E2)
 ... when any
 }

@script:python depends on report@
p << told.p;
@@
coccilib.report.print_report(p[0], "a user is told without slot->lock")

@told_later exists@
expression E, E1, E2;
position p;
@@
 mutex_unlock(&E->lock);
 ... when != mutex_lock(&E->lock)
     when any
 vfio_external_slot_tell@p(E, E1, E2)

@script:python depends on report@
p << told_later.p;
@@
coccilib.report.print_report(p[0], "a user is told when slot->lock has been dropped")
