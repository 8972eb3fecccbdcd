"""The Open Inference Protocol, which clients of KServe and Triton speak, on the server's own port."""
