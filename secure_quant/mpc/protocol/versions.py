"""Versions of plans: which choices the planner has. Bundles of all of them load."""

from __future__ import annotations

__all__ = ["LONGER", "LOOKUPS_ALONE", "PLAN_VERSION", "TOURNAMENTS_ALONE"]

PLAN_VERSION = 5
LONGER = 4
"""Of plans without what ADR 42 shortens."""
TOURNAMENTS_ALONE = 3
"""And of those without maxima by counting."""
LOOKUPS_ALONE = 2
"""And of those without ramps and maxima by digits."""
