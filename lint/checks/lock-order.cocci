// SPDX-License-Identifier: GPL-2.0-only
/// no VFIO call or lock under kvm->lock, and none in what VFIO calls
///
// Under kvm->lock run .create and .release of a KVM device, what asserts that
// lock, and what stands between locking and unlocking it.  VFIO's locks are
// held when it calls .coherency_changed.  From all of these, followed through
// the functions of the files looked at, none must reach
//   - a function of VFIO's interface for external users,
//   - files_lock, which is held while VFIO is called,
//   - kvm->lock, from .coherency_changed.
// drain_open() takes a lock that is held while a device is opened, which can take
// long.  Nothing must reach it with a mutex held, between locking and unlocking or
// where that is asserted, but .close: nobody else can want files_lock any more.
// look in: virt/kvm/vfio.c
// look in: virt/kvm/kvm_main.c
// look in: arch/x86/kvm/noncoherent_dma.c
virtual report

@initialize:python@
@@
calls, roots, held, closers = {}, [], [], set()

def edge(p, what):
    calls.setdefault(p.current_element, {}).setdefault(what, p)

def root(p, function, why):
    roots.append((p, function, why))

def way(function, wanted, seen):
    """The functions from here to something wanted, or None."""
    for what in calls.get(function, {}):
        if what in wanted:
            return [function, what]
        if what not in seen:
            seen.add(what)
            rest = way(what, wanted, seen)
            if rest:
                return [function] + rest
    return None

@call@
identifier g;
position p;
@@
 g@p(...)

@script:python depends on report@
p << call.p;
g << call.g;
@@
for one in p:
    edge(one, "VFIO" if g.startswith("vfio_") else str(g))

@api@
expression E;
const struct vfio_external_user_api *V;
identifier m;
position p;
@@
(
 E->vfio->m@p(...)
|
 V->m@p(...)
)

@script:python depends on report@
p << api.p;
m << api.m;
@@
for one in p:
    edge(one, "VFIO")
    if m == "drain_open":
        edge(one, "drain_open")

@taken@
expression E;
identifier L;
position p;
@@
(
 mutex_lock@p(&E->L)
|
 mutex_lock_killable@p(&E->L)
|
 mutex_lock_interruptible@p(&E->L)
|
 guard@p(mutex)(&E->L)
)

@script:python depends on report@
p << taken.p;
E << taken.E;
L << taken.L;
@@
for one in p:
    if L == "files_lock":
        edge(one, "files_lock")
    elif L == "lock" and str(E).replace(" ", "").endswith("kvm"):
        edge(one, "kvm->lock")

@ops@
identifier o, f;
position p;
@@
 struct kvm_device_ops o = {
	.create = f@p,
 };

@script:python depends on report@
p << ops.p;
f << ops.f;
@@
root(p[0], f, "runs under kvm->lock")

@release@
identifier o, f;
position p;
@@
 struct kvm_device_ops o = {
	.release = f@p,
 };

@script:python depends on report@
p << release.p;
f << release.f;
@@
root(p[0], f, "runs under kvm->lock")

@callback@
identifier o, f;
position p;
@@
 struct vfio_external_user_ops o = {
	.coherency_changed = f@p,
 };

@script:python depends on report@
p << callback.p;
f << callback.f;
@@
root(p[0], f, "runs under VFIO's locks")

@asserted@
expression E;
position p;
@@
 lockdep_assert_held@p(&E->lock)

@script:python depends on report@
p << asserted.p;
E << asserted.E;
@@
for one in p:
    if str(E).replace(" ", "").endswith("kvm"):
        root(one, one.current_element, "runs under kvm->lock")

// Between locking and unlocking
@under exists@
expression K;
identifier g;
statement S;
position p;
@@
(
 mutex_lock(&K->lock);
|
 if (mutex_lock_killable(&K->lock)) S
)
 ... when != mutex_unlock(&K->lock)
     when any
 g@p(...)

@script:python depends on report@
p << under.p;
K << under.K;
g << under.g;
@@
if str(K).replace(" ", "").endswith("kvm"):
    for one in p:
        root(one, g, "runs under kvm->lock")

@close exists@
expression K, E;
const struct vfio_external_user_api *V;
identifier m;
statement S;
position p;
@@
(
 mutex_lock(&K->lock);
|
 if (mutex_lock_killable(&K->lock)) S
)
 ... when != mutex_unlock(&K->lock)
     when any
(
 E->ops->close@p(...)
|
 E->vfio->m@p(...)
|
 V->m@p(...)
)

@script:python depends on report@
p << close.p;
@@
coccilib.report.print_report(p[0], "a call that may need VFIO's locks, under kvm->lock")

@drained exists@
expression E, V;
statement S;
position p;
@@
(
 mutex_lock(&E);
|
 if (mutex_lock_killable(&E)) S
)
 ... when != mutex_unlock(&E)
     when any
 V->drain_open@p(...)

@script:python depends on report@
p << drained.p;
E << drained.E;
@@
coccilib.report.print_report(p[0], "drain_open() under %s" % E)

@held exists@
expression E;
identifier g;
statement S;
position p;
@@
(
 mutex_lock(&E);
|
 if (mutex_lock_killable(&E)) S
)
 ... when != mutex_unlock(&E)
     when any
 g@p(...)

@script:python depends on report@
p << held.p;
E << held.E;
g << held.g;
@@
for one in p:
    held.append((one, str(E).replace(" ", ""), str(g)))

@needed@
expression E;
position p;
@@
 lockdep_assert_held@p(&E)

@script:python depends on report@
p << needed.p;
E << needed.E;
@@
for one in p:
    held.append((one, str(E).replace(" ", ""), str(one.current_element)))

@closer@
identifier o, f;
@@
 struct kvm_device_ops o = {
	.close = f,
 };

@script:python depends on report@
f << closer.f;
@@
closers.add(str(f))

@finalize:python depends on report@
@@
told = set()
for p, function, why in roots:
    forbidden = {"VFIO", "files_lock"}
    if "VFIO" in why:
        forbidden.add("kvm->lock")
    found = [function, "VFIO"] if function.startswith("vfio_") else way(function, forbidden, {function})
    if found and (function, why) not in told:
        told.add((function, why))
        coccilib.report.print_report(p, "%s: %s" % (why, " -> ".join(found)))
for p, lock, function in held:
    found = way(function, {"drain_open"}, {function})
    if found and p.current_element not in closers and (function, lock) not in told:
        told.add((function, lock))
        coccilib.report.print_report(p, "drain_open() under %s: %s" % (lock, " -> ".join(found)))
