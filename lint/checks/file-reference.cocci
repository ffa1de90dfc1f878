// SPDX-License-Identifier: GPL-2.0-only
/// every fget() has its fput(), on every path
///
// look in: own
virtual report

// An ADD that succeeds has passed it on.
@passed@
expression file, ret;
position q;
@@
 ret = kvm_vfio_add(..., file);
 if (!ret)
 	return@q 0;

@leak exists@
expression file, fd;
statement S;
position p, q != passed.q;
@@
 file = fget@p(fd);
 if (!file) S
 ... when != fput(file)
     when any
 return@q ...;

@script:python depends on report@
p << leak.p;
@@
coccilib.report.print_report(p[0], "no fput() on some path from here")

@unchecked exists@
expression file, fd;
position p;
@@
 file = fget@p(fd);
 ... when != if (!file) { ... }
     when != if (file == NULL) { ... }
     when != if (file) { ... }
(
 file->private_data
|
 fput(file)
)

@script:python depends on report@
p << unchecked.p;
@@
coccilib.report.print_report(p[0], "fget() whose NULL is not looked for")

// The user's reference to its file goes last, with nothing locked.
@locked exists@
expression E;
statement S;
position p;
@@
(
 mutex_lock(&E);
|
 if (mutex_lock_killable(&E)) S
)
 ... when != mutex_unlock(&E)
 fput@p(...)

@script:python depends on report@
p << locked.p;
@@
coccilib.report.print_report(p[0], "fput() with a mutex held in %s(): its release may need that"
                             % p[0].current_element)

// From del() on the user's reference is KVM's, which waits for devices that are being
// opened before it drops it.
@undrained@
expression E;
position p;
@@
 fput@p(E->user.file)

@undrained_ok@
expression E, V;
position undrained.p;
@@
 V->drain_open(E->user.file);
 ...
 fput@p(E->user.file)

@script:python depends on report && !undrained_ok@
p << undrained.p;
@@
coccilib.report.print_report(p[0], "fput() in %s() without drain_open()" % p[0].current_element)

@deleted@
expression kvf;
position p;
@@
 kvf = kvm_vfio_del_file@p(...)

@deleted_ok exists@
expression kvf;
position deleted.p;
@@
 kvf = kvm_vfio_del_file@p(...);
 ... when any
 kvm_vfio_free_file(..., kvf)

@script:python depends on report && !deleted_ok@
p << deleted.p;
@@
coccilib.report.print_report(p[0], "%s() does not free what kvm_vfio_del_file() has returned"
                             % p[0].current_element)
