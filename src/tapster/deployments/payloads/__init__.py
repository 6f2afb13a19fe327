"""Payloads of requests: which are written down, what is taken out of them, who may read them.

Nothing is written down until an owner asks for it, and nothing of another tenant's requests until
that tenant agrees.
"""
