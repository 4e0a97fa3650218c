"""Tests of the model against open_clip itself, and of the errors of unavailable models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from service.embedding import loading
from service.embedding.devices import choose_device
from service.embedding.encoder import BATCH, Encoder
from service.embedding.loading import TINY, load
from service.errors import ConfigurationError, ModelUnavailable, Undecodable
from service.media import Limits, sample
from service.models import ImageSpec, Sampling
from tests.support.clips import ClipMaker


@pytest.fixture(scope="module")
def reference() -> tuple[torch.nn.Module, object, object]:
    """Return the same checkpoint, loaded by open_clip alone."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{TINY}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{TINY}")


def test_pictures_equal_open_clips_own(tiny: Encoder, reference: tuple, drawn: Path) -> None:
    model, transform, _ = reference
    clip = sorted(drawn.rglob("*.mp4"))[0]
    large = ImageSpec(128, 128)
    frames = sample(clip, Sampling(5), large, Limits(60, 10**6)).pixels
    mine = tiny.embed_images(sample(clip, Sampling(5), tiny.image_spec, Limits(60, 10**6)).pixels)
    with torch.no_grad():
        theirs = model.encode_image(
            torch.stack([transform(Image.fromarray(frame)) for frame in frames]), normalize=True
        )
    cosines = (mine * theirs.numpy()).sum(axis=1)
    assert cosines.min() >= 0.999
    np.testing.assert_allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-6)
    assert mine.dtype == np.float32


@pytest.mark.parametrize("name", ["sports_people/football_juggling.mp4", "odd_files/ios9_rotated_14frames.mov"])
def test_real_frames_equal_open_clips_own(tiny: Encoder, reference: tuple, shared_clips: Path, name: str) -> None:
    """The reference frame is converted by PyAV, rotated by Pillow and preprocessed by open_clip's transform."""
    import av

    model, transform, _ = reference
    with av.open(str(shared_clips / name)) as container:
        frame = next(container.decode(video=0))
        picture = frame.to_image().rotate(frame.rotation, expand=True)
    mine = tiny.embed_images(sample(shared_clips / name, Sampling(1, 1), tiny.image_spec, Limits(60, 10**7)).pixels)
    with torch.no_grad():
        theirs = model.encode_image(transform(picture)[None], normalize=True).numpy()
    assert float(mine[0] @ theirs[0]) >= 0.999


def test_pictures_scaled_by_the_decoder_stay_within_a_thousandth(tiny: Encoder, shared_clips: Path) -> None:
    """Compare a frame of each clip with open_clip's filters on the whole frame in the same colours."""
    from service.media import resize_and_crop
    from service.media.container import Clip
    from service.media.pixels import Scaler, upright

    scaler, mine, theirs, names = Scaler(tiny.image_spec), [], [], []
    for clip in sorted(shared_clips.rglob("*.mp4")) + sorted(shared_clips.rglob("*.mov")):
        try:
            with Clip(clip, Limits(3600, 10**8)) as opened:
                frame = next(opened.read())
                display = opened.displayed_size(frame)
        except Undecodable:
            continue
        if frame.color_trc in (16, 18):
            continue  # HDR: open_clip defines no tone mapping
        mine.append(scaler.model_input(frame, display))
        theirs.append(resize_and_crop(upright(frame), tiny.image_spec, display))
        names.append(clip.name)
    cosines = (tiny.embed_images(np.stack(mine)) * tiny.embed_images(np.stack(theirs))).sum(axis=1)
    assert len(names) > 70
    assert cosines.min() >= 0.999, names[int(cosines.argmin())]


def test_short_captions_equal_open_clips_own(tiny: Encoder, reference: tuple) -> None:
    model, _, tokenizer = reference
    texts = ["a dog on a beach", "Two RED circles #art", "ein Hund, 犬 🐕"]
    with torch.no_grad():
        theirs = model.encode_text(tokenizer(texts), normalize=True).numpy()
    np.testing.assert_allclose(tiny.embed_texts(texts), theirs, atol=1e-5)


def test_long_captions_are_used_to_their_end(tiny: Encoder) -> None:
    long = "a red circle on a plain background " * 12
    plain, with_end = tiny.embed_texts([long, long + "#dog #beach"])
    assert not np.allclose(plain, with_end, atol=1e-4)
    windows = tiny.windows(long + "#dog #beach")
    assert len(windows) > 1
    assert " ".join(text for text, _ in windows).split() == (long + "#dog #beach").split()
    room = tiny.context_length - 2
    assert all(tokens <= room for _, tokens in windows)
    assert all(tiny.count_tokens(text) <= room for text, _ in windows)
    parts = tiny.embed_texts([text for text, _ in windows])
    average = (parts * np.array([[tokens] for _, tokens in windows])).sum(axis=0)
    np.testing.assert_allclose(with_end, average / np.linalg.norm(average), atol=1e-5)


@pytest.mark.parametrize("text", ["", "   ", "a" * 5000, "漢" * 500, "#" * 300, "word " * 2000])
def test_any_text_gives_a_unit_vector(tiny: Encoder, text: str) -> None:
    vector = tiny.embed_texts([text])[0]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert "".join("".join(part.split()) for part, _ in tiny.windows(text)) == "".join(text.split())


