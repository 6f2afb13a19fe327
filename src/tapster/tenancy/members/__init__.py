"""Members: the people of a tenant, each with a role. A name is one person's within its tenant."""
