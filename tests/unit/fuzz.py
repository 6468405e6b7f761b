"""How the property tests run: the same cases each time, few of them by default, all with RLGAF_FUZZ=full."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from rlgaf_ray.errors import UserError

FULL = os.environ.get("RLGAF_FUZZ") == "full"


def cases(few: int, full: int) -> Callable[[Any], Any]:
    """So many examples, drawn alike in every run."""
    return settings(
        max_examples=full if FULL else few,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],  # no shrinking: it can take minutes, and every case here is small
        report_multiple_bugs=False,
        database=None,
        deadline=None,  # a hang is what pytest-timeout ends; a busy machine is none
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def refused_or_done(work: Callable[[], object]) -> bool:
    """Whether it worked. A user's error must be one line; any other exception is a failure of the property."""
    try:
        work()
    except UserError as error:
        text = str(error)
        assert text and len(text) < 2000 and "\n" not in text, text
        return False
    return True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What can happen to a file: cut, bits flipped, bytes put in or taken out, another encoding, something else."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "delete", "double", "utf-16", "foreign", "none"]))
    seed, foreign = draw(st.integers(0, 2**32)), draw(st.binary(max_size=64))

    def damage(content: bytes) -> bytes:
        chance = random.Random(seed)
        place = chance.randrange(len(content) + 1)
        match kind:
            case "cut":
                return content[:place]
            case "flip":
                changed = bytearray(content)
                for _ in range(min(len(content), chance.randint(1, 8))):
                    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
                return bytes(changed)
            case "insert":
                return content[:place] + foreign + content[place:]
            case "delete":
                return content[:place] + content[place + chance.randint(1, 30) :]
            case "double":
                return content + content[:place]
            case "utf-16":
                return content.decode("latin-1").encode("utf-16")
            case "foreign":
                return foreign
        return content

    return damage


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
