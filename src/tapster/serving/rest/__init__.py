"""Inference over HTTP: the protocol class and one file a wire."""
