"""Limbeck distils language models."""
