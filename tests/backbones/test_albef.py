"""ALBEF: the authors' checkpoint files, and the whole network against transformers' ViT and BERT."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BlipTextConfig, ViTConfig, ViTModel
from transformers.models.blip.modeling_blip_text import BlipTextEncoder

from app.backbones.albef import Albef, load
from app.backbones.embedded import VOCABULARY
from app.errors import InvalidInputError
from app.method.backbone import TextToImage, TextTokens
from tests.backbones.albef_model import (
    BLOCKS,
    FUSION_LAYERS,
    IMAGE,
    IMAGE_INNER,
    LENGTH,
    TEXT,
    TEXT_INNER,
    TEXT_LAYERS,
    WORDS,
    random_albef,
    write,
)
from tests.backbones.oracle import assert_gradients

LAYERS = (0, 3)
PROMPTS = ("dog", "a very long word for a wall", "railway track")
PREFIX = "text_encoder.bert."
HEADS = TEXT // 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random-albef"
    write(folder, changed=False)
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The folder, to be broken."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def albef(folder: Path) -> Albef:
    return load(str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def rgb(albef: Albef) -> Tensor:
    side = albef.input_size
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


class Reference(torch.nn.Module):
    """The same network of parts that transformers has: a ViT, a BERT, and BLIP's layers, which are BERT's that fuse."""

    def __init__(self, weights: dict[str, Tensor], side: int) -> None:
        super().__init__()
        self.vision = ViTModel(
            ViTConfig(
                hidden_size=IMAGE,
                intermediate_size=IMAGE_INNER,
                num_hidden_layers=BLOCKS,
                num_attention_heads=IMAGE // 64,
                image_size=side,
                layer_norm_eps=1e-6,
                hidden_act="gelu",
            ),
            add_pooling_layer=False,
        )
        self.vision.load_state_dict(_as_vit(weights, side // 16))
        text = {
            "vocab_size": WORDS,
            "hidden_size": TEXT,
            "intermediate_size": TEXT_INNER,
            "num_attention_heads": HEADS,
            "max_position_embeddings": LENGTH,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
        }
        self.bert = BertModel(BertConfig(num_hidden_layers=TEXT_LAYERS, **text), add_pooling_layer=False)
        own = {name.removeprefix(PREFIX): t for name, t in weights.items() if name.startswith(PREFIX)}
        self.bert.load_state_dict({name: own[name] for name in self.bert.state_dict()})
        self.fusion = BlipTextEncoder(
            BlipTextConfig(num_hidden_layers=FUSION_LAYERS, encoder_hidden_size=IMAGE, bos_token_id=101, **text)
        )
        self.fusion.load_state_dict(
            {
                f"layer.{layer}.{part}": own[f"encoder.layer.{TEXT_LAYERS + int(layer)}.{part}"]
                for _, layer, part in (name.split(".", 2) for name in self.fusion.state_dict())
            }
        )
        self.head = torch.nn.Linear(TEXT, 2)
        self.head.load_state_dict({part: weights[f"itm_head.{part}"] for part in ("weight", "bias")})
        self.eval()

    def forward(self, rgb: Tensor, text: TextTokens) -> TextToImage:
        """Logits are products of what the query and key layers gave, seen by hooks."""
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
        image = self.vision((rgb - mean[:, None, None]) / std[:, None, None]).last_hidden_state
        seen: dict[tuple[int, str], Tensor] = {}
        hooks = [
            getattr(block.crossattention.self, part).register_forward_hook(
                lambda _, __, out, key=(layer, part): seen.update({key: out})
            )
            for layer, block in enumerate(self.fusion.layer)
            for part in ("query", "key")
        ]
        hidden = self.bert(input_ids=text.input_ids, attention_mask=text.attention_mask).last_hidden_state
        mask = (1 - text.attention_mask[:, None, None].float()) * -10000
        image = image.expand(len(hidden), -1, -1)
        last = self.fusion(hidden, attention_mask=mask, encoder_hidden_states=image).last_hidden_state
        for hook in hooks:
            hook.remove()
        logits = {}
        for layer in LAYERS:
            q, k = (seen[layer, part].unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in ("query", "key"))
            logits[layer] = (q @ k.mT / math.sqrt(64))[..., 1:]
        return TextToImage(logits, self.head(last[:, 0]).softmax(dim=-1)[:, 1])

    def named(self, name: str) -> Tensor:
        """The parameter that has this name in a checkpoint."""
        layer, part = name.removeprefix(f"{PREFIX}encoder.layer.").split(".", 1)
        return self.fusion.get_parameter(f"layer.{int(layer) - TEXT_LAYERS}.{part}")


def _as_vit(weights: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """The image tower's parameters under the names of transformers' `ViTModel`."""
    own = {n.removeprefix("visual_encoder."): t for n, t in weights.items() if n.startswith("visual_encoder.")}
    positions = own["pos_embed"]
    grid = positions[:, 1:].reshape(1, 5, 5, IMAGE).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    positions = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    named = {"embeddings.cls_token": own["cls_token"], "embeddings.position_embeddings": positions}
    parts = {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    parts |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    for kind in ("weight", "bias"):
        named[f"embeddings.patch_embeddings.projection.{kind}"] = own[f"patch_embed.proj.{kind}"]
        named[f"layernorm.{kind}"] = own[f"norm.{kind}"]
        for block in range(BLOCKS):
            start = f"layers.{block}."
            for part, tensor in zip("qkv", own[f"blocks.{block}.attn.qkv.{kind}"].chunk(3), strict=True):
                named[f"{start}attention.{part}_proj.{kind}"] = tensor
            for theirs, ours in parts.items():
                named[f"{start}{ours}.{kind}"] = own[f"blocks.{block}.{theirs}.{kind}"]
    return named


@pytest.fixture(scope="module")
def reference(albef: Albef) -> Reference:
    return Reference(random_albef(), albef.input_size)


def assert_as_exact(got: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest number."""
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1)


