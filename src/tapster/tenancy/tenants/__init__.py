"""Tenants: who is kept apart from whom. Only the installation's own makes and suspends others."""
