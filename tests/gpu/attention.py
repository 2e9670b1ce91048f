"""Part 2: attention over packed rows, forward and backward, over many packings: flex attention, torch's attention on
the parts, the candidate `varlen`, and rows padded side by side. On a CPU flex attention has no backward pass, so it is
traced and run by torch's own operations."""

import random
import warnings
from dataclasses import dataclass

import torch
from report import device, main, median_ms, say, timed
from torch._dynamo.utils import counters
from torch.nn import attention as torch_attention
from torch.nn.functional import scaled_dot_product_attention

from align.model import flex
from align.model.attention import Packing, packed_attention


@dataclass(frozen=True)
class Size:
    """Shapes of a measurement."""

    heads: int
    of_keys: int
    width: int
    prompt: int  # tokens at most
    response: int
    group: int
    groups: int
    packings: int


SIZES = {"cuda": Size(32, 8, 128, 1500, 1000, 8, 2, 40), "cpu": Size(4, 2, 16, 60, 80, 3, 2, 4)}  # of Qwen3-8B; tiny


def packings(size: Size) -> list[Packing]:
    """Made-up groups, whose last block is filled."""
    draw, out = random.Random(0), []
    for _ in range(size.packings):
        lengths = [tuple(draw.randint(1, size.response) for _ in range(size.group)) for _ in range(size.groups)]
        groups = [(draw.randint(1, size.prompt), responses) for responses in lengths]
        taken = sum(Packing(tuple(groups)).lengths)
        out.append(Packing((*groups, (flex.filled(taken) - taken, ()))))
    return out


class Padded:
    """Rows side by side, a prompt once for each of its responses: where their tokens stand in the packed sequence."""

    def __init__(self, packing: Packing, device: str):
        spans, at = [], 0
        for prompt, responses in packing.groups:
            first, at = range(at, at + prompt), at + prompt
            for length in responses or (0,):
                spans.append([*first, *range(at, at + length)])
                at += length
        longest = max(map(len, spans))
        self.index = torch.tensor([span + [0] * (longest - len(span)) for span in spans], device=device)
        back = {position: (row, i) for row, span in reversed(list(enumerate(spans))) for i, position in enumerate(span)}
        self.row, self.column = torch.tensor([back[position] for position in range(at)], device=device).T

    def attention(self, query, key, value):
        """[1,S,H,D] of the packed positions."""
        q, k, v = (tensor[0][:, self.index].transpose(0, 1) for tensor in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)[self.row, self.column][None]


def ways(where: str, dtype: torch.dtype) -> dict:
    """{way: (what it prepares of a packing, its attention)} that there are here."""
    found = {
        "flex": (
            lambda p: flex.blocks(p.lengths, p.prompts, torch.device(where)),
            lambda q, k, v, seen: packed_attention(None, q, k, v, None, packing=seen)[0],
        ),
        "parts": (lambda p: p, lambda q, k, v, packing: packed_attention(None, q, k, v, None, packing=packing)[0]),
        "padded": (lambda p: Padded(p, where), lambda q, k, v, rows: rows.attention(q, k, v)),
    }
    if where == "cuda" and dtype == torch.bfloat16 and hasattr(torch_attention, "varlen"):
        import varlen

        found["varlen"] = (lambda p: varlen.Gathered(p, where), varlen.attention)
    return found


def inputs(packing: Packing, size: Size, where: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key, value, and the weights of a loss."""
    draw, positions = torch.Generator(where).manual_seed(0), sum(packing.lengths)
    counts = (size.heads, size.of_keys, size.of_keys, size.heads)
    made = [torch.randn(1, positions, n, size.width, generator=draw, device=where).to(dtype) for n in counts]
    return [tensor.transpose(1, 2).requires_grad_() for tensor in made[:3]] + [made[3]]


def passed(attend, prepared, made) -> list[torch.Tensor]:
    """Output and gradients."""
    *qkv, weight = made
    out = attend(*qkv, prepared)
    return [out, *torch.autograd.grad((out * weight).sum(), qkv)]


def measure(way: str, prepare, attend, dtype: torch.dtype, size: Size, where: str) -> dict:
    """Largest error against the parts in float32, compiled graphs, warnings of dense scores, and milliseconds."""
    torch._dynamo.reset()
    counters.clear()
    prepare_s, seconds, forward, worst = [], [], [], 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for packing in packings(size):
            made = inputs(packing, size, where, dtype)
            prepared = []
            prepare_s.append(timed(lambda: prepared.append(prepare(packing))))  # noqa: B023
            got = []
            seconds.append(timed(lambda: got.extend(passed(attend, prepared[0], made))))  # noqa: B023
            with torch.no_grad():
                forward.append(timed(lambda: attend(*made[:3], prepared[0])))  # noqa: B023
            exact = [tensor.detach().float().requires_grad_() for tensor in made[:3]] + [made[3].float()]
            oracle = passed(lambda *a: packed_attention(None, *a[:3], None, packing=a[3])[0], packing, exact)
            gaps = [float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(got, oracle, strict=True)]
            worst = max(worst, *gaps)
    dense = sum("full scores matrix" in str(warning.message) for warning in caught)
    return {
        "way": way,
        "dtype": str(dtype).removeprefix("torch."),
        "device": where,
        "largest_error": f"{worst:.2e}",  # as a share of the largest value
        "graphs": counters["stats"]["unique_graphs"],
        "dense_warnings": dense,
        "first_s": round(seconds[0], 1),
        "prepare_ms": median_ms(prepare_s),
        "forward_ms": median_ms(forward[1:]),
        "both_ms": median_ms(seconds[1:]),
    }


def part() -> None:
    where = device()
    if where == "cpu":
        torch.nn.attention.flex_attention._validate_device = lambda *_: None
        compiled = torch.compile(flex._attend, fullgraph=True, backend="aot_eager")
        flex._compiled = lambda: compiled
    for dtype in (torch.bfloat16, torch.float32):
        for way, (prepare, attend) in ways(where, dtype).items():
            say(**measure(way, prepare, attend, dtype, SIZES[where], where))


if __name__ == "__main__":
    main(part)
