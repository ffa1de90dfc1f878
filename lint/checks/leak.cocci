// SPDX-License-Identifier: GPL-2.0-only
/// a structure that goes to user space has been written whole
///
// What its members are set to is not all of it, once somebody adds one.  It is written whole
// by an initialiser, by a copy from user space or of another one, or by whom its address is
// passed to, which has to do the same.
// look in: own
// look in: drivers/vfio/*.c
virtual report

@copied disable decl_init exists@
type T;
identifier x;
identifier copy =~ "^_*copy_to_user(_nofault)?$|^copy_struct_to_user$|^copy_to_iter$";
identifier fill != memset;
expression E, to;
position p;
@@
 T x;
 ... when != x = E
     when != memset(&x, 0, sizeof(x))
     when != fill(..., &x, ...)
(
 copy@p(to, &x, ...)
|
 copy@p(&x, ...)
|
 *to@p = x
)

@script:python depends on report@
p << copied.p;
x << copied.x;
@@
coccilib.report.print_report(p[0], "%s is passed on, and was not written whole" % x)

@filled@
identifier f, to, member;
identifier S =~ "^kvm_vfio_(vm|file)_state$";
expression E;
position p;
@@
 f(..., struct S *to, ...)
 {
 <+...
 to@p->member = E
 ...+>
 }

@script:python depends on report@
p << filled.p;
to << filled.to;
member << filled.member;
@@
coccilib.report.print_report(p[0], "%s->%s is set, not all of *%s" % (to, member, to))
