"""Transparent capture: kernel rules that lead an app's connections through the proxy."""
