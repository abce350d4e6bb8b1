"""The control plane: authenticates callers, signs their CSRs, publishes roots."""
