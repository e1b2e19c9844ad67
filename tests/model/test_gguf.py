"""GGUF files: converted into a folder that computes the same, once, and safely when several need it at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from serve_paged.model import gguf_conversion
from serve_paged.model.errors import UnsupportedModel
from serve_paged.model.gguf_cache import cache_folder
from serve_paged.model.loader import load_model
from serve_paged.model.source import model_folder
from serve_paged.model.tokenizer import load_chat_template, load_tokenizer
from tests.model.checkpoints import make_model
from tests.model.gguf_files import write_gguf
from tests.model.paged import run_in_chunks

TOKENS = list(range(3, 40))


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The conversions that were run."""
    runs: list[Path] = []
    convert = gguf_conversion.convert_gguf

    def counting(gguf_file: Path, folder: Path) -> None:
        runs.append(gguf_file)
        convert(gguf_file, folder)

    monkeypatch.setattr(gguf_conversion, "convert_gguf", counting)
    return runs


@pytest.mark.parametrize("name", ["llama-tied", "llama-untied", "qwen2", "qwen3"])
def test_a_converted_file_computes_what_the_original_does(name: str, tmp_path: Path) -> None:
    theirs = make_model(name)
    write_gguf(tmp_path / "tiny.gguf", theirs)
    ours = load_model(str(tmp_path / "tiny.gguf"), torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(run_in_chunks(ours, TOKENS, 11), expected, atol=1e-4, rtol=1e-4)


def test_the_rope_factors_of_llama_3_are_kept(tmp_path: Path) -> None:
    theirs = make_model("llama-llama3-rope")
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = (plain / theirs.model.rotary_emb.inv_freq).tolist()
    assert max(factors) > 2
    write_gguf(tmp_path / "tiny.gguf", theirs, rope_factors=factors)
    ours = load_model(str(tmp_path / "tiny.gguf"), torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor([TOKENS])).logits[0]
        reread = LlamaForCausalLM.from_pretrained(ours.folder)(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(run_in_chunks(ours, TOKENS, 11), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reread, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        ("llama-linear-rope", (gguf.RopeScalingType.LINEAR, 4.0, 128)),
        ("llama-yarn-rope", (gguf.RopeScalingType.YARN, 4.0, 16)),
    ],
)
def test_rope_scaling_is_kept(name: str, scaling: tuple[gguf.RopeScalingType, float, int], tmp_path: Path) -> None:
    theirs = make_model(name)
    write_gguf(tmp_path / "tiny.gguf", theirs, rope_scaling=scaling)
    ours = load_model(str(tmp_path / "tiny.gguf"), torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(run_in_chunks(ours, TOKENS, 11), expected, atol=1e-4, rtol=1e-4)


def test_rope_scaling_that_depends_on_the_length_is_refused(tmp_path: Path) -> None:
    scaling = (gguf.RopeScalingType.LONGROPE, 4.0, 16)
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"), rope_scaling=scaling)
    with pytest.raises(UnsupportedModel, match="longrope"):
        model_folder(str(tmp_path / "tiny.gguf"))


def test_a_second_load_converts_nothing(tmp_path: Path, counted: list[Path]) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"))
    first = model_folder(str(tmp_path / "tiny.gguf"))
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "tiny.gguf").rename(tmp_path / "moved" / "tiny.gguf")
    assert model_folder(str(moved)) == first
    assert len(counted) == 1


def test_another_file_of_the_same_name_is_converted_anew(tmp_path: Path, counted: list[Path]) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, make_model("llama-tied"))
    first = model_folder(str(file))
    write_gguf(file, make_model("llama-tied", rms_norm_eps=0.5))
    assert model_folder(str(file)) != first
    assert len(counted) == 2


def test_two_that_need_it_at_once_convert_it_once(tmp_path: Path, counted: list[Path]) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"))
    with ThreadPoolExecutor(2) as pool:  # each holds its own lock on the file, as two processes would
        folders = list(pool.map(model_folder, [str(tmp_path / "tiny.gguf")] * 2))
    assert folders[0] == folders[1]
    assert len(counted) == 1


def test_what_a_killed_conversion_left_is_not_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"))
    convert = gguf_conversion.convert_gguf

    def killed(gguf_file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_conversion, "convert_gguf", killed)
    with pytest.raises(KeyboardInterrupt):
        model_folder(str(tmp_path / "tiny.gguf"))
    monkeypatch.setattr(gguf_conversion, "convert_gguf", convert)
    folder = model_folder(str(tmp_path / "tiny.gguf"))
    assert (folder / "model-00001.safetensors").exists()
    assert [path.name for path in cache_folder().iterdir() if path.is_dir()] == [folder.name]


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_conversion, "MAX_SHARD_BYTES", 100_000)
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-untied"))
    ours = load_model(str(tmp_path / "tiny.gguf"), torch.float32)
    assert len(list(ours.folder.glob("*.safetensors"))) > 1


def test_end_tokens_of_the_file_and_of_its_chat_format_all_end_a_text(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"), eos_token="<|endoftext|>")
    ours = load_model(str(tmp_path / "tiny.gguf"), torch.float32)
    tokenizer = load_tokenizer(ours.folder)
    assert [tokenizer.id_to_token(i) for i in ours.config.eos_token_ids] == ["<|endoftext|>", "<|im_end|>"]


def test_a_file_that_names_no_end_token_still_ends_where_its_chat_format_does(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"), eos_token=None)
    ours = load_model(str(tmp_path / "tiny.gguf"), torch.float32)
    assert load_tokenizer(ours.folder).token_to_id("<|im_end|>") in ours.config.eos_token_ids


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["ĠĠ", "7", "8"]), ("default", ["Ġ", "Ġ", "7", "8"])])
def test_text_is_split_as_the_file_says(pre: str, pieces: list[str], tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"), pre=pre)
    folder = model_folder(str(tmp_path / "tiny.gguf"))
    encoded = load_tokenizer(folder).encode("  78")
    assert encoded.tokens == pieces
    assert AutoTokenizer.from_pretrained(folder)("  78").input_ids == encoded.ids


def test_a_text_starts_with_the_token_that_the_file_asks_for(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"), bos_token="<|im_start|>")
    tokenizer = load_tokenizer(model_folder(str(tmp_path / "tiny.gguf")))
    assert tokenizer.encode("a").tokens == ["<|im_start|>", "a"]
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]


def test_the_chat_template_survives(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"))
    template = load_chat_template(model_folder(str(tmp_path / "tiny.gguf")))
    assert template is not None
    assert template.source == "{{ messages[0]['content'] }}"


def test_an_unknown_way_of_splitting_text_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"), pre="tekken")
    with pytest.raises(UnsupportedModel, match="tekken"):
        model_folder(str(tmp_path / "tiny.gguf"))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model("llama-tied"), architecture="gemma2")
    with pytest.raises(UnsupportedModel, match="gemma2"):
        model_folder(str(tmp_path / "tiny.gguf"))
    assert [path for path in cache_folder().iterdir() if path.suffix != ".lock" and "unfinished" not in path.name] == []