def test_logits_match_score_and_gradients_are_those_of_transformers(
    albef: Albef, reference: Reference, rgb: Tensor
) -> None:
    text = albef.tokenize(PROMPTS)
    free = albef.trainable(LAYERS, text).map(lambda tensor: tensor.requires_grad_(True))
    image = albef.encode_image(rgb)[0]
    seen = albef.attend(image, text, layers=LAYERS, adapters=free.stacked)
    plain = albef.attend(image, text, layers=LAYERS)
    expected = reference(rgb, text)
    real = text.attention_mask.bool()
    for layer in LAYERS:
        wanted = expected.logits[layer].transpose(1, 2)[real]
        for got in (seen, plain):
            assert_as_exact(got.logits[layer].transpose(1, 2)[real], wanted)
    for got in (seen, plain):
        assert_as_exact(got.match_score, expected.match_score)

    for result in (seen, expected):
        of_words = [logits.transpose(1, 2)[real] for logits in result.logits.values()]
        (sum(logits.square().mean() for logits in of_words) + result.match_score.sum()).backward()
    assert_gradients(free, reference.named, reference.bert.embeddings.word_embeddings.weight)
    reference.zero_grad()


def test_a_checkpoint_becomes_a_model_on_384_pixels(albef: Albef) -> None:
    assert (albef.input_size, albef.patch_grid_hw, albef.feature_width) == (384, (24, 24), IMAGE)
    assert (albef.layer_count, albef.default_layers) == (FUSION_LAYERS, (2,))


def test_adapters_have_the_checkpoint_s_names_and_count_from_the_first_fusion_layer(albef: Albef) -> None:
    names = set(albef.trainable((1,), albef.tokenize(["dog"])).delta)
    assert len(names) == 10
    assert all(name.startswith(f"{PREFIX}encoder.layer.{TEXT_LAYERS + 1}.crossattention.") for name in names)
    assert names <= set(random_albef())


def test_the_default_layer_is_one_that_is_there() -> None:
    weights = {
        name: tensor
        for name, tensor in random_albef().items()
        if not any(f"encoder.layer.{layer}." in name for layer in range(TEXT_LAYERS + 2, TEXT_LAYERS + FUSION_LAYERS))
    }
    assert Albef(weights, None).layer_count == 2
    assert Albef(weights, None).default_layers == (1,)


def test_the_input_size_is_part_of_the_revision(albef: Albef) -> None:
    assert Albef(random_albef(), None).revision == albef.revision
    assert Albef(random_albef(), None, input_size=80).revision != albef.revision


def test_positions_stay_as_they_are_where_the_grid_does() -> None:
    same = Albef(random_albef(), None, input_size=80)
    assert torch.equal(same._weights["visual_encoder.pos_embed"], random_albef()["visual_encoder.pos_embed"])


