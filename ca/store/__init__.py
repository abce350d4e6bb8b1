"""The control plane's resources: a directory of YAML files, read live and written with care."""
