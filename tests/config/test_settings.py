"""Which settings make a run what it is."""

from finetune.cli.compose import compose_config
from finetune.config.settings import changed_settings, to_plain


def test_only_what_differs_from_the_defaults_is_changed():
    defaults = to_plain(compose_config([]))
    config = to_plain(compose_config(["adapter.r=4", "trainer.weight_decay=0.1", "tracking=none", "name=x"]))
    assert changed_settings(config, defaults) == {"adapter.r": (4, 16), "trainer.weight_decay": (0.1, None)}
    assert changed_settings(defaults, defaults) == {}
