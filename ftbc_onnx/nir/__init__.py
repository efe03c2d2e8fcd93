"""Export to NIR, the Neuromorphic Intermediate Representation (Pedersen et al. 2024, doi 10.1038/s41467-024-52259-9).

`losses` says what cannot be said, `translate` writes the graph, `consumer` runs the file, `export` is the flow.
"""
