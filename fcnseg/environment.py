"""What must stand in the process's environment before gRPC is imported; so this module is imported first.

gRPC's core writes to stderr by itself, the reason that a peer gives for leaving as the peer wrote it, and a line for
headers that it cannot read: without a token or a request, a stranger could forge lines of a server's log. What fails in
it reaches us as a status or an exception anyway. What the environment says already stays.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
