import pytest
import torch

from finetune.machine.allowance import GIB, Allowance, Fit, assess_fit
from finetune.machine.process_memory import (
    available_memory_bytes,
    fits_below_peak,
    held_memory_bytes,
    peak_memory_bytes,
    set_up_memory,
)

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, the memory is that of the GPU")


@on_cpu
def test_runs_that_share_the_machine_have_a_share_of_its_memory():
    alone = available_memory_bytes()
    half = available_memory_bytes(Allowance(runs_at_a_time=2, runs_to_begin=2))
    assert half < 0.6 * alone
    assert available_memory_bytes(Allowance(runs_at_a_time=1000)) < alone / 100


@on_cpu
def test_what_a_process_was_forked_with_is_not_counted_as_its_own():
    assert held_memory_bytes() - held_memory_bytes(Allowance(inherited_bytes=GIB)) == pytest.approx(GIB, abs=GIB / 20)


@on_cpu
def test_the_peak_is_counted_anew_and_what_was_freed_fits_below_it():
    set_up_memory()
    before = peak_memory_bytes()
    block = torch.ones(GIB // 8)  # half a GiB
    del block
    assert peak_memory_bytes() > before + GIB // 4
    assert not fits_below_peak(peak_memory_bytes())
    assert not fits_below_peak(GIB)


@pytest.mark.parametrize(
    ("needed", "fit"), [(84, Fit.fits), (86, Fit.tight), (100, Fit.tight), (101, Fit.will_not_fit)]
)
def test_memory_fits_is_tight_or_does_not_fit(needed, fit):
    assert assess_fit(needed, 100) is fit
