"""Tenants' data keys, and the end of a tenant: its key, files and rows destroyed, with a receipt.

What has begun is finished, whoever is killed meanwhile.
"""
