"""The tools around policy: describe, check and analyze, for people and for their pipelines."""
