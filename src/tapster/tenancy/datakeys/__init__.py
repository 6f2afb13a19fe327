"""Tenants' data keys: wrapped by the master key, which may be another one from a start on; and a
tenant may be given another data key, under which what lies sealed is sealed anew.
"""
