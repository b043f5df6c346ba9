import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune.data.embedded import cache_folder


@pytest.fixture
def answer_cache(tmp_path, monkeypatch):
    """The folder of the base's answers in a cache that holds nothing but the embedded model and data."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for path in cache_folder().iterdir():
        if path.name != "base_answers":
            (folder / path.name).symlink_to(path)
    monkeypatch.setenv("FINETUNE_CACHE", str(folder))
    return folder / "base_answers"


@pytest.fixture(scope="module")
def tokenizer():
    """Sixty-four words, no chat template: the plain form of a prompt is used."""
    words = {f"w{i}": i for i in range(64)} | {"\n": 64}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", bos_token="w1", eos_token="w2")
