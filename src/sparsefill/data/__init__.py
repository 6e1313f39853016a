"""Texts that come with the package."""
