"""Set environment variables that gRPC and onnxruntime read when they are imported; so import this module before them.

gRPC's core writes to stderr itself: the reason that a peer gives for disconnecting, verbatim, and a line for headers
that it cannot parse. A stranger could thus forge lines of a server's log without a token or a request. Errors reach us
as a status or an exception anyway.

onnxruntime from 1.29 on keeps files in the user's cache, and sends telemetry to Microsoft, including the names and
hashes of models (https://github.com/microsoft/onnxruntime/pull/27379).

Variables that are already set are kept.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
