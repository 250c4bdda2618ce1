"""What the suite `engine` asks of SGLang, and what it makes of the answers."""

import json
from pathlib import Path

import pytest

from benchmarks.engine import setups
from benchmarks.engine.models import SHAPES, write_shape
from benchmarks.engine.needles import Question, questions, share_right
from benchmarks.engine.runs import Work, serve, sglang_version
from tests.engines.models import tokenizer


def test_questions_of_one_text_share_it_and_end_where_their_digits_are_due() -> None:
    asked = questions(1500, 2)
    assert len(asked) == 8
    texts = [one.token_ids for one in asked]
    assert texts[0][:1400] == texts[3][:1400] != texts[4][:1400]
    for one in asked:
        written = tokenizer().decode(one.token_ids)
        statement = written[written.rindex("Answer: ") + len("Answer: ") :]
        assert f"{statement}{tokenizer().decode(one.digits)}" in written


def test_an_answer_is_right_if_it_begins_with_all_digits() -> None:
    asked = [Question([1], [7, 8]), Question([1], [7, 9])]
    assert share_right(asked, [[7, 8, 3], [7, 8, 3]]) == 0.5
    assert share_right(asked, [[7], [7, 9]]) == 0.5


def test_a_setup_that_offloads_has_none_of_sglangs_prefix_caches_and_perhaps_ours() -> None:
    offload, cached = (
        one.arguments(Path("m")) for one in (setups.HISA_OFFLOAD, setups.CACHED_OFFLOAD)
    )
    assert cached["disable_radix_cache"]
    assert cached == {**offload, "radix_cache_backend": "hisparse"}


def test_a_setup_that_offloads_says_its_settings_in_json() -> None:
    plain, offload = (one.arguments(Path("m")) for one in (setups.DSA, setups.HISA_OFFLOAD))
    assert "hisparse_config" not in plain
    assert "enable_hisparse" not in plain
    assert offload["enable_hisparse"]
    assert offload["disable_radix_cache"]
    assert json.loads(offload["hisparse_config"])["index_source"] == "hisa"


def test_a_setups_own_arguments_come_after_those_of_the_work() -> None:
    bf16 = setups.BF16_OFFLOAD.arguments(Path("m"), context_length=9)
    assert (bf16["kv_cache_dtype"], bf16["context_length"]) == ("bfloat16", 9)
    assert bf16["hisparse_config"] == setups.HISA_OFFLOAD.arguments(Path("m"))["hisparse_config"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_a_folder_with_a_config(shape: str, tmp_path: Path) -> None:
    config = json.loads((write_shape(shape, tmp_path) / "config.json").read_text())
    assert config["first_k_dense_replace"] == config["num_hidden_layers"]


@pytest.mark.skipif(bool(sglang_version()), reason="an engine would start")
def test_an_engine_that_does_not_start_says_why() -> None:
    served = serve("none", setups.DSA.arguments(Path("m")), Work([[1]]))
    assert served.answers == []
    assert "No module named 'sglang'" in served.failure
