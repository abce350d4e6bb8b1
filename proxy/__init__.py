"""The sidecar: sniffs, terminates and originates mutual TLS, enforces the inbound mode."""
