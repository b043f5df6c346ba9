import os

import huggingface_hub.constants
import pytest

from finetune.cli.compose import compose_config
from finetune.machine.libraries import set_for_a_moment, silence_libraries


def test_a_setting_is_put_back_after_the_block_even_when_it_fails():
    settings = {"kept": 1}

    def fail():
        with set_for_a_moment(settings, "kept", 2), set_for_a_moment(settings, "new", None):
            assert settings == {"kept": 2, "new": None}
            raise ValueError("something broke")

    with pytest.raises(ValueError, match="something broke"):
        fail()
    assert settings == {"kept": 1}


def test_a_setting_that_was_none_is_none_again():
    settings = {"wandb": None}
    with set_for_a_moment(settings, "wandb", 1):
        pass
    assert settings == {"wandb": None}


@pytest.mark.parametrize(("asked", "offline"), [([], True), (["data=hub", "data.path=a/b"], False)])
def test_the_hub_is_asked_only_by_runs_that_use_it(monkeypatch, asked, offline):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", not offline)
    silence_libraries(compose_config([*asked, "tracking=none"]))
    assert huggingface_hub.constants.HF_HUB_OFFLINE is offline
    assert (os.environ.get("HF_HUB_OFFLINE") == "1") is offline
