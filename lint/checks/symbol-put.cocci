// SPDX-License-Identifier: GPL-2.0-only
/// every symbol_get() is put back, on every path
///
// The reference to vfio.ko is taken by kvm_vfio_get_api() and kept while files
// are tracked: who asked for it and adds no file, and who takes a file off,
// has to call kvm_vfio_put_api_if_unused() before it returns.
// look in: own
virtual report

@initialize:python@
@@
gotten, put_back = {}, set()

@get@
identifier s;
position p;
@@
 symbol_get@p(s)

@script:python depends on report@
p << get.p;
s << get.s;
@@
gotten[p[0].file, s] = p[0]

// module_put() of the owner does the same, without looking the name up again.
@put@
expression kv;
position p;
@@
 module_put@p(kv->vfio->owner)

@script:python depends on report@
p << put.p;
@@
put_back.add(p[0].file)

// The pointer has to go with the reference.
@gone@
expression kv;
position p;
@@
 module_put@p(kv->vfio->owner);
 ...
 kv->vfio = NULL;

@kept@
expression kv;
position p != gone.p;
@@
 module_put@p(kv->vfio->owner)

@script:python depends on report@
p << kept.p;
@@
coccilib.report.print_report(p[0], "the pointer to vfio outlives module_put()")

// Asked for it, then an error, and not given back
@leak exists@
expression kv, ret;
statement S;
position p;
@@
 ret = kvm_vfio_get_api@p(kv);
 if (ret) S
 ... when != kvm_vfio_put_api_if_unused(kv)
     when != list_add(..., &kv->files)
     when != list_add_tail(..., &kv->files)
     when any
 return ...;

@script:python depends on report@
p << leak.p;
@@
coccilib.report.print_report(p[0], "no kvm_vfio_put_api_if_unused() on some path from here")

@unused exists@
identifier f;
position p;
@@
 f(...)
 {
 ... when any
 kvm_vfio_del_file@p(...)
 ... when != kvm_vfio_put_api_if_unused(...)
     when any
 }

@script:python depends on report@
p << unused.p;
@@
coccilib.report.print_report(p[0], "no kvm_vfio_put_api_if_unused() on some path from here")

@finalize:python depends on report@
@@
for file, symbol in gotten:
    if file not in put_back:
        coccilib.report.print_report(gotten[file, symbol], "symbol_get(%s) is not put back in this file" % symbol)
