"""Endpoints: which version answers under which name, and how traffic moves from one to the next.

Writes the plan the data plane follows and hears what became of it; never touches a request.
"""
