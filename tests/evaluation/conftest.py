import pytest

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
