"""API keys: shown once, stored as SHA-256, told apart by their first characters.

A change of any is heard by the data plane, in the plan that follows from its transaction.
"""
