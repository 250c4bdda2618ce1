"""What `--hisparse-config` may say."""

import pytest

from hisparse_sidecar import SelectionConfig
from hisparse_sidecar.engines.sglang.settings import read_settings, unused_without_offload
from hisparse_sidecar.errors import InvalidArgument


@pytest.mark.parametrize("text", [None, "", "{}"])
def test_the_defaults_are_hisa_with_as_many_tokens_as_elsewhere(text: str | None) -> None:
    settings = read_settings(text)
    assert settings.selection == SelectionConfig("hisa", 128, max_blocks=512, gate="off")
    assert settings.selection.num_kept_blocks * 64 == SelectionConfig().num_kept_blocks * 128


def test_adaptive_is_hisa_with_that_budget() -> None:
    settings = read_settings('{"index_source": "adaptive", "tail_share": 0.1, "min_tokens": 4096}')
    assert settings.selection.index_source == "hisa"
    assert settings.selection.budget == "adaptive"
    assert settings.selection.tail_share == 0.1
    assert settings.min_tokens == 4096


def test_index_keys_stay_unless_asked_for_and_windows_hold_half_as_many_again() -> None:
    assert not read_settings(None).offload_index_keys
    settings = read_settings('{"offload_index_keys": true, "num_kept_blocks": 64}')
    assert (settings.offload_index_keys, settings.pages_of_window) == (True, 96)
    assert read_settings('{"offload_index_keys": true, "window_pages": 300}').pages_of_window == 300


def test_ranks_share_a_host_pool_unless_told_otherwise() -> None:
    assert read_settings(None).share_host_pool
    assert not read_settings('{"share_host_pool": false}').share_host_pool
    with pytest.raises(InvalidArgument, match="share_host_pool is 1, needs true or false"):
        read_settings('{"share_host_pool": 1}')


def test_sglangs_own_keys_pass() -> None:
    text = '{"top_k": 2048, "device_buffer_size": 4096, "host_to_device_ratio": 5}'
    assert read_settings(text) == read_settings(None)


def test_keys_without_effect_where_rows_stay_are_told() -> None:
    text = '{"window_pages": 9, "min_tokens": 1, "device_buffer_size": 4096, "hot_share": 0.1}'
    assert unused_without_offload(text) == ("window_pages", "device_buffer_size", "hot_share")
    assert unused_without_offload(None) == ()


def test_an_unknown_key_is_refused_with_all_that_are_known() -> None:
    with pytest.raises(InvalidArgument, match="hisparse-config has top_kk; known keys: ") as caught:
        read_settings('{"top_kk": 1}')
    for name in ("index_source", "num_kept_blocks", "min_tokens", "top_k", "swap_in_block_size"):
        assert name in str(caught.value)
    assert "audit_one_in" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "hisparse-config is not JSON"),
        ("[]", "hisparse-config is a list, needs an object"),
        ('{"index_source": "given"}', "index_source is 'given', and here nobody"),
        ('{"index_source": "best"}', "index_source is 'best', must be one of"),
        ('{"index_source": "adaptive", "budget": "ratio"}', "adaptive, budget is 'ratio'"),
        ('{"num_kept_blocks": 1}', "num_kept_blocks is 1, must be >= 2"),
        ('{"num_kept_blocks": "many"}', "key num_kept_blocks is 'many', need an integer"),
        ('{"min_tokens": "few"}', "min_tokens is 'few', needs an integer"),
        ('{"min_tokens": -1}', "min_tokens is -1, must be >= 0"),
        ('{"offload_index_keys": 1}', "offload_index_keys is 1, needs true or false"),
        ('{"window_pages": 2.5}', "window_pages is 2.5, needs an integer"),
        ('{"window_pages": 0}', "window_pages is 0, must be >= 1"),
        ('{"window_pages": -5}', "window_pages is -5, must be >= 1"),
        ('{"routed_heads": 129}', "routed_heads is 129, must be <= 128"),
        ('{"min_tokens": 1, "top_k": 9, "min_tokens": 2}', "has min_tokens more than once"),
        ('{"top_k": "abc"}', "hisparse-config: top_k is 'abc', needs an integer"),
        ('{"top_k": 0}', "top_k is 0, must be >= 1"),
        ('{"device_buffer_size": "4096"}', "device_buffer_size is '4096', needs an integer"),
        ('{"device_buffer_size": -4}', "device_buffer_size is -4, must be >= 1"),
        ('{"device_buffer_size": 2047}', "device_buffer_size is 2047, top_k needs 2048"),
        (
            '{"top_k": 512, "device_buffer_size": 511}',
            "device_buffer_size is 511, top_k needs 512",
        ),
        ('{"host_to_device_ratio": 2.5}', "host_to_device_ratio is 2.5, needs an integer"),
        ('{"host_to_device_ratio": 0}', "host_to_device_ratio is 0, must be >= 1"),
        ('{"host_to_device_ratio": true}', "host_to_device_ratio is True, needs an integer"),
        ('{"host_to_device_ratio": null}', "host_to_device_ratio is None, needs an integer"),
        ('{"swap_in_block_size": 1025}', "swap_in_block_size is 1025, must be <= 1024"),
        (
            '{"offload_index_keys": true, "window_pages": 127}',
            "window_pages is 127, num_kept_blocks needs 128",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused(text: str, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        read_settings(text)