def test_out_of_memory_halves_the_batch_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass is real; only the out-of-memory error is simulated."""
    one = load("tiny", device="cpu")
    texts = [f"number {number}" for number in range(40)]
    expected = one.embed_texts(texts)
    sizes, read = [], one.text_tower

    def forward(tokens: np.ndarray) -> torch.Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 8:
            raise torch.OutOfMemoryError
        return read(tokens)

    monkeypatch.setattr(one, "text_tower", forward)
    np.testing.assert_allclose(one.embed_texts(texts), expected, atol=1e-5)
    assert sizes == [32, 16, 8, 8, 8, 8, 8]
    one.embed_texts(texts)
    assert sizes[7:] == [8] * 5
    assert one.batch == 8


def test_the_best_batch_fits_and_is_not_the_largest_for_its_own_sake(monkeypatch: pytest.MonkeyPatch) -> None:
    one = load("tiny", device="cpu")
    assert BATCH <= one.best_batch() <= 1024
    real = one.image_tower

    def small(images: np.ndarray) -> torch.Tensor:
        if len(images) > 70:
            raise torch.OutOfMemoryError
        return real(images[:1].repeat(len(images), axis=0) if len(images) < 3 else images)

    monkeypatch.setattr(one, "image_tower", small)
    assert one.best_batch() <= 64


@pytest.mark.parametrize("damage", ["picture", "text", "nan"])
def test_a_device_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """Simulate a torch release that corrupts weights during the transfer to the device."""
    real = torch.nn.Module.to

    def arrive(self: torch.nn.Module, *arguments: object, **named: object) -> torch.nn.Module:
        moved = real(self, *arguments, **named)  # type: ignore[call-overload]
        if named.get("dtype") is torch.bfloat16:
            with torch.no_grad():
                weights = moved.visual.attnpool.c_proj.weight if damage == "picture" else moved.text_projection
                weights[:] = float("nan") if damage == "nan" else weights.flip(0)
        return moved

    monkeypatch.setattr(torch.nn.Module, "to", arrive)
    with pytest.raises(ConfigurationError, match=r"PRECISION=bfloat16 computes wrong vectors.*cosine to"):
        load("tiny", device="cpu", precision="bfloat16")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not tell what is mapped")
def test_weights_stay_in_their_file(tmp_path: Path) -> None:
    folder = tmp_path / "mapped"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    one = load(f"local-dir:{folder}", device="cpu")
    maps = Path("/proc/self/maps").read_text()
    assert str(folder / "open_clip_model.safetensors") in maps
    assert one.embed_texts(["a cat"]).shape == (1, one.generation.dimension)
    assert torch.nn.Module.load_state_dict.__qualname__ == "Module.load_state_dict"  # restored after loading


def test_weights_in_half_precision_are_the_same_model(tiny: Encoder, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    weights = load_file(folder / "open_clip_model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    half = load(f"local-dir:{folder}", device="cpu")
    assert float((half.embed_texts(["a cat"]) * tiny.embed_texts(["a cat"])).sum()) > 0.999


def test_the_text_tower_alone_is_the_same_generation(tiny: Encoder) -> None:
    text_only = load("tiny", device="cpu", image_tower=False)
    assert text_only.generation == tiny.generation
    np.testing.assert_allclose(text_only.embed_texts(["a cat"]), tiny.embed_texts(["a cat"]), atol=1e-6)


def test_other_weights_or_precision_are_another_generation(tiny: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    same = load(f"local-dir:{folder}", device="cpu")
    assert same.generation.id == tiny.generation.id
    assert load("tiny", device="cpu", precision="bfloat16").generation.id != tiny.generation.id
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4, 0.4, 0.4]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert load(f"local-dir:{folder}", device="cpu").generation.id != tiny.generation.id


def test_the_device_is_chosen_and_the_reason_said() -> None:
    device, precision, reason = choose_device("auto", "auto")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert device == expected
    assert precision == ("float16" if expected == "cuda" else "float32")
    assert reason
    assert choose_device("cpu", "bfloat16") == ("cpu", "bfloat16", "the setting selects it")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="no such CUDA device"):
            choose_device("cuda:3", "auto")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("ViT-B-23/openai", "similar names: ViT-B-32"),
        ("ViT-B-32/nobody", "openai"),
        ("ViT-B-32", "one of"),
        ("local-dir:/nowhere", "no open_clip_config.json"),
    ],
)
def test_a_model_that_does_not_exist_is_a_wrong_setting(model: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(model, device="cpu")


def test_weights_that_cannot_be_had_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    # A reserved name that never resolves (RFC 2606) and an empty cache: same result with or without a network.
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "getproxies", dict)
    with pytest.raises(ModelUnavailable) as caught:
        load("ViT-B-32-256/datacomp_s34b_b86k", device="cpu")
    said = str(caught.value)
    for part in ("datacomp_s34b_b86k", "ViT-B-32-256", "huggingface.co/laion", "hub.invalid", "local-dir:", "tiny"):
        assert part in said
    assert said.index("REELSRS_MODEL=starter") < said.index("(2)")  # the first that is proposed


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    shutil.copy(TINY / "open_clip_config.json", tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelUnavailable, match=str(tmp_path)):
        load(f"local-dir:{tmp_path}", device="cpu")
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=str(tmp_path)):
        load(f"local-dir:{tmp_path}", device="cpu")


def test_random_weights_by_architecture_name(tmp_path: Path, make_clip: ClipMaker) -> None:
    """Save a full-size architecture as a folder and load this folder like a user's own checkpoint."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    save_file(model.state_dict(), str(tmp_path / "open_clip_model.safetensors"))
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    loaded = load(f"local-dir:{tmp_path}", device="cpu")
    assert loaded.generation.dimension == 512
    assert (loaded.image_spec.height, loaded.image_spec.width) == (224, 224)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
    assert loaded.embed_images(pixels).shape == (2, 512)
