"""What the sections of a recipe are made of."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, FiniteFloat


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Positive = Annotated[FiniteFloat, Gt(0)]
Count = Annotated[int, Ge(1)]
Share = Annotated[FiniteFloat, Ge(0), Le(1)]
