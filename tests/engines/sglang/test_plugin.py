"""The plug-in in SGLang: its name, its options, and a start that fails where something is amiss."""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

from hisparse_sidecar.engines.sglang import plugin, register
from hisparse_sidecar.engines.sglang.targets import TARGETS, check_targets
from hisparse_sidecar.errors import InvalidArgument
from tests.engines.sglang.world import make_runner, make_world, parsed_args, server_args

NAMED = ("--attention-backend", "hisparse")


def test_the_entry_point_is_register() -> None:
    found = entry_points(group="sglang.srt.plugins", name="hisparse")
    assert {entry.load() for entry in found} == {register}


def test_the_name_is_registered_once(sglang: None) -> None:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES

    register()

    assert ATTENTION_BACKENDS["hisparse"] is plugin.create_backend
    assert ATTENTION_BACKEND_CHOICES.count("hisparse") == 1


@pytest.mark.parametrize("option", ["attention", "prefill-attention", "decode-attention"])
def test_the_command_line_takes_the_name(option: str, sglang: None, tmp_path: Path) -> None:
    made = parsed_args(tmp_path, f"--{option}-backend", "hisparse")
    assert getattr(made, f"{option.replace('-', '_')}_backend") == "hisparse"


def test_the_command_line_refuses_another_name(sglang: None, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parsed_args(tmp_path, "--attention-backend", "hisparser")


def test_what_follows_from_a_dsa_model_follows_under_our_name_too(
    sglang: None, tmp_path: Path
) -> None:
    from sglang.srt.runtime_context import get_exec, get_model, get_schedule

    def resolved(name: str) -> dict[str, Any]:
        server_args(tmp_path, "--attention-backend", name)
        kernel = get_exec().kernel
        return {
            "page_size": get_schedule().page_size,
            "kv_cache_dtype": get_model().kv_cache_dtype,
            "prefill": kernel.dsa_prefill_backend,
            "decode": kernel.dsa_decode_backend,
        }

    found = resolved("hisparse")
    assert found == resolved("dsa")
    assert found["page_size"] == 64


def test_every_target_of_the_installed_version_is_as_we_know_it(sglang: None) -> None:
    check_targets()


@pytest.mark.parametrize(
    "target",
    [
        t
        for t in TARGETS
        if t.is_replaced and not t.name.endswith(("move_kv_cache", ".clear", ".set_mla_kv_buffer"))
    ],  # those are inherited too
    ids=lambda t: t.name,
)
def test_a_target_that_is_gone_fails_the_start(
    target: Any, sglang: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hisparse_sidecar.engines.sglang.targets import resolve

    runner = make_runner(server_args(tmp_path, *NAMED))
    owner, name, _ = resolve(target)
    monkeypatch.delattr(owner, name)

    with pytest.raises(
        InvalidArgument, match=rf"{target.name} is (missing|\(self, kv_cache_cpu, )"
    ):
        plugin.create_backend(runner)


def test_a_target_with_other_parameters_fails_the_start(
    sglang: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer

    runner = make_runner(server_args(tmp_path, *NAMED))
    monkeypatch.setattr(Indexer, "_get_topk_paged", lambda self, batch: None)

    with pytest.raises(InvalidArgument, match=r"_get_topk_paged is \(self, batch\), needs \(self,"):
        plugin.create_backend(runner)


def test_another_version_fails_the_start(
    sglang: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(server_args(tmp_path, *NAMED))
    monkeypatch.setattr("hisparse_sidecar.engines.sglang.versions.OLDEST", "0.5.10")
    monkeypatch.setattr("hisparse_sidecar.engines.sglang.versions.NEWEST", "0.5.16")
    with pytest.raises(InvalidArgument, match=r"needs 0\.5\.10 to 0\.5\.16"):
        plugin.create_backend(runner)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"index_sauce": "hisa"}, "hisparse-config has index_sauce; known keys"),
        ({"index_source": "misa", "routed_heads": 5}, "routed_heads is 5, the model has 4"),
        ({"num_kept_blocks": 2}, "num_kept_blocks is 2, 128 tokens and an open page need 3"),
        ({"num_kept_blocks": 3, "top_k": 1}, None),
    ],
)
def test_an_option_that_does_not_fit_fails_the_start(
    config: dict[str, Any], match: str | None, sglang: None, tmp_path: Path
) -> None:
    runner = make_runner(server_args(tmp_path, *NAMED, "--hisparse-config", json.dumps(config)))
    if match is None:
        plugin.create_backend(runner)
        return
    with pytest.raises(InvalidArgument, match=match):
        plugin.create_backend(runner)


@pytest.fixture
def runner(sglang: None, tmp_path: Path) -> Any:
    """A fixture: SGLang sets logging up anew for each command line."""
    return make_runner(server_args(tmp_path, *NAMED))


def test_the_start_says_what_was_replaced_and_with_which_versions(
    runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="hisparse_sidecar.sglang"):
        plugin.create_backend(runner)

    (line,) = [text for text in caplog.messages if text.startswith("hisparse: replaced")]
    assert all(target.name in line for target in TARGETS if target.is_replaced)
    assert plugin.installed_versions().sglang in line


def test_the_model_code_treats_the_name_as_dsa(runner: Any) -> None:
    plugin.create_backend(runner)
    from sglang.srt.models.deepseek_common.attention_backend_handler import (
        AttentionBackendRegistry,
        handle_attention_dsa,
    )
    from sglang.srt.models.deepseek_common.utils import FORWARD_ABSORB_CORE_ATTENTION_BACKENDS

    assert AttentionBackendRegistry.get_handler("hisparse") is handle_attention_dsa
    assert FORWARD_ABSORB_CORE_ATTENTION_BACKENDS.count("hisparse") == 1


@pytest.mark.parametrize(("kernel", "fused"), [("trtllm", True), ("flashmla_sparse", False)])
def test_the_model_code_rotates_queries_as_it_does_for_dsa(
    kernel: str, fused: bool, sglang: None, tmp_path: Path
) -> None:
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_mla import (
        DeepseekMLAForwardMixin,
    )

    world = make_world(make_runner(server_args(tmp_path, *NAMED)))
    server_args(tmp_path, *NAMED, "--dsa-decode-backend", kernel)
    world.backend.kv_cache_dtype = torch.float8_e4m3fn
    layer = DeepseekMLAForwardMixin()
    layer.rotary_emb, layer.current_attention_backend = object(), "hisparse"

    with world.context():
        assert layer._fuse_rope_for_trtllm_mla(None) is fused
    assert layer.current_attention_backend == "hisparse"


def test_a_draft_model_gets_what_it_gets_for_dsa(runner: Any) -> None:
    plugin.create_backend(runner)
    from sglang.srt.speculative.draft_utils import DraftBackendFactory

    factory = DraftBackendFactory.__new__(DraftBackendFactory)
    factory.draft_attn_backend, factory.server_args = None, runner.server_args
    made: list[str] = []
    backends = {"dsa": lambda: made.append("dsa") or (None, None)}

    factory._create_backend("decode_attention_backend", backends, "not {backend_type}")

    assert made == ["dsa"]
