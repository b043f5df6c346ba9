"""Every run of a grid is composed and checked before the first one starts."""

import pytest

from finetune.cli.main import check_sweep
from finetune.errors import UserError


@pytest.mark.parametrize(
    "arguments", [["-m", "adapter.r=4,-1"], ["sweep=lora_rank", "seed=1,-1"], ["-m", "adapter=lora,full"]]
)
def test_no_run_of_a_sweep_starts_before_the_last_is_known_to_be_valid(arguments):
    with pytest.raises(UserError):
        check_sweep(arguments)


def test_a_valid_sweep_passes():
    check_sweep(["-m", "adapter.r=4,8", "quantization=nf4,none"])
    check_sweep(["sweep=lora_rank", "seed=1,2"])
    check_sweep(["adapter.r=4"])
