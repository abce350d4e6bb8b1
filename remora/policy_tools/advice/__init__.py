"""What `remora analyze` says of a mesh's resources besides what Istio's own analysis says."""
