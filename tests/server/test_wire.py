"""What server and client agree on: the generated code, the statuses, the encodings."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2

from hisparse_sidecar import errors, stats
from hisparse_sidecar._core import Stats, TierState
from hisparse_sidecar._proto.hisparse.v1 import (
    error_details_pb2,
    region_pb2,
    selection_pb2,
    sequence_pb2,
    sidecar_pb2,
    step_pb2,
    tensor_pb2,
)
from hisparse_sidecar.config import ModelShape, SelectionConfig, SidecarConfig, TiersConfig
from hisparse_sidecar.engine_stats import (
    EngineRequests,
    EngineStats,
    PublishedStats,
    SelectionCalls,
)
from hisparse_sidecar.wire import errors as wire_errors
from hisparse_sidecar.wire.configs import decode_config, encode_config
from hisparse_sidecar.wire.selections import decode_selection, encode_selection
from hisparse_sidecar.wire.stats import CoreStats, LowerTierState, ServerStats

ROOT = Path(__file__).parents[2]
FILES = (
    error_details_pb2,
    region_pb2,
    selection_pb2,
    sequence_pb2,
    sidecar_pb2,
    step_pb2,
    tensor_pb2,
)


def test_the_committed_code_is_generated_from_the_proto_files(tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(ROOT / "proto")) for path in ROOT.glob("proto/**/*.proto"))
    out = tmp_path / "all"
    flags = [f"--proto_path={ROOT / 'proto'}", f"--descriptor_set_out={out}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, *names], check=True)
    fresh = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    committed = {file.DESCRIPTOR.name: file.DESCRIPTOR.serialized_pb for file in FILES}
    assert sorted(committed) == names
    for file in fresh.file:
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")  # protoc leaves it out of Python code
        assert descriptor_pb2.FileDescriptorProto.FromString(committed[file.name]) == file


def test_every_exception_of_the_sidecar_survives_the_way_to_the_client() -> None:
    ours = [getattr(errors, name) for name in errors.__all__]
    for kind in (*ours, ValueError, wire_errors.NotOwner, wire_errors.Draining):
        code, name, message = wire_errors.status_of(kind("need 3 pages, 2 free"))
        assert code is not grpc.StatusCode.UNKNOWN
        error = wire_errors.error_of(code, name, message)
        assert (type(error), str(error)) == (kind, "need 3 pages, 2 free")


def test_a_fault_of_the_server_tells_the_client_its_type_alone() -> None:
    code, name, message = wire_errors.status_of(KeyError("/secret/path"))
    assert (code, name) == (grpc.StatusCode.INTERNAL, "HisparseError")
    assert message == "internal error of type KeyError"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (sidecar_pb2.CoreStats, CoreStats),
        (sidecar_pb2.Traffic, stats.Traffic),
        (sidecar_pb2.GroupTraffic, stats.GroupTraffic),
        (sidecar_pb2.TierState, LowerTierState),
        (sequence_pb2.TierBytes, stats.TierBytes),
        (sidecar_pb2.SidecarConfig, SidecarConfig),
        (sidecar_pb2.TiersConfig, TiersConfig),
        (sidecar_pb2.EngineRequests, EngineRequests),
        (sidecar_pb2.SelectionCalls, SelectionCalls),
        (selection_pb2.Selection, SelectionConfig),
    ],
)
def test_a_message_has_the_fields_of_its_dataclass(message: type, kind: type) -> None:
    assert set(message.DESCRIPTOR.fields_by_name) == {field.name for field in fields(kind)}


def test_the_answer_of_stats_has_the_fields_of_the_sidecar_and_of_the_server() -> None:
    of_sidecar = {field.name for field in fields(stats.SidecarStats)}
    of_server = {field.name for field in fields(ServerStats)} - {"sidecar"}
    found = set(sidecar_pb2.GetStatsResponse.DESCRIPTOR.fields_by_name)
    assert found == of_sidecar | of_server | {"degraded"}


def test_what_an_engine_tells_has_the_fields_of_a_snapshot() -> None:
    published = {field.name for field in fields(PublishedStats)} - {"stats"}
    told = {field.name for field in fields(EngineStats)}
    assert set(sidecar_pb2.EngineStats.DESCRIPTOR.fields_by_name) == published | told


def test_the_state_of_a_tier_has_the_attributes_of_the_core() -> None:
    attributes = {name for name in vars(TierState) if not name.startswith("_")} - {"as_dict"}
    assert {field.name for field in fields(LowerTierState)} == attributes


def test_the_cores_statistics_are_all_on_the_wire() -> None:
    public = {name for name in dir(Stats) if not name.startswith("_")} - {"as_dict", "from_dict"}
    assert public == {field.name for field in fields(CoreStats)}


def test_unset_numbers_of_a_selection_are_the_servers() -> None:
    default = SelectionConfig("flat", num_kept_blocks=5, routed_heads=3, candidates=99)
    message = selection_pb2.Selection(
        index_source=selection_pb2.INDEX_SOURCE_MISA_DAGGER, routed_heads=2
    )
    assert decode_selection(message, default) == SelectionConfig("misa_dagger", 5, 2, 99)
    assert decode_selection(encode_selection(default), SelectionConfig()) == default


def test_every_setting_of_a_selection_survives_the_wire_and_unset_ones_are_the_servers() -> None:
    changed = SelectionConfig(
        budget="adaptive",
        max_blocks=512,
        tail_share=0.125,
        gate="off",
        audit_one_in=7,
        routed_stages="none",
    )
    assert decode_selection(encode_selection(changed), SelectionConfig()) == changed
    hisa = selection_pb2.Selection(index_source=selection_pb2.INDEX_SOURCE_HISA)
    assert decode_selection(hisa, changed) == changed
    flat = selection_pb2.Selection(index_source=selection_pb2.INDEX_SOURCE_FLAT)
    assert decode_selection(flat, changed) == replace(changed, index_source="flat", budget="fixed")


@pytest.mark.parametrize("name", ["budget", "gate", "routed_stages"])
def test_a_name_that_the_server_does_not_know_is_refused(name: str) -> None:
    message = selection_pb2.Selection(index_source=selection_pb2.INDEX_SOURCE_HISA, **{name: 99})
    with pytest.raises(errors.InvalidArgument, match=f"{name} is number 99, needs one of"):
        decode_selection(message, SelectionConfig())


def test_a_configuration_survives_the_wire_with_its_layer_profile() -> None:
    model = ModelShape(2, (0, 0), 4, 64, 0.125)
    for profile, split in ((None, None), ("layers.toml", 0), (None, 512)):
        config = SidecarConfig(
            model,
            host_pages=8,
            hot_slots=128,
            layer_profile=profile,
            split_keys=split,
            warm_rows=3,
            overlap_rows=16,
        )
        assert decode_config(encode_config(config)) == config
