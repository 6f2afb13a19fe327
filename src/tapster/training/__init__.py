"""From a dataset version to a sealed, unsigned model package.

`service` and `routes` run in the control process and import nothing heavy; everything from
`runner` down runs in a job's own process. Preprocessing and model become one ONNX graph, and a
candidate that does not reproduce its trainer through ONNX never becomes a package.
"""
