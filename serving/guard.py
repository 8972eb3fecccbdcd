"""Authentication and authorization: who may call what, decided before anything of a request is read."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE

from fcnseg.errors import FcnsegError
from serving.admin_servicer import METHODS as MODEL_ADMIN_METHODS
from serving.admin_servicer import SERVICE as MODEL_ADMIN_SERVICE
from serving.allowance import Allowance
from serving.calls import current_call
from serving.errors import AllowanceError, ForbiddenError, NoTokenError
from serving.handlers import held_by, parts_of
from serving.oip.servicer import SERVICE as INFERENCE_SERVICE
from serving.statuses import abort
from serving.tokens import Token, Tokens

if TYPE_CHECKING:
    from serving.handlers import Context, Handler

_log = logging.getLogger(__name__)

ADMIN_METHODS = frozenset(
    {
        f"/{INFERENCE_SERVICE}/RepositoryModelLoad",
        f"/{INFERENCE_SERVICE}/RepositoryModelUnload",
        *(f"/{MODEL_ADMIN_SERVICE}/{method}" for method in MODEL_ADMIN_METHODS),
    }
)
"""The methods that change what is served."""
_OPEN_SERVICE = f"/{HEALTH_SERVICE}/"
_SCHEME = "bearer"


class Guard(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid token, and calls that its holder may not make; health is open to everyone.

    Only interceptors that count calls may come before it: the messages of refused calls are not even received.

    Args:
        tokens: The known tokens; None lets everyone in.
        closed: Why nobody may call `ADMIN_METHODS`, with the remedy; None if holders of admin tokens may, or, without
            tokens, everyone.
    """

    def __init__(self, tokens: Tokens | None, closed: str | None) -> None:
        self._tokens = tokens
        self._closed = closed

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return a method's handler, limited to the caller's allowance, or a handler that refuses the call."""
        method = handler_call_details.method
        if method.startswith(_OPEN_SERVICE):
            return await continuation(handler_call_details)
        caller = None
        try:
            if self._tokens is not None:
                caller = _authenticate(self._tokens, handler_call_details.invocation_metadata)
            if method in ADMIN_METHODS:
                self._authorize(caller and caller[0], method.rpartition("/")[2])
        except FcnsegError as error:
            return _refusing(error, method)
        handler = await continuation(handler_call_details)
        if handler is None or caller is None:
            return handler
        token, allowance = caller
        return _within(handler, allowance, method, token.name)

    def _authorize(self, token: Token | None, name: str) -> None:
        """Check that the caller may call a method that changes what is served, and log who calls it.

        Raises:
            ForbiddenError: The caller may not.
        """
        caller = "a caller without a token" if token is None else f"the holder of token {token.name}"
        problem = self._closed
        if problem is None and token is not None and not token.admin:
            problem = "it needs a token whose line on the server says admin"
        if problem is not None:
            _log.warning("%s was refused to %s: %s", name, caller, problem)
            raise ForbiddenError(f"{name} was refused: {problem}")
        _log.info("%s is called by %s", name, caller)


def _authenticate(tokens: Tokens, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[Token, Allowance]:
    """Return the token of a call, and the allowance of its holder.

    Raises:
        NoTokenError: The call has none, or an unknown one.
    """
    given = [value for key, value in metadata if key == "authorization"]
    if len(given) != 1:
        raise NoTokenError("the request brings no token; send one as 'authorization: Bearer TOKEN'")
    scheme, _, secret = str(given[0]).partition(" ")
    if scheme.lower() != _SCHEME:
        raise NoTokenError("the request's authorization is no token; send one as 'authorization: Bearer TOKEN'")
    found = tokens.find(secret.strip())
    if found is None:
        raise NoTokenError("the server does not know the request's token; have one made for it by 'fcnseg token'")
    return found


def _refusing(error: FcnsegError, method: str) -> "Handler":
    """Return a handler that ends any call with an error; a stream handler, since it receives no request by itself."""

    async def end(_: Any, context: "Context") -> None:
        await abort(context, error, method)

    return grpc.stream_stream_rpc_method_handler(end)


def _within(handler: "Handler", allowance: Allowance, method: str, client: str) -> "Handler":
    """Return a handler that answers only what an allowance has room for.

    Args:
        handler: The handler to wrap.
        allowance: The caller's allowance.
        method: The method's full name.
        client: Who calls, for the log.
    """
    if (parts := parts_of(handler)) is None:
        raise TypeError(f"{method} is of a kind whose calls nobody counts; count them here before serving it")
    make, inner = parts

    async def within(request: Any, context: "Context") -> Any:
        if (call := current_call.get()) is not None:
            call.client, call.allowance = client, allowance
        try:
            with allowance.call():
                if handler.request_streaming:
                    request = allowance.pace(request)
                else:
                    allowance.take()
                try:
                    return await inner(request, context)
                finally:
                    held_by(context).enter_context(allowance.answer())
        except AllowanceError as error:
            await abort(context, error, method)

    return make(within, handler.request_deserializer, handler.response_serializer)
