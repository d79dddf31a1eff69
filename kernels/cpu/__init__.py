"""The operations as native code for CPUs."""
