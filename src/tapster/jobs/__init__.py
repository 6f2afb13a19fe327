"""Durable work: rows with leases, and processes that do what the rows say.

A job ends finished, retried or failed with a reason, whatever is killed meanwhile.
"""
