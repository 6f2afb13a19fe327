"""Shares: what of a tenant's is there for other tenants too, whatever it is."""
