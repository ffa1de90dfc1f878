# SPDX-License-Identifier: GPL-2.0-only
"""What the counts have to be: for bench/gate, which judges a small run at every check, and for
bench/report, which judges the large one."""

FIRST_ADD = 8000                # gets hold of vfio.ko
LATER_ADD = 2500
ALL_ADDS = 400_000 / 128        # a group, of all together
DEL = 2500
CLOSE = {64: 100_000}           # by what is tracked

DELS = ("del_front", "del_middle", "del_back")
# These must not take one instruction more than with the stock modules.
FREE = ("wbinvd", "fault")
# These must not depend on the number of groups.
FLAT = ("add", *DELS)
# No list can be walked with fewer than three instructions for each of its elements. What two allow
# all groups together is for the slab allocator, which has more to do for some objects than for
# others.
GROWTH = 2


def goal(metric, n):
    """The most instructions that are good; "stock" for no more than that; None for no goal."""
    if metric in FREE:
        return "stock"
    if metric == "add":
        return FIRST_ADD if n == 1 else LATER_ADD
    if metric == "add_all":
        return int(n * ALL_ADDS)
    if metric in DELS:
        return DEL
    if metric.endswith("_growth"):
        return GROWTH * n
    return CLOSE.get(n) if metric == "close" else None


def missed(metric, n, ours, stock):
    """The limit that the count of ours is above, or None."""
    limit = goal(metric, n)
    if limit == "stock":
        limit = stock or 0              # without a count of stock's nothing is good
    return limit if limit is not None and ours > limit else None


def later(points):
    """Of a metric's {n: instructions} those of all groups but the first, which has more to do."""
    return {n: points[n] for n in sorted(points) if n > 1}


def growth(points):
    """How much more than that of the second group the dearest takes."""
    rest = list(later(points).values())
    return max(rest) - rest[0]


def steep(points):
    """The n at which there is more growth than is good."""
    rest = later(points)
    if not rest:
        return []
    limit = points[min(rest)] + GROWTH * max(rest)
    return [n for n, count in rest.items() if count > limit]
