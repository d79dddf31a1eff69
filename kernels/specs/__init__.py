"""What each operation computes: oracle, tolerance, cases, source."""
