"""CLIP models with random weights, saved the way a user saves a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# A vision transformer small enough to be quantised in seconds. Its text tower takes CLIP's own tokens.
SMALL_VIT: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 192, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3},
}
_HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_SMALL_TEXT = {"width": 64, "heads": 2, "layers": 2}
_SIGLIP_TEXT = {
    **_SMALL_TEXT,
    "context_length": 64,
    "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
_SIGLIP_VISION = {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}

FAMILIES: dict[str, dict[str, Any]] = {
    # The image tower of ViT-B-32-SigLIP2-256 in full size, because timm has no smaller one.
    "siglip": {
        "model_cfg": {
            "embed_dim": 768,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {"image_size": 256, "timm_model_name": "vit_base_patch32_siglip_256", **_SIGLIP_VISION},
            "text_cfg": _SIGLIP_TEXT,
        },
        "preprocess_cfg": {**_HALF, "interpolation": "bicubic", "resize_mode": "squash"},
        "special_tokens": {"pad_token": "</s>", "eos_token": "</s>"},
    },
    "siglip2": {
        "model_cfg": {
            **SMALL_VIT,
            "init_logit_bias": -10,
            "custom_text": True,
            "text_cfg": {
                **_SIGLIP_TEXT,
                "hf_tokenizer_name": "timm/ViT-B-32-SigLIP2-256",
                "act_kwargs": {"approximate": "tanh"},
            },
        },
        "preprocess_cfg": {**_HALF, "interpolation": "bicubic", "resize_mode": "squash"},
        "special_tokens": {"pad_token": "<pad>", "eos_token": "</s>"},
        "first_word_alone": True,
    },
    "mobileclip": {
        "model_cfg": {
            "embed_dim": 512,
            "custom_text": True,
            "vision_cfg": {"image_size": 256, "timm_model_name": "fastvit_mci0", "timm_pool": "avg", "timm_proj": None},
            "text_cfg": {**_SMALL_TEXT, "context_length": 77, "vocab_size": 49408, "no_causal_mask": True},
        },
        "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "shortest"},
        "special_tokens": {},
    },
    "pe-core": {
        "model_cfg": {
            "embed_dim": 512,
            "custom_text": True,
            "vision_cfg": {
                "image_size": 384,
                "timm_model_name": "vit_pe_core_tiny_patch16_384",
                "timm_pool": "map",
                "timm_proj": None,
            },
            "text_cfg": {**_SMALL_TEXT, "context_length": 32, "vocab_size": 49408},
        },
        "preprocess_cfg": {**_HALF, "interpolation": "bilinear", "resize_mode": "squash"},
        "special_tokens": {},
    },
    "xlm-roberta": {
        "model_cfg": {
            **SMALL_VIT,
            "text_cfg": {
                "hf_model_name": "xlm-roberta-base",
                "hf_tokenizer_name": "xlm-roberta-base",
                "hf_pooler_type": "mean_pooler",
            },
        },
        "preprocess_cfg": {},
        "special_tokens": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"},
    },
    "nllb": {
        "model_cfg": {
            **SMALL_VIT,
            "text_cfg": {
                "hf_model_name": "facebook/nllb-200-distilled-600M",
                "hf_tokenizer_name": "facebook/nllb-200-distilled-600M",
                "hf_proj_type": "linear",
                "hf_pooler_type": "cls_pooler",
            },
        },
        "preprocess_cfg": {},
        "special_tokens": {"bos_token": "eng_Latn", "pad_token": "<pad>", "eos_token": "</s>"},
    },
}
"""Small models of the same classes as published ones: configuration, and the special tokens of their tokenizer."""

_SENTENCES = ("a dog on a beach", "two red circles on a plain background", "Ein Hund läuft über den Strand", "犬が走る")


def small_vit(folder: Path, seed: int) -> str:
    """Write a small CLIP model with random weights in open_clip's folder format; return its REELSRS_MODEL value."""
    import open_clip
    import torch

    torch.manual_seed(seed)
    preprocessing = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    config = {"model_cfg": SMALL_VIT, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    _save_weights(folder, open_clip.CLIP(**SMALL_VIT))
    return f"local-dir:{folder}"


def family(folder: Path, name: str) -> Any:
    """Write a small model of a family with its text tower's files, as a copy of a repository of the hub has them.

    Return the model itself, in evaluation mode, as open_clip creates it.
    """
    import open_clip
    import torch

    chosen = json.loads(json.dumps(FAMILIES[name]))
    text = chosen["model_cfg"]["text_cfg"]
    if chosen["special_tokens"]:
        # Gemma's tokenizer, unlike the others, does not treat the first word as if a space preceded it.
        scheme = "never" if chosen.get("first_word_alone") else "always"
        tokenizer = _tokenizer(folder, chosen["special_tokens"], scheme)
        _text_config(name, len(tokenizer), tokenizer.pad_token_id).save_pretrained(folder)
        if "hf_model_name" not in text:
            text["vocab_size"] = len(tokenizer)
            (folder / "config.json").unlink()
    config = {"model_cfg": chosen["model_cfg"], "preprocess_cfg": chosen["preprocess_cfg"]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    tower = {"text_cfg": {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}}
    model = open_clip.create_model(
        f"local-dir:{folder}", load_weights=False, pretrained_text=False, **(tower if "hf_model_name" in text else {})
    )
    _save_weights(folder, model)
    return model.eval()


def _save_weights(folder: Path, model: Any) -> None:
    from safetensors.torch import save_file

    weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def _tokenizer(folder: Path, special_tokens: dict[str, str], prepend_scheme: str) -> Any:
    """Write and return a tokenizer of pieces of words, trained on a few sentences."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    first = list(dict.fromkeys([*special_tokens.values(), "<unk>"]))
    made.train_from_iterator(
        _SENTENCES, trainers.UnigramTrainer(vocab_size=120, special_tokens=first, unk_token="<unk>")
    )
    around = [token for key in ("bos_token", "eos_token") if (token := special_tokens.get(key))]
    before = [special_tokens["bos_token"]] if "bos_token" in special_tokens else []
    made.post_processor = processors.TemplateProcessing(
        single=" ".join([*before, "$A", special_tokens["eos_token"]]),
        special_tokens=[(token, made.token_to_id(token)) for token in around],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **special_tokens)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _text_config(name: str, vocabulary: int, pad_token_id: int) -> Any:
    """Return the configuration of a small text tower of transformers."""
    from transformers import M2M100Config, XLMRobertaConfig

    common = {"vocab_size": vocabulary, "pad_token_id": pad_token_id, "max_position_embeddings": 96}
    if name == "nllb":
        sizes = {f"{half}_{size}": 2 for half in ("encoder", "decoder") for size in ("layers", "attention_heads")}
        return M2M100Config(d_model=64, encoder_ffn_dim=128, decoder_ffn_dim=128, **sizes, **common)
    return XLMRobertaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, **common)
