"""The model admin service: convert, call, convert."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fcnseg.v1 import model_admin_pb2 as pb
from fcnseg.v1.model_admin_pb2_grpc import ModelAdminServiceServicer
from fcnseg.v1.segmentation_pb2 import Model
from serving.administration import Administration

if TYPE_CHECKING:
    from serving.handlers import Context

_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["ModelAdminService"]
SERVICE = _DESCRIPTOR.full_name
METHODS = tuple(method.name for method in _DESCRIPTOR.methods)


class ModelAdminServicer(ModelAdminServiceServicer):
    """Answers `fcnseg.v1.ModelAdminService`; errors leave it as exceptions, for the interceptor.

    Args:
        administration: Changes what is served.
        describe: Describes the models that are served.
    """

    def __init__(self, administration: Administration, describe: Callable[[], list[Model]]) -> None:
        self._administration = administration
        self._describe = describe

    async def LoadModel(  # noqa: N802 - gRPC calls methods by the contract's names
        self, request: pb.LoadModelRequest, context: "Context"
    ) -> pb.LoadModelResponse:
        """Serve what the repository holds of a model now."""
        del context
        await self._administration.load(request.model_name)
        return pb.LoadModelResponse(models=self._describe())

    async def UnloadModel(  # noqa: N802
        self, request: pb.UnloadModelRequest, context: "Context"
    ) -> pb.UnloadModelResponse:
        """Take a model, or a version of it, from service."""
        del context
        await self._administration.unload(request.model_name, request.model_version)
        return pb.UnloadModelResponse(models=self._describe())

    async def ReloadModel(  # noqa: N802
        self, request: pb.ReloadModelRequest, context: "Context"
    ) -> pb.ReloadModelResponse:
        """Open a model's files anew."""
        del context
        await self._administration.load(request.model_name, anew=True)
        return pb.ReloadModelResponse(models=self._describe())
