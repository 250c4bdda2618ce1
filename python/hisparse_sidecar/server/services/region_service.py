"""RegionService: memory that a client and the server share."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the proto

from hisparse_sidecar._proto.hisparse.v1 import region_pb2, region_pb2_grpc
from hisparse_sidecar.server.clients import Client, Region
from hisparse_sidecar.server.gate import Gate
from hisparse_sidecar.server.grpc_types import Context


class RegionServicer(region_pb2_grpc.RegionServiceServicer):
    """See region.proto."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._clients = gate.shared.clients

    async def CreateRegion(
        self, request: region_pb2.CreateRegionRequest, context: Context
    ) -> region_pb2.CreateRegionResponse:
        def create(client: Client) -> Region:
            return self._clients.create_region(client, request.num_bytes, request.huge_pages)

        def undo(client: Client, region: Region) -> None:
            self._clients.close_region(client, region.region_id)

        region = await self._gate.client_call(context, create, undo)
        return region_pb2.CreateRegionResponse(
            region_id=region.region_id,
            num_bytes=region.memory.num_bytes,
            region_token=region.fetch_token,
            huge_pages=region.memory.huge_pages,
        )

    async def CloseRegion(
        self, request: region_pb2.CloseRegionRequest, context: Context
    ) -> region_pb2.CloseRegionResponse:
        def close(client: Client) -> None:
            self._clients.close_region(client, request.region_id)

        await self._gate.client_call(context, close)
        return region_pb2.CloseRegionResponse()
