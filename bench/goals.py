# SPDX-License-Identifier: GPL-2.0-only
"""What the counts have to be: for bench/gate, which judges a small run at every check, and for
bench/report, which judges the large one."""

import statistics

# What the device took when a VM could be a file's only user: not one more, with several. The first
# ADD gets hold of vfio.ko, and searches more modules for it where the fixture is one of them.
FIRST_ADD = {"edu": 4261, "fixture": 4407}
LATER_ADD = 1377
DEL = 1378
# An object that is the first or the last of its slab costs the slab allocator up to that much more,
# and with many groups tracked nearly each one that is freed does. So the goal of a later ADD is
# that of their median, and both are reached exactly where several VMs track one file.
SLAB = 162
ALL_ADDS = 400_000 / 128        # a group, of all together
CLOSE = {64: 100_000}           # by what is tracked

# A change of coherency, in the system call that causes it, with nothing mapped.
TRANSITION = 20_000
# ... and so much more it may take, whatever is mapped.
MAPPED = 1024
# What is torn down later, for each GiB.
TEARDOWN = 102_000_000

DELS = ("del_front", "del_middle", "del_back")
# Of a file that several VMs track.
SHARED = {"shared_add": LATER_ADD, "shared_del_newest": DEL, "shared_del_oldest": DEL}
# Functions of the MiB that are mapped in pages of that size; each has a ..._later.
TRANSITIONS = tuple(f"{change}_{pages}"
                    for change in ("to_noncoherent", "to_coherent", "attach", "detach")
                    for pages in ("4k", "2m"))
LATER = tuple(f"{metric}_later" for metric in TRANSITIONS)
# These must not take one instruction more than with the stock modules.
FREE = ("wbinvd", "fault")
# Functions of the 4 KiB pages that are mapped for DMA, or no longer: what may be added to stock's.
# Where the device's DMA is coherent that does not depend on how many there are, and in what takes
# longer than a tick it is not seen.
COHERENT_MAPS = ("map", "unmap")
FLUSHED_MAPS = ("map_flushed", "unmap_flushed")
MAP_SIZES = (1, 512, 512 * 512)
A_CALL = 10
# ... of many that one call maps. 256 of them are what clflush_cache_range() takes for the 64 lines of
# a page; what a call takes once, for the first page of each 2 MiB, is no page's.
A_PAGE = 300
PAGES_OF_A_TICK = 512
# Of a VM beside another one that is busy, functions of how many files that one tracks; 0 is the VM
# alone. The two share nothing, so it must not be one instruction more. Nor does the slab allocator
# make it more: what a call takes from it has just been given back by the same call of before. Only an
# attachment allocates so much that it may, by A_CALL; of 6.1 it is 6 with the stock modules as well.
BESIDE = ("beside_wbinvd", "beside_add", "beside_del", "beside_to_noncoherent", "beside_to_coherent",
          "beside_attach", "beside_detach")
# What these tear down later, the thread gives up the CPU in between, to those who work for the other
# VM: that takes some thousand, and is counted as the thread's. To tear down what the other one has
# mapped as well would take millions.
BESIDE_LATER = tuple(f"{metric}_later" for metric in BESIDE[3:])
SWITCHES = 10_000
# Where there are fewer groups of their own for it
BESIDE_FILES = 128
# These must not depend on the number of groups.
FLAT = ("add", *DELS)
# No list can be walked with fewer than three instructions for each of its elements. What two allow
# all groups together is for the slab allocator, which has more to do for some objects than for
# others.
GROWTH = 2
# So much more than with nothing mapped, or alone, may these take.
GROWTHS = {**dict.fromkeys(TRANSITIONS, MAPPED), **dict.fromkeys(BESIDE, 0),
           "beside_attach": A_CALL, **dict.fromkeys(BESIDE_LATER, SWITCHES)}


def derived_goal(metric, n):
    """That of a count that is made from others: see growth(), typical()."""
    of, _, what = metric.rpartition("_")
    if what == "growth":
        return GROWTHS.get(of, GROWTH * n)
    return LATER_ADD


def beyond_stock(metric, n):
    """How many more than with the stock modules are good; None if it is no matter of those."""
    if metric in FREE:
        return 0
    if metric in COHERENT_MAPS and n <= PAGES_OF_A_TICK:
        return A_CALL
    return A_PAGE * n if metric in FLUSHED_MAPS and n > 1 else None


def goal(metric, n, groups="fixture"):
    """The most instructions that are good; "stock + N" for so many more; None for no goal."""
    more = beyond_stock(metric, n)
    if more is not None:
        return f"stock + {more:,}" if more else "stock"
    if metric == "add":
        return FIRST_ADD[groups] if n == 1 else LATER_ADD + SLAB
    if metric == "add_all":
        return int(n * ALL_ADDS)
    if metric in DELS:
        return DEL + SLAB
    if metric in TRANSITIONS:
        return TRANSITION + MAPPED * (n > 0)
    if metric in LATER:
        return TEARDOWN * n // 1024 or None
    if metric.endswith(("_growth", "_typical")):
        return derived_goal(metric, n)
    return CLOSE.get(n) if metric == "close" else SHARED.get(metric)


def missed(metric, n, ours, stock, groups="fixture"):
    """The limit that the count of ours is above, or None."""
    more = beyond_stock(metric, n)
    if more is None:
        limit = goal(metric, n, groups)
    else:
        limit = stock + more if stock else 0    # without a count of stock's nothing is good
    return limit if limit is not None and ours > limit else None


def later(points):
    """Of a metric's {n: instructions} those of all groups but the first, which has more to do."""
    return {n: points[n] for n in sorted(points) if n > 1}


def growth(points):
    """How much more than that of the second group the dearest takes."""
    rest = list(later(points).values())
    return max(rest) - rest[0]


def typical(points):
    """That of most groups but the first."""
    return statistics.median_low(later(points).values())


def growth_from_0(points):
    """How much more than with nothing mapped, of {MiB: instructions}, or than without another VM."""
    return max(points.values()) - points[0]


def steep(points):
    """The n at which there is more growth than is good."""
    rest = later(points)
    if not rest:
        return []
    limit = points[min(rest)] + GROWTH * max(rest)
    return [n for n, count in rest.items() if count > limit]
