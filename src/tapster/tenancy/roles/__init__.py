"""Roles: the six that come along, and sets of rights that a tenant gives a name."""
