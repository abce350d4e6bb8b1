"""Istio's resources as typed, validated values, read from YAML or JSON text.

`load_resources` is the way in; the modules around it are one step each: text to a tree with line
numbers, tree to values, values to findings.
"""
