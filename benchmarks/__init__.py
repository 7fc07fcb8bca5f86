"""Benchmarks: one record per operation, one study per published table."""
