"""Tests of settings: their sources, validation errors and masked secrets."""

from pathlib import Path

import pytest

from service import config
from service.errors import ConfigurationError


def test_defaults_are_those_that_the_contract_names() -> None:
    settings = config.load()
    assert (settings.data_dir, settings.num_frames, settings.frame_interval) == (Path("data"), 10, None)
    assert settings.model == "ViT-B-32-256/datacomp_s34b_b86k"
    assert (settings.host, settings.port, settings.aggregation) == ("127.0.0.1", 8000, "mean")
    assert settings.database == "sqlite:///data/reelsrs.db"
    assert settings.cors_origins == ()


def test_each_setting_says_where_it_came_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REELSRS_PORT", "9000")
    (tmp_path / ".env").write_text("REELSRS_PORT=1\nREELSRS_HOST=0.0.0.0\n")
    rows = {row["name"]: (row["value"], row["source"]) for row in config.describe(config.load())}
    assert rows["REELSRS_PORT"] == ("9000", "environment")
    assert rows["REELSRS_HOST"] == ("0.0.0.0", ".env")
    assert rows["REELSRS_NUM_FRAMES"] == ("10", "default")


def test_lists_are_split_and_secrets_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELSRS_API_KEYS", "one, two")
    monkeypatch.setenv("REELSRS_CORS_ORIGINS", "https://a.example,https://b.example")
    settings = config.load()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    shown = {row["name"]: row["value"] for row in config.describe(settings)}
    assert shown["REELSRS_API_KEYS"] == "********,********"


def test_a_child_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = config.load(data_dir=tmp_path / "a b", frame_interval=3, model="tiny", api_keys="k1,k2")
    for name, value in settings.environ().items():
        monkeypatch.setenv(name, value)
    assert config.load() == settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NUM_FRAMES", "many", "REELSRS_NUM_FRAMES"),
        ("NUM_FRAMES", "0", "greater than or equal to 1"),
        ("DEVICE", "gpu", "auto, cpu, cuda"),
        ("AGGREGATION", "median", "REELSRS_AGGREGATION"),
        ("DATABASE_URL", "mysql://x", "sqlite:///"),
        ("STORAGE_URL", "ftp://bucket", "folder"),
        ("VECTOR_STORE", "milvus", "REELSRS_VECTOR_STORE"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(f"REELSRS_{name}", value)
    with pytest.raises(ConfigurationError, match=said):
        config.load()
