"""What every client can ask without knowing us: health, reflection, and who serves."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.server.grpc_servers import SERVICES
from tests.server.serving import status_of


def test_health_answers_for_the_server_and_each_service(channel: grpc.Channel) -> None:
    check = health_pb2_grpc.HealthStub(channel).Check
    for name in ("", *SERVICES):
        answer = check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    unknown = health_pb2.HealthCheckRequest(service="hisparse.v1.NoService")
    assert status_of(lambda: check(unknown))[0] is grpc.StatusCode.NOT_FOUND


def test_reflection_names_every_service_and_its_calls(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(SERVICES) | {"grpc.health.v1.Health"} <= set(database.get_services())
    file = database.FindFileContainingSymbol("hisparse.v1.StepService")
    assert [method.name for method in file.service[0].method] == [
        "BeginStep",
        "RunLayer",
        "RunLayers",
        "EndStep",
    ]


def test_server_info_says_what_the_server_is(session: RemoteSession) -> None:
    info = session.client.server_info()
    assert info.backend == "reference"
    assert info.version
    assert info.core_version
    assert (info.row_sizes.kv_row_bytes, info.row_sizes.index_row_bytes) == (656, 132)
    assert (info.row_sizes.query_dim, info.row_sizes.latent_dim) == (576, 512)
    assert info.limits.max_message_bytes == 4 << 20
