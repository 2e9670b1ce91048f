"""Types and ranges of the keys that YAML knows, named once, and the models that a section of YAML is made of.

`float` accepts .inf, which takes a bound away; `FiniteFloat` refuses it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, ConfigDict, FiniteFloat


class Section(BaseModel):
    """Keys that a recipe gives; an unknown one is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")  # .inf stays .inf when written


class Recorded(Section):
    """Content of a file that may come from elsewhere; keys of later versions are no error."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def _named(value: str) -> str:
    """The name of a file, a folder or a model. Raises `ValueError` for one that names nothing."""
    if not value.strip():
        raise ValueError("is empty; write a name, or leave the key out")
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError("holds a line end or another control character; write the name alone")
    return value


def _address(value: str) -> str:
    """The address of a server, each in one spelling. Raises `ValueError` for another kind of address, or one with a
    password in it."""
    found = urlsplit(value)
    if found.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:%-]+", found.hostname or "") or not found.port:
        raise ValueError("is no address of a server; write http://HOST:PORT")
    if "@" in found.netloc or found.path.strip("/") or found.query or found.fragment:
        raise ValueError("holds more than an address; write http://HOST:PORT, and a token as ALIGN_SERVER_TOKEN")
    host = f"[{found.hostname}]" if ":" in found.hostname else found.hostname
    return f"{found.scheme}://{host}:{found.port}"


def _warm(value: float) -> float:
    """A sampling temperature. Raises `ValueError` below 0.01, where vLLM samples at 0.01 instead."""
    if value < 0.01:
        raise ValueError("is below 0.01, at which vLLM would sample instead; write 0.01 or more")
    return value


Name = Annotated[str, AfterValidator(_named)]  # of a file, a folder, a model or a function
ServerUrl = Annotated[str, AfterValidator(_address)]  # http://HOST:PORT

# Factors
Coef = Annotated[float, Ge(0)]  # of a term of the loss, the reward or the advantage; 0 leaves it out
PositiveCoef = Annotated[float, Gt(0)]  # likewise, of a term that one leaves out by not naming it
Mixture = Annotated[float, Ge(0), Le(1)]  # alpha of a loss that is alpha * one term + (1 - alpha) * another
Beta = Annotated[float, Gt(0)]  # of the log-ratios in a preference loss; the smaller, the further from the reference
Smoothing = Annotated[float, Ge(0), Lt(0.5)]  # fraction of pairs whose label is taken to be wrong
Discount = Annotated[float, Ge(0), Le(1)]  # gamma and lambda of generalised advantage estimation
WeightDecay = Annotated[FiniteFloat, Ge(0)]  # of the optimiser
Momentum = Annotated[FiniteFloat, Ge(0), Lt(1)]  # how much of a running mean each step keeps
HeadLearningRate = Annotated[float, Gt(0)]  # of a module trained beside the policy
Factor = Annotated[FiniteFloat, Gt(1)]  # how many times as much

# Bounds
ClipLow = Annotated[float, Ge(0), Lt(1)]  # the importance ratio is clipped from below at 1 - clip_low
ClipHigh = Annotated[float, Ge(0)]  # and from above at 1 + clip_high
DualClip = Annotated[float, Gt(1)]  # c: where the advantage is negative, the loss is at most -c * advantage
RatioLow = Annotated[float, Ge(0)]  # the importance ratio is bounded from below at this value itself
RatioHigh = Annotated[float, Gt(0)]  # and from above
ClipBound = Annotated[float, Gt(0)]  # largest absolute value or norm; .inf does not clip
Margin = Annotated[float, Ge(0)]  # by how much the better one must be better
LengthGap = Annotated[float, Ge(0)]  # tokens by which two lengths may differ; .inf does not bound them

# Divisors
Eps = Annotated[float, Ge(0)]  # added to a standard deviation that divides
Divisor = Annotated[float, Gt(0)]  # what a sum over tokens is divided by

# Numbers of things, and parts of a whole
Count = Annotated[int, Ge(1)]  # at least one
CountOrZero = Annotated[int, Ge(0)]  # 0: none
GroupSize = Annotated[int, Ge(1), Le(100_000)]  # responses to one prompt; each is listed in memory
Several = Annotated[int, Ge(2)]  # at least two, for one alone compares with nothing
TokenId = Annotated[int, Ge(0)]  # an index of the vocabulary
LoraRank = Annotated[int, Ge(1), Le(512)]  # of the adapter's two factors
Seed = Annotated[int, Ge(0), Le(2**31)]  # of the run's random numbers
Positive = Annotated[FiniteFloat, Gt(0)]  # an amount: nats, a learning rate, a temperature
Temperature = Annotated[FiniteFloat, Gt(0), AfterValidator(_warm)]  # what logits are divided by
Epochs = Annotated[FiniteFloat, Gt(0), Le(1_000_000)]  # passes over the data
Seconds = Annotated[FiniteFloat, Gt(0), Le(1_000_000)]  # 11 days; clocks of the machine do not take much more
Gib = Annotated[FiniteFloat, Gt(0), Le(1_000_000)]  # of memory
Fraction = Annotated[FiniteFloat, Ge(0), Le(1)]  # part of a whole
Probability = Annotated[FiniteFloat, Gt(0), Le(1)]  # of the tokens that can be sampled, together
RelativeProbability = Annotated[FiniteFloat, Ge(0), Lt(1)]  # of a token, in terms of the likeliest one's
TokenFraction = Annotated[float, Gt(0), Le(1)]  # of tokens that are kept; never none

# Choices that several files offer
Scope = Literal["group", "batch"]  # rows that must be seen together
Std = Literal["population", "sample", "none"]  # which standard deviation divides an advantage; none: it is not divided
Whitening = Literal["population", "sample", "none"]  # which one whitens advantages over a batch; none: as they are
ValueHidden = Literal["shared", "detached"]  # whether the gradient of the value loss reaches the policy's layers
RatioForm = Literal["sequence", "token"]  # whose gradient the ratio of a response carries: its own, or each token's
LabelSmoothing = Literal["conservative", "robust"]  # cDPO, or its unbiased form (arXiv 2403.00409)
