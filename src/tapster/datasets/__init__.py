"""Tables in, immutable versions out: import, profile, clean, transform, split, lineage.

A version is a Parquet file and a profile under its content's digest; it never changes.
`store`, `service` and `routes` run in the control process and never import polars; the other
modules run in job processes.
"""
