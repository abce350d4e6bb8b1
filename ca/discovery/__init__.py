"""Sending each proxy what concerns it, and knowing who has what."""