class TestCheckpoints:
    def test_a_file_is_as_the_folder_that_holds_it(self, albef: Albef, folder: Path) -> None:
        loaded = load(str(folder / "ALBEF.pth"), device="cpu", dtype="float32")
        assert (loaded.name, loaded.revision) == ("albef:ALBEF.pth", albef.revision)

    @pytest.mark.parametrize("file", ["bare.pth", "old.pth", "bare.safetensors"])
    def test_the_state_dict_may_be_bare_and_of_any_form(self, albef: Albef, tmp_path: Path, file: str) -> None:
        if file.endswith(".safetensors"):
            save_file(random_albef(), tmp_path / file)
        else:
            torch.save(random_albef(), tmp_path / file, _use_new_zipfile_serialization=not file.startswith("old"))
        assert load(str(tmp_path), device="cpu", dtype="float32").revision == albef.revision

    def test_fine_tuned_ones_have_no_bert_in_their_names(self, albef: Albef, tmp_path: Path, rgb: Tensor) -> None:
        torch.save({"model": random_albef(text="text_encoder.")}, tmp_path / "refcoco.pth")
        bare = load(str(tmp_path / "refcoco.pth"), device="cpu", dtype="float32")
        text = albef.tokenize(["dog"])
        assert "text_encoder.encoder.layer.2.crossattention.self.key.bias" in bare.trainable((0,), text).delta
        image = bare.encode_image(rgb)[0]
        torch.testing.assert_close(
            bare.attend(image, text, layers=(3,)).logits[3], albef.attend(image, text, layers=(3,)).logits[3]
        )

    def test_what_only_training_needs_is_ignored(self, albef: Albef, tmp_path: Path) -> None:
        weights = random_albef()
        extra = {"temp": torch.tensor(0.07), "image_queue": torch.zeros(7, 3), "queue_ptr": torch.zeros(1)}
        extra |= {"text_encoder.cls.predictions.bias": torch.zeros(5), "vision_proj.weight": torch.zeros(7, IMAGE)}
        extra |= {"text_encoder.bert.embeddings.position_ids": torch.arange(LENGTH)[None]}
        extra |= {name.replace("encoder.", "encoder_m.", 1): torch.zeros(1) for name in weights if "encoder." in name}
        torch.save({"model": {**weights, **extra}, "optimizer": {"step": 5}}, tmp_path / "ALBEF.pth")
        loaded = load(str(tmp_path), device="cpu", dtype="float32")
        assert loaded.revision == albef.revision
        assert loaded.memory_bytes == albef.memory_bytes

    def test_the_model_outlives_its_file(self, copied: Path, albef: Albef) -> None:
        loaded = load(str(copied), device="cpu", dtype="float32")
        (copied / "ALBEF.pth").write_bytes(b"")
        assert torch.equal(loaded._weights["itm_head.weight"], albef._weights["itm_head.weight"])

    def test_a_vocabulary_beside_it_counts(self, copied: Path) -> None:
        words = VOCABULARY.read_text().splitlines()
        dog, cat = words.index("dog"), words.index("cat")
        words[dog], words[cat] = "cat", "dog"
        (copied / "vocab.txt").write_text("\n".join(words) + "\n")
        assert dog in load(str(copied), device="cpu", dtype="float32").tokenize(["cat"]).input_ids

    def test_a_vocabulary_of_another_length_is_refused(self, copied: Path) -> None:
        (copied / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndog\n")
        with pytest.raises(InvalidInputError, match=r"has 6 words where .* has 30522"):
            load(str(copied), device="cpu", dtype="float32")

    @pytest.mark.parametrize("source", ["salesforce/albef", "ALBEF.pth"])
    def test_an_id_of_the_hub_is_no_file(self, source: str) -> None:
        with pytest.raises(InvalidInputError, match=r"give ALBEF\.pth"):
            load(source, device="cpu", dtype="float32")

    @pytest.mark.parametrize("content", [b"garbage" * 9, b"", b"PK\x05\x06" + bytes(18)])
    @pytest.mark.parametrize("name", ["ALBEF.pth", "ALBEF.safetensors"])
    def test_a_broken_file_is_refused(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match="No ALBEF checkpoint"):
            load(str(tmp_path), device="cpu", dtype="float32")

    @pytest.mark.parametrize("saved", [[1, 2], {"model": 5}, {"model": {"temp": torch.tensor(1.0)}}])
    def test_a_file_of_something_else_is_refused(self, tmp_path: Path, saved: object) -> None:
        torch.save(saved, tmp_path / "ALBEF.pth")
        with pytest.raises(InvalidInputError, match="ALBEF"):
            load(str(tmp_path), device="cpu", dtype="float32")

    def test_code_in_a_checkpoint_is_not_run(self, tmp_path: Path) -> None:
        torch.save({"model": random_albef(), "config": Path("anything")}, tmp_path / "ALBEF.pth")
        with pytest.raises(InvalidInputError, match="No ALBEF checkpoint"):
            load(str(tmp_path), device="cpu", dtype="float32")

    def test_of_two_checkpoints_none_is_guessed(self, copied: Path) -> None:
        save_file({"temp": torch.zeros(1)}, copied / "mscoco.safetensors")
        with pytest.raises(InvalidInputError, match="holds 2 files"):
            load(str(copied), device="cpu", dtype="float32")

    @pytest.mark.parametrize(
        "lost", ["itm_head", "visual_encoder.blocks.0.norm2", "bert.encoder.layer.1.output", "crossattention"]
    )
    def test_a_checkpoint_without_a_part_is_refused(self, tmp_path: Path, lost: str) -> None:
        kept = {name: tensor for name, tensor in random_albef().items() if lost not in name}
        torch.save({"model": kept}, tmp_path / "vqa.pth")
        with pytest.raises(InvalidInputError, match=f"not a whole ALBEF, .* such as .*{lost}"):
            load(str(tmp_path), device="cpu", dtype="float32")
