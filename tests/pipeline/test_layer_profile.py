"""A file of what single layers change in the default selection."""

import json
from pathlib import Path

import pytest

from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.selection.gate import Gate
from hisparse_sidecar.selection.policy import SelectionPolicy
from hisparse_sidecar.selection.profile import read_profile
from tests.pipeline.world import FLAT, HISA, small_config

pytestmark = pytest.mark.cpu_only
PROFILE = """
[layers.0]
index_source = "flat"

[layers.2]
budget = "adaptive"
max_blocks = 16
tail_share = 0.5
"""
LAYER_2 = SelectionConfig(
    "hisa", num_kept_blocks=4, budget="adaptive", max_blocks=16, tail_share=0.5
)


def written(folder: Path, text: str, name: str = "layers.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_profile_changes_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    config = small_config(selection=HISA, layer_profile=written(tmp_path, PROFILE))

    found = read_profile(config)

    assert found == {0: SelectionConfig("flat", num_kept_blocks=4), 2: LAYER_2}


def test_json_says_the_same(tmp_path: Path) -> None:
    values = {"layers": {"2": {"budget": "adaptive", "max_blocks": 16, "tail_share": 0.5}}}
    path = written(tmp_path, json.dumps(values), "layers.json")

    assert read_profile(small_config(selection=HISA, layer_profile=path)) == {2: LAYER_2}


def test_without_a_profile_no_layer_differs() -> None:
    assert read_profile(small_config()) == {}


def test_a_sequence_that_asks_for_another_selection_gets_it_in_every_layer(tmp_path: Path) -> None:
    config = small_config(selection=HISA, layer_profile=written(tmp_path, PROFILE))
    policy = SelectionPolicy(config, Gate())

    assert policy.selection_of(2, HISA) == LAYER_2
    assert policy.selection_of(2, FLAT) == FLAT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[layers", "is not TOML"),
        ("[layer.0]", r"keys are \['layer'\], need \['layers'\]"),
        ("layers = 3", "key layers is 3, need a table of layers"),
        ("[layers]\n0 = 3", "key layers.0 is 3, need a table of settings"),
        ("[layers.1]", "key layers.1 names no layer that selects, those are 0, 2"),
        ("[layers.x]", "key layers.x names no layer that selects"),
        ("[layers.00]", "key layers.00 names no layer that selects"),
        ("[layers.2]\ntopm = 3", r"unknown key layers.2.topm; known keys: layers.2.audit_one_in"),
        ('[layers.2]\nmax_blocks = "9"', "key layers.2.max_blocks is '9', need an integer"),
        ("[layers.2]\ntail_share = 1.5", r"layers.2: tail_share is 1.5, must be >= 0 and < 1"),
        ("[layers.2]\nbudget = 'wide'", r"layers.2: budget is 'wide', must be one of adaptive"),
        ("[layers.2]\nbudget = 'ratio'\nmax_blocks = 3", "layers.2: max_blocks is 3, num_kept_bl"),
        ("[layers.2]\nindex_source = 'given'", "layers.2.index_source is 'given'"),
        (
            "[layers.2]\nindex_source = 'misa'\nrouted_heads = 5",
            "layers.2: routed_heads is 5, the model has 4",
        ),
    ],
)
def test_what_fits_no_layer_is_refused_by_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidArgument, match=f"layer profile {path}: .*{message}"):
        read_profile(small_config(selection=HISA, layer_profile=path))


def test_a_budget_of_the_default_must_be_undone_where_a_layer_is_flat(tmp_path: Path) -> None:
    selection = SelectionConfig("hisa", num_kept_blocks=4, budget="ratio")
    path = written(tmp_path, PROFILE)
    with pytest.raises(InvalidArgument, match=r"layers\.0: budget is ratio, index_source is flat"):
        read_profile(small_config(selection=selection, layer_profile=path))

    path = written(tmp_path, PROFILE.replace('"flat"', '"flat"\nbudget = "fixed"'))
    found = read_profile(small_config(selection=selection, layer_profile=path))
    assert found[0] == SelectionConfig("flat", num_kept_blocks=4)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    with pytest.raises(InvalidArgument, match=f"layer profile {path}: .*No such file"):
        read_profile(small_config(layer_profile=path))


def test_a_profile_of_given_positions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text("[layers.2]\nnum_kept_blocks = 3")
    given = small_config(selection=SelectionConfig("given"), layer_profile=str(path))
    with pytest.raises(InvalidArgument, match="index_source is 'given', a profile needs another"):
        read_profile(given)
