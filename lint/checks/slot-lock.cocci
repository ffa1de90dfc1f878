// SPDX-License-Identifier: GPL-2.0-only
/// slots change, and their users are called, under the slot's lock only
///
// A user then hears of changes in their order, and of none after it has left.
// look in: own
// look in: drivers/vfio/*.c
virtual report

@changed exists@
identifier f;
struct vfio_external_slot *slot;
expression U, V;
position p;
@@
 f(...)
 {
 ... when != mutex_lock(&slot->lock)
     when != mutex_init(&slot->lock)
     when != lockdep_assert_held(&slot->lock)
     when any
(
 slot->coherency@p = V
|
 WRITE_ONCE@p(slot->coherency, V)
|
 hlist_add_head@p(&U->node, &slot->users)
|
 hlist_add_behind@p(&U->node, ...)
)
 ... when any
 }

@script:python depends on report@
p << changed.p;
@@
coccilib.report.print_report(p[0], "a slot is changed in %s() without slot->lock"
                             % p[0].current_element)

@changed_later exists@
struct vfio_external_slot *slot;
expression U, V;
position p;
@@
 mutex_unlock(&slot->lock);
 ... when != mutex_lock(&slot->lock)
     when any
(
 slot->coherency@p = V
|
 WRITE_ONCE@p(slot->coherency, V)
|
 hlist_add_head@p(&U->node, &slot->users)
|
 hlist_add_behind@p(&U->node, ...)
|
 hlist_del@p(&U->node)
)

@script:python depends on report@
p << changed_later.p;
@@
coccilib.report.print_report(p[0], "a slot is changed in %s() when slot->lock has been dropped"
                             % p[0].current_element)

// Of the users' list; KVM's device has lists of its own.
@left exists@
identifier f;
struct vfio_external_user *user;
expression slot;
position p;
@@
 f(...)
 {
 ... when != mutex_lock(&slot->lock)
     when any
 hlist_del@p(&user->node)
 ... when any
 }

@script:python depends on report@
p << left.p;
@@
coccilib.report.print_report(p[0], "a user leaves in %s() without slot->lock"
                             % p[0].current_element)

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
statement S;
position p;
@@
(
 mutex_lock(&slot->lock);
|
 if (mutex_lock_killable(&slot->lock)) S
)
 ... when != mutex_unlock(&slot->lock)
(
 vfio_external_slot_update@p(...)
|
 vfio_external_slot_get_kvm@p(...)
|
 vfio_external_user_get@p(...)
|
 vfio_external_user_del@p(...)
|
 vfio_external_user_find@p(...)
|
 vfio_file_drain_open@p(...)
|
 fput@p(...)
)

@script:python depends on report@
p << again.p;
@@
coccilib.report.print_report(p[0], "this may take slot->lock, or a lock outside of it, again")

// What asserts the lock is called with it, here and in the rest of VFIO.
@told exists@
identifier f;
identifier g =~ "^vfio_external_(user_tell|slot_find|slot_kvm)$";
position p;
@@
 f(...)
 {
 ... when != mutex_lock(...)
     when != mutex_lock_killable(...)
     when != lockdep_assert_held(...)
     when any
 g@p(...)
 ... when any
 }

@script:python depends on report@
p << told.p;
g << told.g;
@@
coccilib.report.print_report(p[0], "%s() in %s() without slot->lock" % (g, p[0].current_element))

@told_later exists@
identifier g =~ "^vfio_external_(user_tell|slot_find|slot_kvm)$";
expression E;
position p;
@@
 mutex_unlock(&E->lock);
 ... when != mutex_lock(&E->lock)
     when != mutex_lock_killable(&E->lock)
     when any
 g@p(...)

@script:python depends on report@
p << told_later.p;
g << told_later.g;
@@
coccilib.report.print_report(p[0], "%s() in %s() when slot->lock has been dropped"
                             % (g, p[0].current_element))
