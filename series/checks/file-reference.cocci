// SPDX-License-Identifier: GPL-2.0-only
/// every fget() has its fput(), on every path
///
// look in: own
virtual report

@leak exists@
expression file, fd;
statement S;
position p;
@@
 file = fget@p(fd);
 if (!file) S
 ... when != fput(file)
     when any
 return ...;

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
position p;
@@
 mutex_lock(&E);
 ... when != mutex_unlock(&E)
 fput@p(...)

@script:python depends on report@
p << locked.p;
@@
coccilib.report.print_report(p[0], "fput() with a mutex held in %s(): its release may need that"
                             % p[0].current_element)
