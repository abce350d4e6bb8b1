"""Istio's policies as decisions: from resources and facts to an answer with its reason."""
