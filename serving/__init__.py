"""The gRPC server: models answered for over the wire; imports fcnseg, never torch and never training."""
