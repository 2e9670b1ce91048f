"""Masks from activations."""

import pytest
import torch
from support.policy_rows import rows, said

from align.model import layouts
from align.model.activations import recorded


@pytest.mark.parametrize("layout", [layouts.padded, layouts.shared_prefix], ids=lambda layout: layout.name)
def test_masks_from_activations_span_0_to_1_and_one_token_says_nothing(model, layout):
    batch = rows()
    alone = [said(model, ("activation_mask",), batch=batch.rows(torch.tensor([i]))) for i in range(4)]
    found = said(model, ("activation_mask",), layout)["activation_mask"]
    for i, length in enumerate(batch.length.tolist()):
        torch.testing.assert_close(found[i, :length], alone[i]["activation_mask"][0, :length], rtol=1e-4, atol=1e-5)
        assert (found[i, :length] >= 0).all() and (found[i, :length] <= 1).all()
    assert found[2, 0] == 0.5 and found[0].std() > 0.01
    assert not found[~batch.mask].any()


def test_a_decoder_with_other_names_is_refused(model):
    renamed = torch.nn.Module()
    renamed.get_decoder = lambda: torch.nn.Linear(2, 2)
    where = pytest.raises(ValueError, match="activations of Linear are not where they are looked for")
    with where, recorded(renamed):
        pass
