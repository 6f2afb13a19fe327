"""Who may do what: tenants, API keys, rights, and the revisions that tell the data plane.

Every query of every slice is bound to a tenant; a key is stored as its SHA-256 only.
"""
