"""What must stand in the process's environment before gRPC and onnxruntime are imported: this module is, before them.

gRPC's core writes to stderr by itself, the reason that a peer gives for leaving as the peer wrote it, and a line for
headers that it cannot read: without a token or a request, a stranger could forge lines of a server's log. What fails in
it reaches us as a status or an exception anyway.

onnxruntime from 1.29 on keeps files in the user's cache, and sends Microsoft what it is run with, the names and hashes
of models among it (https://github.com/microsoft/onnxruntime/pull/27379).

What the environment says already stays.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
