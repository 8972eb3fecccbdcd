"""What must stand in the process's environment before gRPC is imported; so this module is imported first.

gRPC's core writes to stderr by itself, below ERROR also the reason that a peer gives for leaving, as the peer wrote it:
without a token or a request, a stranger could forge lines of a server's log. What the environment says already stays.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
