"""What every program of the mesh shares: identity, certificates, TLS sessions, gRPC, time, logs."""
