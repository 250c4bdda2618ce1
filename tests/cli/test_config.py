"""A configuration from a JSON file and flags: what is taken, what is refused."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hisparse_sidecar.cli.config_flags import add_config_flags, values_of_flags
from hisparse_sidecar.cli.serving import sidecar_config
from hisparse_sidecar.config import ModelShape, SelectionConfig, SidecarConfig
from hisparse_sidecar.config.file import build_config, merge_values, read_values

MODEL = {
    "num_layers": 2,
    "anchor_of": [0, 0],
    "index_heads": 4,
    "topk": 64,
    "softmax_scale": 0.125,
}
VALUES: dict[str, Any] = {"model": MODEL, "host_pages": 8}


def _flags(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    return values_of_flags(parser.parse_args(arguments))


def test_a_file_with_the_needed_keys_gives_the_defaults_for_the_rest() -> None:
    expected = SidecarConfig(ModelShape(2, (0, 0), 4, 64, 0.125), host_pages=8)
    assert build_config(VALUES) == expected


def test_a_configuration_survives_json() -> None:
    config = SidecarConfig(
        ModelShape(2, (0, 1), 4, 64, 0.125),
        host_pages=8,
        hot_slots=99,
        selection=SelectionConfig("misa_dagger", candidates=512, routed_heads=3),
        huge_pages=True,
    )
    assert build_config(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warm_rows": -1}, r"warm_rows is -1, must be >= 0"),
        ({"overlap_rows": -1}, r"overlap_rows is -1, must be >= 0"),
        ({"split_keys": 96}, r"split_keys is 96, needs 0 or a multiple of 64"),
        ({"split_keys": -64}, r"split_keys is -64, needs 0 or a multiple of 64"),
        ({"hot_rows": 1}, r"unknown key hot_rows; known keys: backend, block_tokens, device, .*"),
        ({"selection": {"topm": 1}}, r"unknown key selection.topm; known keys: selection.audi"),
        ({"host_pages": "8"}, r"key host_pages is '8', need an integer"),
        ({"host_pages": True}, r"key host_pages is True, need an integer"),
        ({"huge_pages": 1}, r"key huge_pages is 1, need true or false"),
        ({"model": 3}, r"key model is 3, need an object"),
        ({"model": {**MODEL, "anchor_of": 0}}, r"key model.anchor_of is 0, need a list"),
        ({"model": {**MODEL, "softmax_scale": "x"}}, r"key model.softmax_scale is 'x', need a num"),
        ({"kv_layout": "fp7"}, r"fp7"),
        ({"host_pages": 0}, r"host_pages is 0, must be >= 1"),
        ({"selection": {"budget": "big"}}, r"budget is 'big', must be one of adaptive, fixed, rat"),
        ({"selection": {"gate": "on"}}, r"gate is 'on', must be one of auto, off"),
        ({"selection": {"tail_share": 1}}, r"tail_share is 1.0, must be >= 0 and < 1"),
        ({"selection": {"audit_one_in": -1}}, r"audit_one_in is -1, must be >= 0"),
        (
            {"selection": {"index_source": "flat", "budget": "ratio"}},
            r"budget is ratio, index_source is flat, needs hisa",
        ),
        (
            {"selection": {"index_source": "misa", "routed_stages": "both"}},
            r"routed_stages is both, index_source is misa, needs hisa",
        ),
        (
            {"selection": {"budget": "ratio", "routed_stages": "both"}},
            r"routed_stages is both, budget is ratio, needs fixed",
        ),
        (
            {"selection": {"budget": "ratio", "max_blocks": 63}},
            r"max_blocks is 63, num_kept_blocks needs 64",
        ),
        (
            {"selection": {"budget": "adaptive", "num_kept_blocks": 3}},
            r"num_kept_blocks is 3, a quarter of it for adaptive needs >= 4",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config({**VALUES, **change})


@pytest.mark.parametrize("source", ["flat", "misa", "misa_dagger", "given"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("budget", "ratio"), ("budget", "adaptive"), ("routed_stages", "tokens")],
)
def test_what_fits_hisa_alone_is_refused_elsewhere(source: str, name: str, value: str) -> None:
    build_config({**VALUES, "selection": {"index_source": "hisa", name: value}})
    with pytest.raises(ValueError, match=f"{name} is {value}, index_source is {source}, needs his"):
        build_config({**VALUES, "selection": {"index_source": source, name: value}})


def test_a_missing_key_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="key host_pages is missing"):
        build_config({"model": MODEL})
    with pytest.raises(ValueError, match=r"key model\.topk is missing"):
        build_config({**VALUES, "model": {k: v for k, v in MODEL.items() if k != "topk"}})


def test_a_whole_number_may_stand_for_a_fraction() -> None:
    config = build_config({**VALUES, "model": {**MODEL, "softmax_scale": 1}})
    assert config.model.softmax_scale == 1.0


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.json"
    file.write_text(json.dumps({**VALUES, "selection": {"num_kept_blocks": 40}}))

    config = sidecar_config(None, file, _flags("--host-pages", "16", "--index-source", "flat"))

    assert config.host_pages == 16
    assert config.selection == SelectionConfig("flat", num_kept_blocks=40)


def test_flags_alone_describe_a_whole_sidecar() -> None:
    shape = "--num-layers 3 --anchor-of 0,0,2 --index-heads 4 --topk 64 --softmax-scale 0.5"
    rest = "--host-pages 9 --no-huge-pages --kv-layout bf16"
    config = build_config(_flags(*shape.split(), *rest.split()))
    assert config.model == ModelShape(3, (0, 0, 2), 4, 64, 0.5)
    assert (config.host_pages, config.huge_pages, config.kv_layout) == (9, False, "bf16")


def test_every_flag_sets_a_field_that_exists() -> None:
    with pytest.raises(ValueError, match="missing"):
        build_config({})
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    nested = asdict(build_config(VALUES))
    for action in parser._actions[1:]:
        outer, _, name = action.dest.rpartition(".")
        assert name in (nested[outer] if outer else nested), action.dest


def test_merging_keeps_what_only_one_side_has() -> None:
    below, above = {"a": 1, "n": {"x": 1, "y": 2}}, {"n": {"y": 3}, "b": 4}
    assert merge_values(below, above) == {"a": 1, "n": {"x": 1, "y": 3}, "b": 4}


def test_a_toml_file_says_what_a_json_file_says(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text('host_pages = 8\n[selection]\nindex_source = "flat"\n')
    assert read_values(file) == {"host_pages": 8, "selection": {"index_source": "flat"}}
    file.write_text("host_pages 8")
    with pytest.raises(ValueError, match="is not TOML"):
        read_values(file)


def test_a_python_without_toml_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomllib", None)
    with pytest.raises(ValueError, match=r"Python 3\.\d+ reads no TOML, need 3.11"):
        read_values(tmp_path / "sidecar.toml")


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "holds a list, need one"), ("{", "not JSON")]
)
def test_a_file_without_one_object_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "sidecar.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_values(file)
