"""Row counts: how many rows each part uses, how many were dropped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlgaf_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Rows by part, for ``data.json`` and the line that is printed before the warm-ups."""

    used: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, int]]
    """By part, then by reason; a reason completes "3 rows ...", such as "with a prompt longer than ..."."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """Other counts to report, such as "rows that repeat an earlier one"."""
    rejected: int = 0
    """Rows of the part demonstrations that have a rejected answer."""

    @property
    def num_used(self) -> int:
        return sum(self.used.values())

    @property
    def num_dropped(self) -> int:
        return self._dropped(self.used)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(sum((Counter(reasons) for reasons in self.dropped.values()), Counter()))

    def described(self) -> dict[str, Any]:
        """Return the record for ``data.json``. A part's share is relative to the used rows."""
        return {
            "read": self.num_used + self.num_dropped,
            "used": self.num_used,
            "dropped": self.reasons,
            "parts": {
                name: {"used": used, "dropped": self._dropped([name]), "share": round(used / max(1, self.num_used), 4)}
                for name, used in self.used.items()
            },
            "rejected": self.rejected,
            "remarks": {text: count for text, count in self.remarks.items() if count},
        }

    def sentence(self) -> str:
        """Return one line with the dropped rows and the remarks; empty if there are none."""
        found = []
        if self.num_dropped:
            parts = ", ".join(
                f"{name} {used:,} ({used / max(1, self.num_used):.0%})" for name, used in self.used.items() if used
            )
            found = [f"{self._left_out(list(self.used))}; parts: {parts}"]
        return "; ".join([*found, *(f"{text}: {count:,}" for text, count in self.remarks.items() if count)])

    def refuse_above(self, share: float, groups: Sequence[Sequence[str]]) -> None:
        """Raise ``UserError`` if more than ``share`` of the rows of a group of parts were dropped."""
        for group in groups:
            dropped = self._dropped(group)
            if dropped > share * (dropped + sum(self.used[name] for name in group)):
                raise UserError(
                    f"{self._left_out(group)}, a larger share than task.max_dropped_share={share:g}: change these "
                    "lengths or the rows, or raise task.max_dropped_share"
                )

    def _left_out(self, parts: Sequence[str]) -> str:
        dropped = self._dropped(parts)
        total = dropped + sum(self.used[name] for name in parts)
        reasons = sum((Counter(self.dropped.get(name, {})) for name in parts), Counter[str]())
        named = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        share = f"{dropped / total:.0%}" if dropped >= 0.01 * total else "under 1%"
        of = f" of the part {parts[0]}" if len(parts) == 1 else ""
        return f"{dropped:,} of {total:,} rows{of} ({share}) left out: {named}"

    def _dropped(self, parts: Sequence[str] | Mapping[str, int]) -> int:
        return sum(sum(self.dropped.get(name, {}).values()) for name in parts)
