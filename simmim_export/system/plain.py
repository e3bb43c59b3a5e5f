"""Values of this project as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any


def as_json(value: Any) -> Any:
    """A dataclass, tuple, list, mapping or scalar as plain JSON values.

    Infinity and NaN, which JSON lacks, become None: an error that could not be measured is not a number.
    """
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_json(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
