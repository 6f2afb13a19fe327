"""Sharing: whose endpoints who else may call.

A share is a row of its own; data planes hear of it in the transaction that makes or ends it.
"""
