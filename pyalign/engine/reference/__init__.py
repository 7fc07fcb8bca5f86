"""The plain implementation of each operation: torch or scipy, any device, float64; obviously right, not fast."""
