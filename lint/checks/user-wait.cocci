// SPDX-License-Identifier: GPL-2.0-only
/// nothing is waited for under an external slot's lock that user space can hold up
///
// Page faults are, by userfaultfd, FUSE or NFS, and so is who waits for their end
// (kvm->srcu) and who holds a lock meanwhile (slots_lock, kvm->lock, mmap_lock).
// Under the slot's lock, and iommufd's for the watchers of a device, other VMs and
// the whole host wait.  From what is called under them, followed through the
// functions of the files looked at, none of these must be reached.
// look in: own
// look in: drivers/vfio/*.c
// look in: drivers/iommu/iommufd/device.c
// look in: arch/x86/kvm/mmu/mmu.c
// look in: arch/x86/kvm/mmu/tdp_mmu.c
virtual report

@initialize:python@
@@
import re
WAITS = re.compile(r"^(synchronize_srcu(_expedited)?|srcu_barrier|kvm_mmu_zap_all_fast|kvm_zap_gfn_range"
                   r"|mmap_(read|write)_lock\w*|_*(get|put)_user|_*copy_(from|to)_user"
                   r"|(strn|mem)dup_user|fault_in_\w+|(pin|get)_user_pages\w*"
                   r"|flush_(delayed_)?work|cancel_(delayed_)?work_sync"
                   r"|flush_workqueue|(destroy|drain)_workqueue|task_work_run)$")
LOCKS = ("slots_lock", "slots_arch_lock")
calls, roots = {}, []

def edge(p, what):
    calls.setdefault(p.current_element, {}).setdefault(what, p)

def root(p, function):
    roots.append((p, function))

def wait(what):
    return what.startswith("a ") or bool(WAITS.match(what))

def way(function, seen):
    """The functions from here to a wait, or None."""
    if wait(function):
        return [function]
    for what in calls.get(function, {}):
        if what not in seen:
            seen.add(what)
            rest = way(what, seen)
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
    edge(one, str(g))

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
    if L in LOCKS or L == "lock" and str(E).replace(" ", "").endswith("kvm"):
        edge(one, "a wait for %s" % L)

// What VFIO and iommufd call
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
root(p[0], f)

@watcher@
expression E, E1;
identifier f;
position p;
@@
 iommufd_device_watch@p(E, f, E1)

@script:python depends on report@
p << watcher.p;
f << watcher.f;
@@
root(p[0], f)

@under exists@
struct vfio_external_slot *slot;
identifier g;
statement S;
position p;
@@
(
 mutex_lock(&slot->lock);
|
 if (mutex_lock_killable(&slot->lock)) S
)
 ... when != mutex_unlock(&slot->lock)
     when any
 g@p(...)

@script:python depends on report@
p << under.p;
g << under.g;
@@
for one in p:
    root(one, g)

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
    if str(E).replace(" ", "").endswith("slot"):
        root(one, one.current_element)

@watched exists@
expression E;
identifier g;
position p;
@@
 mutex_lock(&E->watch_lock);
 ... when != mutex_unlock(&E->watch_lock)
     when any
 g@p(...)

@script:python depends on report@
p << watched.p;
g << watched.g;
@@
for one in p:
    root(one, g)

@finalize:python depends on report@
@@
told = set()
for p, function in roots:
    found = way(function, {function})
    if found and tuple(found) not in told:
        told.add(tuple(found))
        coccilib.report.print_report(p, "under a slot's lock: %s" % " -> ".join(found))
