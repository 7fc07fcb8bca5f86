"""Studies on trained networks: each runs a whole job and writes one table."""
